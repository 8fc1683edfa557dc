"""Long work that an administrator starts over HTTP: one run at a time, in a process of its own.

The command line does the work, with low priority, so that checks and streams are answered as ever.
It is tied to this process and may be started again after whatever ended it: what it has done it
does not do twice. Who ran what stays in the log of changes; a dry run leaves nothing there:

    1 begun  an entry says who starts what; without it nothing is started
    2 run    the command does the work
    3 ended  a second entry says how it ended, and with what sums

A run whose first entry has no second one ended with its API process, or is still going on.
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
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec
from aiokafka.errors import KafkaError

from pipeline.core.errors import TallyportError
from pipeline.core.windows import format_ms
from pipeline.faults import point
from pipeline.ops.background import begin, in_background, report_in
from pipeline.settings import Settings
from pipeline.web.problems import Problem

KEPT: Final = 20
"""So many runs are remembered, the running one among them."""
DRY_RUN_TIMEOUT_S: Final = 600.0
RUN_TIMEOUT_S: Final = 3600.0
STOP_TIMEOUT_S: Final = 5.0
NOTE_TIMEOUT_S: Final = 15.0
MAX_PRINTED_BYTES: Final = 2 * 1024 * 1024
_SHOWN_CHARS: Final = 500
_READ_BYTES: Final = 64 * 1024
_PROGRESS = re.compile(rb"[a-z ]+: ([0-9]{1,18})(?: of ([0-9]{1,18}))?")

log = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "stopped"]
Command = Callable[[bool], Sequence[str]]
"""The arguments of the command line, by whether nothing is to be written."""
Body = dict[str, Any]
Note = Callable[[str, str, Body | None, Body], Awaitable[None]]
"""Writes an entry of the log of changes: who, of which run, before and after. Raises
``TallyportError``."""
_SUMS: Final = ("sent", "cost_before", "cost_after", "cost_delta")


class Work(NamedTuple):
    """What is to be done; ``ports`` are those that it may touch, None for any."""

    kind: str
    selection: dict[str, Any]
    command: Command
    ports: frozenset[str] | None


class Ending(NamedTuple):
    """How a run ended."""

    state: State
    problem: str | None = None


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

    def key(self) -> str:
        """What the log of changes calls it."""
        return f"{self.work.kind}:{self.id}"

    def entry(self, ending: Ending) -> Body:
        """What the log of changes says of it: how it stands, what was chosen, what came of it."""
        ports = self.work.ports
        chosen = {**self.work.selection, "ports": None if ports is None else sorted(ports)}
        if ending.state == "running":
            return {"state": ending.state, **chosen}
        result = self.result or {}
        of_all = {**result.get("total", {}), "sent": result.get("sent")}
        sums = {name: of_all[name] for name in _SUMS if of_all.get(name) is not None}
        return {"state": ending.state, **chosen, **sums, "problem": ending.problem}


class Runs:
    """The runs of this API process, newest last; ``note`` writes to the log of changes."""

    def __init__(self, settings: Settings, note: Note) -> None:
        self._note = note
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
        """Until it has ended; one that is cancelled was stopped."""
        ending = Ending("stopped")
        try:
            ending = await (self._attempt(run) if run.dry_run else self._noted(run))
        finally:
            run.state, run.problem = ending
            run.ended_ms = time.time_ns() // 1_000_000
            log.info("%s of %s: %s", run.work.kind, run.started_by, run.state)

    async def _noted(self, run: Run) -> Ending:
        if obstacle := await self._tell(run, None):  # 1
            return Ending("failed", f"nothing was started: {obstacle}")
        point("run-begun")
        ending = Ending("stopped")
        try:
            ending = await self._attempt(run)  # 2
        finally:
            point("run-carried-out")
            if obstacle := await self._tell(run, ending):  # 3
                log.warning("the end of %s is not in the log of changes: %s", run.key(), obstacle)
        return ending

    async def _tell(self, run: Run, ending: Ending | None) -> str | None:
        """Notes that a run began, or how it ended; why that could not be done."""
        begun = run.entry(Ending("running"))
        before, after = (None, begun) if ending is None else (begun, run.entry(ending))
        try:
            async with asyncio.timeout(NOTE_TIMEOUT_S):
                await self._note(run.started_by, run.key(), before, after)
        except TimeoutError:
            return f"the log of changes did not take it within {NOTE_TIMEOUT_S:.0f} s"
        except (TallyportError, KafkaError) as error:
            return str(error)
        return None

    async def _attempt(self, run: Run) -> Ending:
        try:
            async with asyncio.timeout(DRY_RUN_TIMEOUT_S if run.dry_run else RUN_TIMEOUT_S):
                return await self._run(run)
        except TimeoutError:
            return Ending(
                "failed", "it took too long and was ended; choose less, or start it again"
            )
        except Exception as error:
            log.exception("a run failed")
            return Ending("failed", f"it could not be started: {error}")

    async def _run(self, run: Run) -> Ending:
        command = in_background(*run.work.command(run.dry_run))
        process = await begin(command, self._environ)
        try:
            printed, said = await asyncio.gather(_printed(process), _follow(process, run))
            status = await process.wait()
        finally:
            await _ended(process)
        run.result = report_in(printed)
        problem = None if status == 0 else said or f"it ended with status {status}"
        return Ending("failed" if run.result is None else "done", problem)


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
