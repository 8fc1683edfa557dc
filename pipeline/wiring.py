"""The composition root of the worker: settings become connections, stages and agents."""

import asyncio
import contextlib
import gc
import logging
import signal
import tempfile
import time
from pathlib import Path

import uvloop

from pipeline import metrics
from pipeline.core.book import builtin_book
from pipeline.core.errors import Refused, TallyportError
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import open_writer
from pipeline.ledger.manifests import known_epochs
from pipeline.settings import Settings
from pipeline.stream.app import WorkerApp, build_app
from pipeline.stream.clock import BrokerClock
from pipeline.stream.context import StreamContext
from pipeline.stream.epoch import begin_epoch, identities
from pipeline.stream.rate_log import RateTail
from pipeline.stream.topics import Topics, create_or_check
from pipeline.web.health import serve_health

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 25.0
GC_YOUNG_OBJECTS = 100_000


class WorkerFailed(TallyportError):
    """The worker cannot go on; what it had not committed is taken again by whoever follows."""


def run_worker(settings: Settings) -> int:
    """Runs the worker until SIGTERM or SIGINT; returns the exit status.

    Prints ``ready worker`` once its first assignment is served. Raises ``TallyportError`` when it
    refuses to start or had to stop.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings))


async def _run(settings: Settings) -> int:
    failure: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    def on_failure(error: BaseException) -> None:
        if not failure.done():
            failure.set_result(error)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await create_or_check(settings)
    rates = _rate_tail(settings)
    await rates.start()
    try:
        context = await _context(settings, rates)
        with tempfile.TemporaryDirectory(prefix="tallyport-worker-") as scratch:
            app = build_app(context, Path(scratch), on_failure)
            await _serve(app, settings, stop, failure)
    finally:
        await rates.stop()
    if failure.done():
        error = failure.result()
        raise error if isinstance(error, TallyportError) else WorkerFailed(f"{error!r}") from error
    return 0


def _rate_tail(settings: Settings) -> RateTail:
    return RateTail(
        client_kwargs(settings),
        Topics(settings.topic_prefix).rates,
        builtin_book(),
        lead_s=settings.price_lead_s,
        currency=settings.currency,
        on_change=lambda version: metrics.RATES_UNUSED.set(len(version.rates.ignored)),
    )


async def _context(settings: Settings, rates: RateTail) -> StreamContext:
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
    return StreamContext(settings, client, topics, partitions, epoch.epoch, rates, BrokerClock())


def _ledger_logs(settings: Settings) -> dict[int, str]:
    """The logs that the ledger has been written from: epoch → id."""
    with contextlib.closing(open_writer(settings)) as client:
        return {log_epoch.epoch: log_epoch.id for log_epoch in known_epochs(client)}


async def _serve(
    app: WorkerApp,
    settings: Settings,
    stop: asyncio.Event,
    failure: "asyncio.Future[BaseException]",
) -> None:
    health = None
    if settings.health_port is not None:
        health = serve_health(settings.health_port, probe=app.flow.problems)
    await app.flow.start()
    _tune_collector()
    await app.start()
    try:
        await _first(app.flow.assigned.wait(), stop.wait(), app.wait_until_stopped())
        if app.flow.assigned.is_set():
            print("ready worker", flush=True)
        await _first(stop.wait(), app.wait_until_stopped())
        if app.crash_reason is not None and not failure.done():
            failure.set_result(app.crash_reason)
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
