"""Parts that are started again whenever they end, as systemd or Kubernetes would do it."""

import asyncio
import itertools
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import POLL_S, PartProcess, until

RESTART_PAUSE_S = 0.3
AGAIN_PAUSE_S = 1.0
STOP_TIMEOUT_S = 120.0


@dataclass
class Exit:
    """One end of a process: ``error`` is its last line of error."""

    slot: str
    status: int
    error: str
    expected: bool


@dataclass
class Slot:
    """A part that shall run; ``fault`` is the point its next process is armed with, ``killed`` the
    last one that got SIGKILL."""

    name: str
    part: str
    log_file: Path
    process: PartProcess | None = None
    fault: str = ""
    end_expected: bool = False
    killed: PartProcess | None = None
    paused: bool = False
    start_at_s: float = 0.0
    last_start_s: float = 0.0

    @property
    def lives(self) -> bool:
        """Whether its process runs, also as a paused one."""
        return self.process is not None and self.process.exit_status() is None


@dataclass
class Supervisor:
    """Owns the processes of all parts. ``environ`` holds their settings."""

    folder: Path
    environ: Mapping[str, str]
    slots: dict[str, Slot] = field(default_factory=dict[str, Slot])
    exits: list[Exit] = field(default_factory=list[Exit])
    stopping: bool = False

    def add(self, name: str, part: str) -> Slot:
        """A further part, to be started with the next look."""
        self.slots[name] = Slot(name, part, self.folder / "logs" / f"{name}.log")
        return self.slots[name]

    def free_name(self, part: str) -> str:
        """A name that no part has or had."""
        for number in itertools.count(1):
            name = f"{part}-{number}"
            if not (self.folder / "logs" / f"{name}.log").exists() and name not in self.slots:
                return name
        raise AssertionError

    def of(self, part: str) -> list[Slot]:
        """The slots of one part."""
        return [slot for slot in self.slots.values() if slot.part == part]

    async def run(self) -> None:
        """Starts what is to run and is not, until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(POLL_S)

    def look(self) -> None:
        """Notes what has ended, starts what is due."""
        now_s = time.monotonic()
        for slot in self.slots.values():
            if slot.process is not None and slot.process.exit_status() is not None:
                self._note_end(slot, now_s)
            if slot.process is None and now_s >= slot.start_at_s and not self.stopping:
                slot.process = PartProcess(slot.part, slot.log_file, self.environ, slot.fault)
                slot.last_start_s, slot.fault, slot.paused = now_s, "", False

    def kill(self, slot: Slot) -> bool:
        """SIGKILL; False when there was nothing to kill."""
        if not slot.lives or slot.process is None:
            return False
        slot.end_expected, slot.killed = True, slot.process
        slot.process.send(signal.SIGKILL)
        return True

    async def stop(self, slot: Slot) -> int | None:
        """A clean stop; the exit status, None when it did not run, or was killed meanwhile by a
        fault of the other lane. It is started again."""
        if not slot.lives or slot.process is None:
            return None
        slot.end_expected = True
        process, was_starting = slot.process, not slot.process.is_ready
        status = await asyncio.to_thread(process.stop, STOP_TIMEOUT_S)
        if status == -signal.SIGKILL and slot.killed is process:
            return None
        # So early that it did not listen to signals yet.
        return 0 if was_starting and status == -signal.SIGTERM else status

    async def remove(self, slot: Slot) -> int | None:
        """A clean stop for good."""
        del self.slots[slot.name]
        status = await self.stop(slot)
        if slot.process is not None and status is not None:
            self._add_exit(slot, slot.process, status)
        return status

    def is_ready(self) -> bool:
        """Whether every part runs and takes work."""
        return all(
            slot.process is not None
            and slot.process.exit_status() is None
            and slot.process.is_ready
            and not slot.paused
            for slot in self.slots.values()
        )

    async def wait_ready(self) -> None:
        """Returns once everything takes work."""
        await until(self.is_ready)

    async def stop_all(self) -> dict[str, int | None]:
        """A clean stop of every part but the ledger server, then of that; statuses by name."""
        self.stopping = True
        last = [slot for slot in self.slots.values() if slot.part == "ledger-server"]
        first = [slot for slot in self.slots.values() if slot not in last]
        statuses: dict[str, int | None] = {}
        for group in (first, last):
            ended = await asyncio.gather(*(self.stop(slot) for slot in group))
            statuses |= {slot.name: status for slot, status in zip(group, ended, strict=True)}
        return statuses

    def end_all(self) -> None:
        """SIGKILL to everything, paused or not."""
        self.stopping = True
        for slot in self.slots.values():
            if slot.process is not None:
                slot.process.kill()

    def _note_end(self, slot: Slot, now_s: float) -> None:
        process = slot.process
        assert process is not None
        status = process.exit_status() or 0
        self._add_exit(slot, process, status)
        if status > 0 and not slot.end_expected:
            # Another fault ended it before it came to its point; the next one may have armed it.
            slot.fault = slot.fault or process.fault
        quickly = now_s - slot.last_start_s < 5 and status > 0
        slot.start_at_s = now_s + (AGAIN_PAUSE_S if quickly else RESTART_PAUSE_S)
        slot.process, slot.end_expected = None, False

    def _add_exit(self, slot: Slot, process: PartProcess, status: int) -> None:
        error = "" if status == 0 else process.error
        armed = status == -signal.SIGKILL and bool(process.fault)
        self.exits.append(Exit(slot.name, status, error, slot.end_expected or armed))
