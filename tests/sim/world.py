"""Everything outside of the processes of one run: time, the network, the log, the groups.

A run is a function of its seed and its list of inputs: every choice that chance makes comes from a
generator that is named after what it is for, so that leaving out an input disturbs little else.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.structs import TopicPartition

from tests.sim.group import Group
from tests.sim.log import Entry, Log
from tests.sim.network import Client, Network, Request
from tests.sim.virtual_loop import CURRENT, Process, VirtualLoop


class Fetched(NamedTuple):
    """One partition's answer to a fetch."""

    records: list[Entry]
    position: int
    stable: int
    highwater: int


@dataclass(frozen=True)
class Knobs:
    """How this run's machinery behaves; drawn from the seed, part of the scenario."""

    seed: int
    start_ms: int
    partitions: int = 2
    latency_s: float = 0.003
    marker_s: float = 0.01
    slow_marker: float = 0.05
    cut: float = 0.3
    session_s: float = 1.5
    is_small: bool = False
    """Whether buffers, rings and batches are so small that each of them fills in a run."""


class World:
    """``hits`` counts what really happened, by name: the faults, and the ways a record may end."""

    active: "World | None" = None

    def __init__(self, knobs: Knobs) -> None:
        self.knobs = knobs
        self.hits: Counter[str] = Counter()
        self.loop = VirtualLoop()
        self._started_s = self.loop.now_s
        self._passed_ms = 0
        self.broker_skew_ms = 0
        self._rngs: dict[str, random.Random] = {}
        self.network = Network(self.loop, self.rng("network"), knobs.latency_s)
        self.network.on_fault = self.hit
        self.log = Log(self.broker_ms, self.loop.time, self._later)
        self.ledger: Any = None
        self.groups: dict[str, Group] = {}
        self.before_stop: list[Callable[[], None]] = []
        self.on_point_kill: Callable[[Process], None] = self.kill
        self._armed: dict[str, tuple[str, int, Callable[[], None] | None]] = {}

    def rng(self, name: str) -> random.Random:
        """The source of chance for one purpose."""
        found = self._rngs.get(name)
        if found is None:
            found = self._rngs[name] = random.Random(f"{self.knobs.seed}/{name}")
        return found

    def hit(self, name: str) -> None:
        self.hits[name] += 1

    # -- clocks ---------------------------------------------------

    def _true_ms(self) -> int:
        return (
            self.knobs.start_ms + self._passed_ms + int((self.loop.now_s - self._started_s) * 1e3)
        )

    def broker_ms(self) -> int:
        """The broker's clock."""
        return self._true_ms() + self.broker_skew_ms

    def wall_ms(self, process: Process | None) -> int:
        """The clock of the machine a process runs on."""
        return self._true_ms() + (0 if process is None else process.wall_skew_ms)

    def skip(self, duration_ms: int) -> None:
        """Every clock goes on by ``duration_ms`` at once, as if nothing had happened meanwhile."""
        self._passed_ms += duration_ms

    # -- processes ---------------------------------------------------

    def current_process(self) -> Process | None:
        return CURRENT.get()

    def kill(self, process: Process) -> None:
        self.note_stop()
        self.loop.kill(process)
        for group in self.groups.values():
            group.process_stopped(process)

    def freeze(self, process: Process) -> None:
        self.note_stop()
        self.loop.freeze(process)
        for group in self.groups.values():
            group.process_stopped(process)

    def thaw(self, process: Process) -> None:
        self.loop.thaw(process)
        for group in self.groups.values():
            group.process_thawed(process)

    def note_stop(self) -> None:
        """Some process is about to serve less than it does now."""
        for listener in self.before_stop:
            listener()

    @classmethod
    def current(cls) -> "World":
        """The world of the run that is going on."""
        assert cls.active is not None
        return cls.active

    def arm(
        self, process: Process, point: str, passes: int, instead: Callable[[], None] | None = None
    ) -> None:
        """The process dies when it comes to ``point`` for the ``passes``-th time from now.

        With ``instead`` that is done in place of it.
        """
        self._armed[process.name] = (point, passes, instead)

    def disarm(self) -> None:
        """Nobody dies at a point from now on."""
        self._armed.clear()

    def passes(self, process: Process, point: str) -> bool:
        """A process has come to a fault point; whether it dies there."""
        armed, left, instead = self._armed.get(process.name, ("", 0, None))
        if armed != point:
            return False
        self._armed[process.name] = (point, left - 1, instead)
        if left > 1:
            return False
        if instead is not None:
            del self._armed[process.name]
            self.hit(f"frozen-at-{point}")
            instead()
        return instead is None

    def kill_at_point(self, process: Process) -> None:
        """The process dies at the point that was armed."""
        self.hit(f"killed-at-{self._armed.pop(process.name)[0]}")
        self.on_point_kill(process)

    # -- the broker ---------------------------------------------------

    def _later(self, number: int, mark: Any) -> None:
        rng = self.rng("markers")
        delay_s = rng.random() * self.knobs.marker_s
        if rng.random() < self.knobs.slow_marker:
            delay_s += rng.random() * 0.4
        self.loop.world_later(delay_s, self.network.when_up, mark)

    def fetch(
        self,
        client: Client,
        positions: Mapping[TopicPartition, int],
        wait_s: float,
        limit: int,
        *,
        committed: bool,
    ) -> Any:
        """A future of the answers by partition; waits up to ``wait_s`` for the first record."""
        waiting = wait_s > 0
        rng = self.rng("cuts")

        def execute() -> Any:
            nonlocal waiting
            cut = rng.randint(1, 6) if rng.random() < self.knobs.cut else limit
            answer = self._read(positions, min(limit, cut), committed)
            if waiting and not answer:
                waiting = False
                self._wait(positions, wait_s, request)
                return Network.LATER
            # An answer speaks of every partition that was asked for, also where it brings nothing.
            return self._read(positions, min(limit, cut), committed, idle=True)

        request = client.prepare("fetch", execute)
        return client.send(request)

    def _read(
        self,
        positions: Mapping[TopicPartition, int],
        limit: int,
        committed: bool,
        idle: bool = False,
    ) -> dict[TopicPartition, Any]:
        answer: dict[TopicPartition, Any] = {}
        for tp, position in positions.items():
            partition = self.log.partition(tp.topic, tp.partition)
            try:
                records, after = partition.read(position, limit, committed=committed)
            except OffsetOutOfRangeError as error:
                answer[tp] = error
                continue
            if idle or after != position:
                answer[tp] = Fetched(records, after, partition.last_stable, partition.end)
        return answer

    def _wait(
        self, positions: Mapping[TopicPartition, int], wait_s: float, request: Request
    ) -> None:
        woken = False

        def wake() -> None:
            nonlocal woken
            if not woken:
                woken = True
                self.network.arrive(request)

        for tp in positions:
            self.log.partition(tp.topic, tp.partition).waiters.append(wake)
        self.loop.world_later(wait_s, wake)

    # -- groups ---------------------------------------------------

    def add_group(self, name: str, topics: dict[str, int]) -> None:
        self.groups[name] = Group(self, topics, self.knobs.session_s)
