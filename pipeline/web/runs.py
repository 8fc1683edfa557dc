"""Long work that an administrator starts over HTTP: one run at a time, in a process of its own.

The command line does the work, with low priority, so that checks and streams are answered as ever.
It is tied to this process and may be started again after whatever ended it: what it has done it
does not do twice.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
import uuid
from asyncio.subprocess import Process
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from pipeline.core.windows import format_ms
from pipeline.ops.background import begin, in_background, report_in
from pipeline.settings import Settings
from pipeline.web.problems import Problem

KEPT: Final = 20
"""So many runs are remembered, the running one among them."""
DRY_RUN_TIMEOUT_S: Final = 600.0
RUN_TIMEOUT_S: Final = 3600.0
STOP_TIMEOUT_S: Final = 5.0
MAX_PRINTED_BYTES: Final = 2 * 1024 * 1024
_SHOWN_CHARS: Final = 500
_READ_BYTES: Final = 64 * 1024
_PROGRESS = re.compile(rb"[a-z ]+: ([0-9]{1,18})(?: of ([0-9]{1,18}))?")

log = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "stopped"]
Command = Callable[[bool], Sequence[str]]
"""The arguments of the command line, by whether nothing is to be written."""


class Work(NamedTuple):
    """What is to be done; ``ports`` are those that it may touch, None for any."""

    kind: str
    selection: dict[str, Any]
    command: Command
    ports: frozenset[str] | None


class Run(msgspec.Struct):
    """One run; times are in ms."""

    id: str
    work: Work
    started_by: str
    dry_run: bool
    started_ms: int
    state: State = "running"
    ended_ms: int | None = None
    done: int = 0
    total: int | None = None
    result: dict[str, Any] | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the API shows it."""
        return {
            "id": self.id,
            "kind": self.work.kind,
            "dry_run": self.dry_run,
            "state": self.state,
            "selection": self.work.selection,
            "started_by": self.started_by,
            "started_at": format_ms(self.started_ms),
            "ended_at": None if self.ended_ms is None else format_ms(self.ended_ms),
            "progress": {"done": self.done, "total": self.total},
            "result": self.result,
            "problem": self.problem,
        }


class Runs:
    """The runs of this API process, newest last."""

    def __init__(self, settings: Settings) -> None:
        # Ids go to the command as UTF-8, whatever this process takes file names for.
        self._environ = {**os.environ, **settings.environ(), "PYTHONUTF8": "1"}
        self._runs: deque[Run] = deque(maxlen=KEPT)
        self._task: asyncio.Task[None] | None = None

    def all(self) -> list[Run]:
        """Those that are remembered, newest first."""
        return list(reversed(self._runs))

    def begin(self, work: Work, who: str, *, dry_run: bool) -> Run:
        """Starts a run. Raises ``Problem`` 409 while another one goes on."""
        if self._task is not None and not self._task.done():
            raise Problem(409, "another run goes on; one at a time")
        now_ms = time.time_ns() // 1_000_000
        run = Run(uuid.uuid4().hex, work, who, dry_run, now_ms)
        self._runs.append(run)
        log.info("%s%s began, started by %s", work.kind, " (dry run)" if dry_run else "", who)
        self._task = asyncio.create_task(self._carry_out(run))
        return run

    async def stop(self, run: Run) -> None:
        """Ends a run that goes on; returns when it has ended."""
        if run.state == "running" and self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Ends what goes on."""
        for run in self._runs:
            await self.stop(run)

    async def _carry_out(self, run: Run) -> None:
        try:
            async with asyncio.timeout(DRY_RUN_TIMEOUT_S if run.dry_run else RUN_TIMEOUT_S):
                await self._run(run)
        except TimeoutError:
            run.state = "failed"
            run.problem = "it took too long and was ended; choose less, or start it again"
        except asyncio.CancelledError:
            run.state = "stopped"
            raise
        except Exception as error:
            log.exception("a run failed")
            run.state, run.problem = "failed", f"it could not be started: {error}"
        finally:
            run.ended_ms = time.time_ns() // 1_000_000
            log.info("%s of %s: %s", run.work.kind, run.started_by, run.state)

    async def _run(self, run: Run) -> None:
        command = in_background(*run.work.command(run.dry_run))
        process = await begin(command, self._environ)
        try:
            printed, said = await asyncio.gather(_printed(process), _follow(process, run))
            status = await process.wait()
        finally:
            await _ended(process)
        run.result = report_in(printed)
        run.state = "failed" if run.result is None else "done"
        if status != 0:
            run.problem = said or f"it ended with status {status}"


async def _printed(process: Process) -> bytes:
    """What it prints; one that prints too much is ended."""
    assert process.stdout is not None
    found = bytearray()
    while part := await process.stdout.read(_READ_BYTES):
        found += part
        if len(found) > MAX_PRINTED_BYTES:
            process.kill()
            return b""
    return bytes(found)


async def _follow(process: Process, run: Run) -> str:
    """Notes its progress until it ends; what it said last beside that."""
    assert process.stderr is not None
    rest, said = b"", ""
    while part := await process.stderr.read(_READ_BYTES):
        *lines, rest = (rest + part)[-_READ_BYTES:].split(b"\n")
        for line in lines:
            found = _PROGRESS.fullmatch(line)
            if found is not None:
                run.done = int(found[1])
                run.total = None if found[2] is None else int(found[2])
            elif line.strip():
                said = line.decode("utf-8", "replace").strip()[:_SHOWN_CHARS]
    return said.removeprefix("tallyport: ")


async def _ended(process: Process) -> None:
    """Asks it to end where it has not, and kills it when it does not."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
