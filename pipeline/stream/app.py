"""The Faust application: membership, assignment, fetching and the two agents.

What Faust does not do here, and why, is in ``docs/decisions``: tables, positions and commits are
the stages' own, each flush in one transaction.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import faust
from faust.tables.manager import TableManager
from faust.transport.producer import Producer
from faust.types import TP

from pipeline.stream.context import StreamContext
from pipeline.stream.flow import Flow
from pipeline.stream.transport import FetchState, Slice, SliceConsumer, SliceTransport

SESSION_TIMEOUT_S = 6.0
HEARTBEAT_S = 0.5
REBALANCE_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 40.0
BUFFERED_SLICES = 8


class NoProducer(Producer):
    """Faust's own producer has nothing to send here."""

    async def flush(self) -> None:
        """Nothing is ever buffered."""

    def supports_headers(self) -> bool:
        """Whether records may have headers."""
        return True


class NoTables(TableManager):
    """Faust gives an application a second to declare its tables before it joins the group."""

    async def on_start(self) -> None:
        """There are none to wait for."""
        await self._update_channels()
        await self.recovery.start()


class SliceSchema(faust.Schema):
    """Hands a slice through: decoding is the stage's work."""

    def compile(self, app: Any, **_: Any) -> Any:
        """The function that turns a message into an event for the agent."""

        async def decode(message: Any, *, propagate: bool = False) -> Any:
            return app.create_event(None, message.value, {}, message)

        return decode


class WorkerApp(faust.App):
    """One worker; ``flow`` has the stages."""

    flow: Flow
    client: dict[str, Any]
    input_topic: str

    def _new_transport(self) -> Any:
        transport = SliceTransport(self.conf.broker_consumer, self)
        transport.client = self.client
        transport.columns = self.input_topic
        return transport

    def _new_producer(self) -> Any:
        return NoProducer(self._new_transport())


def build_app(context: StreamContext, scratch: Path, on_failure: Callable[..., None]) -> WorkerApp:
    """The application with its agents, ready to start inside a running event loop.

    ``scratch`` is a folder for the files Faust insists on; nothing in it is needed later.
    """
    app = WorkerApp(
        context.topics.worker_group,
        broker="kafka://unused",
        store="memory://",
        TableManager=NoTables,
        autodiscover=False,
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        stream_buffer_maxsize=BUFFERED_SLICES,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_rebalance_timeout=REBALANCE_TIMEOUT_S,
        broker_request_timeout=REQUEST_TIMEOUT_S,
        broker_max_poll_interval=300.0,
        broker_commit_interval=3600.0,
        datadir=scratch,
    )
    app.input_topic = context.topics.events
    app.client = context.client
    consumer = cast(Callable[[], SliceConsumer], lambda: app.consumer)

    async def seek(topic: str, partition: int, offset: int) -> None:
        await consumer().seek(TP(topic, partition), offset)

    def fetched(tp: TP) -> FetchState | None:
        return consumer().fetch_state(tp)

    app.flow = Flow(context, seek, fetched, on_failure)
    _add_agents(app, context)
    _follow_rebalances(app)
    return app


def _add_agents(app: WorkerApp, context: StreamContext) -> None:
    events = app.topic(context.topics.events, acks=False, schema=SliceSchema())
    partials = app.topic(context.topics.partials, acks=False, schema=SliceSchema())

    @app.agent(events, name="price_usage")
    async def price_usage(stream: Any) -> None:
        async for event in stream.noack().events():
            await app.flow.on_events(cast(Slice, event.value))

    @app.agent(partials, name="merge_totals")
    async def merge_totals(stream: Any) -> None:
        async for event in stream.noack().events():
            await app.flow.on_partials(cast(Slice, event.value))


def _follow_rebalances(app: WorkerApp) -> None:
    async def on_revoked(*_: Any, **__: Any) -> None:
        await app.flow.release()

    async def on_complete(*_: Any, **__: Any) -> None:
        await app.flow.assign(app.consumer.assignment())

    app.on_partitions_revoked.connect(on_revoked, weak=False)
    app.on_rebalance_complete.connect(on_complete, weak=False)
