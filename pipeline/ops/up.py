"""``tallyport up``: run everything until Ctrl-C, SIGTERM or the end of a server."""

import asyncio
import contextlib
import signal
import sys

from pipeline.core.errors import TallyportError
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings


def run_up(settings: Settings) -> int:
    """Start everything, print the ready line, wait, stop everything; the exit status.

    Raises what ``Deployment`` raises; nothing is left running then.
    """
    return asyncio.run(_up(settings))


async def _up(settings: Settings) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    deployment = Deployment(settings)
    starting = asyncio.ensure_future(deployment.start())
    if not await _before(starting, stopping):
        return 0
    if deployment.restored is not None:
        print(f"tallyport: {deployment.restored.in_one_line()}", file=sys.stderr, flush=True)
    print(deployment.ready_line, flush=True)
    checking = asyncio.ensure_future(_audit_restored(deployment))
    try:
        await _before(asyncio.ensure_future(deployment.wait()), stopping)
    finally:
        checking.cancel()
        await asyncio.wait([checking])
        await deployment.stop()
    return 0


async def _audit_restored(deployment: Deployment) -> None:
    """After a restore, says whether everything agrees; what does not is no reason to stop."""
    if deployment.restored is None:
        return
    from pipeline.audit.run import run_audit

    try:
        report = await run_audit(deployment.settings)
        lines = [report.lines()[-1]] if report.ok else report.lines()
    except TallyportError as error:
        lines = [f"the audit after the restore failed: {error}"]
    for line in lines:
        print(f"tallyport: {line}", file=sys.stderr, flush=True)


async def _before(work: asyncio.Future[None], stopping: asyncio.Event) -> bool:
    """Whether ``work`` was done before the wish to stop; raises what it raised."""
    asked = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait([work, asked], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
            return True
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        return False
    finally:
        asked.cancel()
