"""Watching a sink: what of it must move, and for how long it may stand still."""

import asyncio
import logging
from collections.abc import Awaitable, Iterable

from aiokafka import AIOKafkaConsumer

from pipeline.fetch_pulse import answers_pulse, fetcher_pulse, group_pulse
from pipeline.ledger.sink_status import SinkStatus
from pipeline.liveness import STALL_S, Watchdog, end_through, loop_pulse

GIVE_UP_S = 120.0
"""How long the broker, the group or the event loop may stand still."""
LEDGER_GIVE_UP_S = 300.0
CANCEL_TIMEOUT_S = 5.0
CANCELS_MAX = 3

log = logging.getLogger(__name__)


def watch_sink(
    stalled: asyncio.Future[None], consumer: AIOKafkaConsumer, status: SinkStatus
) -> Watchdog:
    """The watchdog of a sink, not started yet; ``stalled`` fails when it gives up."""

    def fail(error: BaseException) -> None:
        if not stalled.done():
            stalled.set_exception(error)

    loop = asyncio.get_running_loop()
    dog = status.watchdog = Watchdog(end_through(loop, fail))
    dog.watch("loop", loop_pulse(loop, "the sink"), GIVE_UP_S)
    dog.watch("fetch", fetcher_pulse(consumer, "the sink"), STALL_S)
    dog.watch("broker", answers_pulse(consumer), GIVE_UP_S, restart_helps=False)
    dog.watch("group", group_pulse(consumer, "the sink's group"), GIVE_UP_S)
    dog.watch("ledger", status.look, LEDGER_GIVE_UP_S, restart_helps=False)
    return dog


async def until_first_ends(*work: Awaitable[None]) -> None:
    """Runs all of it until one has returned or failed, then cancels the others.

    What does not end although cancelled several times is left behind.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _ended(tasks)


async def _ended(tasks: Iterable[asyncio.Future[None]]) -> None:
    left = set(tasks)
    for _ in range(CANCELS_MAX):
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=CANCEL_TIMEOUT_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # was raised above, or comes too late to matter
        if not left:
            return
    log.error("%d parts of the sink do not end; it ends without them", len(left))
