"""Parts of the pipeline in processes of their own, as an operator runs them.

Each part cannot outlive the tests (see ``pipeline.ops.tether``) and writes into a log file of its
own. Start them from the main thread.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.ops.child_process import ChildProcess, last_error

WAIT_S = 120.0
"""Generous: a busy machine takes its time, and only what fails waits for so long."""
POLL_S = 0.05
RETRY_BACKOFF_MS = 20
"""Of the tests' own Kafka clients."""


async def until(condition: Callable[[], bool], poll_s: float = POLL_S) -> None:
    """Returns once ``condition()`` holds."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(poll_s)


def peak_kib(pid: int) -> int:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1])


class PartProcess(ChildProcess):
    """``tallyport PART`` on the settings ``environ``; everything it prints goes to ``log_file``.

    ``fault`` arms a fault point, ``name:count`` (see ``pipeline.faults``).
    """

    def __init__(
        self, part: str, log_file: Path, environ: Mapping[str, str], fault: str = ""
    ) -> None:
        super().__init__(
            part,
            [sys.executable, "-m", "pipeline", *part.split()],
            log_file,
            {**os.environ, **environ, "FAULT_POINT": fault},
        )
        self.fault = fault
        self._was_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether it has printed its ready line."""
        self._was_ready = self._was_ready or self.ready_line() is not None
        return self._was_ready

    @property
    def error(self) -> str:
        """The last line it has written that tells of an error; empty without one."""
        return last_error(self.log_file, self._log_start)

    @property
    def printed(self) -> str:
        """What it has written to standard output and standard error."""
        return self.log_file.read_text("utf-8", "replace")

    async def wait_ready(self) -> None:
        """Returns once it takes work; fails when it ends before."""
        await self.wait_for(lambda: self.is_ready)

    async def ready_or_ended(self) -> None:
        """Waits for either: an armed fault point may lie on the way to readiness."""
        async with asyncio.timeout(WAIT_S):
            await until(lambda: self.is_ready or self.exit_status() is not None)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns once ``condition()`` holds; fails when the part ends before."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                assert self.exit_status() is None, f"{self.name} has ended: {self.printed}"
                await asyncio.sleep(POLL_S)

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        return await asyncio.to_thread(self.process.wait, WAIT_S)

    async def stopped(self) -> int:
        """SIGTERM; its exit status."""
        self.terminate()
        return await self.ended()

    async def killed(self) -> int:
        """SIGKILL, also to a paused one; its exit status."""
        self.send(signal.SIGKILL)
        return await self.ended()

    def pause(self) -> None:
        """SIGSTOP: it lives, holds its connections and does nothing."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send(signal.SIGCONT)
