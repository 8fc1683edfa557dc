"""A chaos run: parts, load and faults together, and what must hold when it has settled.

One seed decides load, faults and their order; what the operating system makes of them in time is
not repeatable.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

from pipeline.kafka import client_kwargs
from pipeline.ledger.client import ledger_address
from pipeline.ledger.migrate import migrate_address
from pipeline.settings import Settings, load_settings
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.chaos.brokers import Brokers
from tests.chaos.changes import PRICE_LEAD_S, Changes
from tests.chaos.checks import audit, compare_ids, compare_versions, differences
from tests.chaos.corrections import Corrections, compare_corrections
from tests.chaos.faults import STEADY_WORKERS, Fault, Scene, all_faults, in_turn
from tests.chaos.load import Load
from tests.chaos.report import PLANNED_MOVES, Done, Report, Unserved, count_exits
from tests.chaos.supervisor import Supervisor
from tests.chaos.watch import LedgerWatch, Progress, StreamWatch
from tests.processes import until

PARTITIONS = 4
RATE = 200
START_TIMEOUT_S = 300.0
SETTLE_LIMIT_S = 180.0
"""A fault after which nothing moves on for so long has found a hang."""
BREATH_S = (0.1, 1.0)
LOG_TAIL_BYTES = 256 * 1024
_SERVING = re.compile(rb"serving source partitions \[([\d, ]*)\]")


class Hung(AssertionError):
    """Something did not come back after a fault."""


@dataclass(frozen=True)
class Plan:
    """Faults of ``kinds`` (all without it) in an order of the seed, for ``seconds`` or once each.

    With ``overlap`` the faults of sink and ledger run beside those of workers and brokers.
    """

    seed: int
    brokers: int = 1
    seconds: float | None = None
    kinds: tuple[str, ...] = ()
    rate: int = RATE
    overlap: bool = True

    def lanes(self) -> list[Iterable[Fault]]:
        """The faults of each lane in their order."""
        faults = all_faults(self.brokers)
        if unknown := set(self.kinds) - {fault.kind for fault in faults}:
            raise ValueError(f"no such faults: {sorted(unknown)}")
        lanes: dict[str, list[Fault]] = {}
        for fault in faults:
            if not self.kinds or fault.kind in self.kinds:
                lanes.setdefault(fault.lane if self.overlap else "all", []).append(fault)
        found: list[Iterable[Fault]] = []
        for name, lane in lanes.items():
            rng = Random(f"{self.seed}:{name}")
            if self.seconds is None:
                found.append(rng.sample(lane, len(lane)))
            else:
                end_s = time.monotonic() + self.seconds
                found.append(takewhile(_before(end_s), in_turn(lane, rng)))
        return found


def _before(end_s: float) -> Callable[[object], bool]:
    return lambda _: time.monotonic() < end_s


class Engine:
    """One run. ``say`` hears of each fault."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._folder = folder
        self._topics = Topics()
        self._brokers = Brokers(folder / "kafka", plan.brokers)
        self._begun_s = time.monotonic()
        self._running: set[str] = set()
        self._begun = 0
        self.report = Report(plan.seed, plan.brokers)

    async def run(self) -> Report:
        """Everything from the first process to the last check; nothing is left running."""
        self._say(f"chaos: seed {self._plan.seed}, {self._plan.brokers} broker(s)")
        try:
            await self._brokers.start()
            self._prepare()
            try:
                await self._run()
            finally:
                self._parts.end_all()
        finally:
            self._brokers.kill()
        self.report.seconds = self._now_s()
        return self.report

    def _prepare(self) -> None:
        plan = self._plan
        self._environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": self._brokers.bootstrap,
            "TALLYPORT_DATA_DIR": str(self._folder / "data"),
            "TALLYPORT_LEDGER_PORT": "0",
            "TALLYPORT_PARTITIONS": str(PARTITIONS),
            "TALLYPORT_REPLICATION": str(min(3, plan.brokers)),
            "TALLYPORT_PRICE_LEAD_S": str(PRICE_LEAD_S),
        }
        self._settings: Settings = load_settings(self._environ)
        self._client: dict[str, Any] = client_kwargs(self._settings)
        self._parts = Supervisor(self._folder, self._environ)
        rng = Random(f"{plan.seed}:acts")
        self._scene = Scene(self._brokers, self._parts, self._topics, rng)
        self._stream = StreamWatch(self._client, self._topics, PARTITIONS)
        self._ledger = LedgerWatch(self._settings, PARTITIONS)
        load_rng = Random(f"{plan.seed}:load")
        self._load = Load(self._client, self._topics.events, PARTITIONS, plan.rate, load_rng)
        change_rng = Random(f"{plan.seed}:changes")
        self._changes = Changes(self._client, self._topics, change_rng)
        self._corrections = Corrections(
            self._client,
            self._topics.corrections,
            PARTITIONS,
            Random(f"{plan.seed}:corrections"),
            self._load.pick,
            lambda: self._changes.rates,
        )

    async def _run(self) -> None:
        parts, stream, ledger = self._parts, self._stream, self._ledger
        try:
            await _beside(self._run_watched(), parts.run(), stream.run(), ledger.run())
        except Hung as hung:
            self.report.problems.append(str(hung))
        self._gather()

    async def _run_watched(self) -> None:
        async with self._limit(START_TIMEOUT_S, "at the start"):
            await self._start()
        await _beside(
            self._run_loaded(), self._load.run(), self._changes.run(), self._corrections.run()
        )
        await self._check()

    async def _run_loaded(self) -> None:
        async with self._limit(SETTLE_LIMIT_S, "at the start"):
            await self._moving_on(*self._gauges)
        await asyncio.gather(*(self._lane(lane) for lane in self._plan.lanes()))
        self._load.finish()
        self._corrections.finish()
        async with self._limit(SETTLE_LIMIT_S, "sending the last records"):
            await until(lambda: self._load.is_done and self._corrections.is_done)

    @asynccontextmanager
    async def _limit(self, timeout_s: float, when: str) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError:
            raise Hung(f"nothing moved on for {timeout_s:.0f} s {when}; {self._state()}") from None

    async def _start(self) -> None:
        self._parts.add("ledger-server", "ledger-server")
        await create_or_check_topics(
            self._client, self._topics, PARTITIONS, min(3, self._plan.brokers)
        )
        await self._parts.wait_ready()
        await asyncio.to_thread(migrate_address, ledger_address(self._settings, write=True))
        for number in range(1, STEADY_WORKERS + 1):
            self._parts.add(f"worker-{number}", "worker")
        self._parts.add("sink-1", "sink")
        await self._parts.wait_ready()
        self._say(f"[{self._now_s():5.1f}] all parts take work")

    async def _lane(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            await self._do(fault)
            await asyncio.sleep(self._scene.rng.uniform(*BREATH_S))

    async def _do(self, fault: Fault) -> None:
        """One fault, and the wait until everything moves on again."""
        of_states, of_ledger = self._gauges
        progress = of_states if fault.lane == "stream" else of_ledger
        async with self._limit(2 * SETTLE_LIMIT_S, f"before {fault.kind}"):
            await self._moving_on(progress)
        owners, scene = self._owners(), replace(self._scene, kills=0)
        self._begun += 1
        begun, alone = self._begun, not self._running
        self._running.add(fault.lane)
        start_s, at_s = time.monotonic(), self._now_s()
        try:
            async with self._limit(fault.act_s + SETTLE_LIMIT_S, f"after {fault.kind}"):
                target = await fault.act(scene)
                await self._parts.wait_ready()
                await self._moving_on(*([progress] if self._plan.overlap else self._gauges))
        finally:
            self._running.discard(fault.lane)
        end_s = time.monotonic()
        done = Done(
            fault.kind,
            target,
            round(at_s, 1),
            scene.kills,
            round(progress.longest_standstill_s(start_s, end_s), 2),
            round(end_s - start_s, 2),
            alone and self._begun == begun,
        )
        self.report.faults.append(done)
        self._note_unserved(done, owners, start_s, end_s)
        self._say(
            f"[{at_s:5.1f}] {done.kind} ({target}): stood still for {done.standstill_s:.1f} s, "
            f"settled after {done.settled_s:.1f} s"
        )
        if self._plan.brokers > 1 and fault.lane == "stream":
            await self._brokers.in_sync()  # the next loss must leave a majority

    @property
    def _gauges(self) -> tuple[Progress, Progress]:
        """What states and ledger contain."""
        return self._stream.states, self._ledger.progress

    async def _moving_on(self, *gauges: Progress) -> None:
        """Returns once what happens from now on is contained, too."""
        now_ms = int(time.time() * 1000)
        await asyncio.gather(*(progress.past(now_ms) for progress in gauges))

    def _owners(self) -> dict[int, str]:
        """Which process serves each source partition, as the workers' logs say it."""
        owners: dict[int, str] = {}
        for slot in self._parts.of("worker"):
            if slot.process is None or not slot.log_file.exists():
                continue
            with slot.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - LOG_TAIL_BYTES))
                said = _SERVING.findall(file.read())
            for text in said[-1].split(b",") if said else ():
                if text.strip():
                    owners[int(text)] = f"{slot.name} {slot.process.pid}"
        return owners

    def _note_unserved(
        self, done: Done, before: dict[int, str], start_s: float, end_s: float
    ) -> None:
        if done.kind not in PLANNED_MOVES or not done.alone:
            return
        after = self._owners()
        for partition, progress in self._stream.served.items():
            gap_s = round(progress.longest_standstill_s(start_s, end_s), 2)
            moved = before.get(partition) != after.get(partition)
            self.report.unserved.append(Unserved(done.kind, partition, moved, gap_s))

    async def _check(self) -> None:
        await self._parts.wait_ready()
        self.report.audit = await audit(self._environ)
        self.report.problems += differences(self.report.audit)
        self.report.problems += await asyncio.to_thread(
            compare_ids, self._settings, self._load.produced
        )
        self.report.problems += await compare_corrections(
            self._client, self._topics, self._settings
        )
        self.report.problems += (await compare_versions(self._client, self._topics.state))[:5]
        for name, status in (await self._parts.stop_all()).items():
            if status != 0:
                self.report.problems.append(f"{name} ended with {status} at the end")

    def _gather(self) -> None:
        load = self._load
        self.report.sent = {
            "records acknowledged": load.acknowledged,
            "sends of unknown fate, sent again": load.resent,
            "different valid events": sum(map(len, load.produced.values())),
            "policies and rates written": self._changes.written,
            "corrections acknowledged": self._corrections.sent,
        }
        self.report.problems += self._scene.notes
        self.report.exits = count_exits(
            [(e.slot, e.status, e.error) for e in self._parts.exits if not e.expected]
        )

    def _state(self) -> str:
        """Every part's state and last error, for a report of a hang."""
        found: list[str] = []
        for slot in self._parts.slots.values():
            process = slot.process
            state = "down" if process is None or not slot.lives else "starting"
            if process is not None and slot.lives and process.is_ready:
                state = "ready"
            error = "" if process is None else process.error
            found.append(f"{slot.name} is {state} {error}".strip())
        return "; ".join(found)

    def _now_s(self) -> float:
        return time.monotonic() - self._begun_s


async def _beside(body: Coroutine[Any, Any, None], *work: Coroutine[Any, Any, None]) -> None:
    """Runs ``work`` beside ``body``; its first error ends the body, its end does not."""
    main = asyncio.create_task(body)
    tasks = [main, *(asyncio.create_task(one) for one in work)]
    pending = set(tasks)
    try:
        while not main.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
