"""The composition root of the worker: settings become connections, stages and agents."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

import uvloop
from aiokafka.errors import KafkaError

from pipeline import metrics
from pipeline.core.book import builtin_book
from pipeline.core.errors import Refused, TallyportError
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.client import open_writer
from pipeline.ledger.currency import settle_currency
from pipeline.ledger.manifests import known_epochs
from pipeline.liveness import Watchdog, end_through, end_within
from pipeline.processor import stay_on
from pipeline.settings import Settings
from pipeline.stream.app import WorkerApp, build_app
from pipeline.stream.clock import BrokerClock
from pipeline.stream.context import StreamContext
from pipeline.stream.epoch import begin_epoch, identities
from pipeline.stream.flow_watch import watch_worker
from pipeline.stream.rate_log import RateTail
from pipeline.stream.topic_identity import refuse_recreated, watch_topics
from pipeline.stream.topics import Topics, create_or_check
from pipeline.stream.transport import SliceConsumer
from pipeline.web.health import serve_health

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 25.0
END_TIMEOUT_S = 15.0
"""How long a worker that failed may take to let go of everything in order."""
CAUSE_TIMEOUT_S = 5.0
GC_YOUNG_OBJECTS = 100_000


class WorkerFailed(TallyportError):
    """The worker cannot go on; what it had not committed is taken again by whoever follows."""


def run_worker(settings: Settings) -> int:
    """Runs the worker until SIGTERM or SIGINT; returns the exit status.

    Prints ``ready worker`` once its first assignment is served. Raises ``TallyportError`` when it
    refuses to start or had to stop.
    """
    if settings.worker_cpu is not None:
        stay_on(settings.worker_cpu)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings))


async def _run(settings: Settings) -> int:
    failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    def on_failure(error: BaseException) -> None:
        if not failure.done():
            failure.set_result(error)
            # What it stops for may keep it from stopping in order.
            end_within(END_TIMEOUT_S, str(_explained(error)))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await check_kafka(settings)
    await create_or_check(settings)
    rates = _rate_tail(settings)
    await rates.start()
    try:
        context, topic_ids = await _context(settings, rates)
        with _scratch(settings.data_dir) as scratch:
            app = build_app(context, scratch, on_failure)
            with _watching(app, rates, on_failure) as watchdog:
                watching = _watch_topics(context.client, topic_ids, on_failure)
                await _serve(app, settings, watchdog, stop, on_failure)
                watching.cancel()
        if failure.done() and isinstance(failure.result(), KafkaError):
            await _name_recreated(context.client, topic_ids)
    finally:
        await rates.stop()
    if failure.done():
        raise _explained(failure.result())
    return 0


@contextlib.contextmanager
def _scratch(data_dir: Path) -> Generator[Path]:
    """A folder for Faust, which makes others in it and puts nothing there.

    It is in the data folder where there is one: a worker that is killed leaves it behind.
    """
    if data_dir.is_dir() and os.access(data_dir, os.W_OK):
        yield data_dir / "worker"
        return
    with tempfile.TemporaryDirectory(prefix="tallyport-worker-") as folder:
        yield Path(folder)


async def _name_recreated(client: dict[str, Any], recorded: dict[str, str]) -> None:
    """Raises ``Refused`` when a recreated topic is what the broker's errors come from."""
    with contextlib.suppress(KafkaError, OSError, TimeoutError):
        async with asyncio.timeout(CAUSE_TIMEOUT_S):
            await refuse_recreated(client, recorded)


def _explained(error: BaseException) -> TallyportError:
    if isinstance(error, TallyportError):
        return error
    failed = WorkerFailed(f"the worker cannot go on: {error!r}")
    failed.__cause__ = error
    return failed


def _rate_tail(settings: Settings) -> RateTail:
    return RateTail(
        client_kwargs(settings),
        Topics(settings.topic_prefix).rates,
        builtin_book(),
        lead_s=settings.price_lead_s,
        currency=settings.currency,
        on_change=lambda version: metrics.RATES_UNUSED.set(len(version.rates.ignored)),
    )


async def _context(settings: Settings, rates: RateTail) -> tuple[StreamContext, dict[str, str]]:
    """What the stages share, and the ids of the topics that the epoch was begun on."""
    client = client_kwargs(settings)
    topics = Topics(settings.topic_prefix)
    partitions = settings.partition_count
    logs = await asyncio.to_thread(_ledger_logs, settings)
    ledger_epoch = max(logs, default=0)
    ids = await identities(client, topics)
    now_ms = int(time.time() * 1000)
    epoch = await begin_epoch(client, topics, ids, partitions, ledger_epoch, now_ms)
    if logs.get(epoch.epoch, epoch.id) != epoch.id:
        raise Refused(
            f"the ledger was written from another Kafka (epoch {epoch.epoch}, id "
            f"{logs[epoch.epoch]}) than this one (id {epoch.id}); connect the two that belong "
            "together"
        )
    context = StreamContext(settings, client, topics, partitions, epoch.epoch, rates, BrokerClock())
    return context, epoch.topic_ids


def _ledger_logs(settings: Settings) -> dict[int, str]:
    """The logs that the ledger has been written from: epoch → id; it must be of our currency."""
    with contextlib.closing(open_writer(settings)) as client:
        settle_currency(client, settings.currency)
        return {log_epoch.epoch: log_epoch.id for log_epoch in known_epochs(client)}


@contextlib.contextmanager
def _watching(
    app: WorkerApp, rates: RateTail, on_failure: Callable[[BaseException], None]
) -> Generator[Watchdog]:
    loop = asyncio.get_running_loop()
    watchdog = Watchdog(end_through(loop, on_failure))

    def consumer() -> SliceConsumer | None:
        return cast("SliceConsumer | None", app._consumer)  # pyright: ignore[reportPrivateUsage]

    watch_worker(watchdog, loop, app.flow, consumer, rates)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.close()


def _watch_topics(
    client: Mapping[str, Any],
    topic_ids: Mapping[str, str],
    on_failure: Callable[[BaseException], None],
) -> asyncio.Task[None]:
    def ended(task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            on_failure(error)

    task = asyncio.get_running_loop().create_task(watch_topics(client, topic_ids))
    task.add_done_callback(ended)
    return task


async def _serve(
    app: WorkerApp,
    settings: Settings,
    watchdog: Watchdog,
    stop: asyncio.Event,
    on_failure: Callable[[BaseException], None],
) -> None:
    health = None
    if settings.health_port is not None:

        def problems() -> list[str]:
            return [*app.flow.problems(), *watchdog.problems()]

        health = serve_health(settings.health_port, "worker", problems, watchdog.own_problems)
    await app.flow.start()
    _tune_collector()
    await app.start()
    try:
        await _first(app.flow.assigned.wait(), stop.wait(), app.wait_until_stopped())
        if app.flow.assigned.is_set():
            print("ready worker", flush=True)
        await _first(stop.wait(), app.wait_until_stopped())
        if app.crash_reason is not None:
            on_failure(app.crash_reason)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await app.flow.stop()
                await app.stop()
        if health is not None:
            health.close()


def _tune_collector() -> None:
    # A slice makes tens of thousands of tuples that die together and hold no cycles; collecting
    # after every 700 of them costs a third of the worker's time.
    gc.freeze()
    gc.set_threshold(GC_YOUNG_OBJECTS, 50, 100)


async def _first(*waiting: object) -> None:
    tasks = [asyncio.ensure_future(w) for w in waiting]  # type: ignore[arg-type]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
