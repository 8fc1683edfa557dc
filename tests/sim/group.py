"""A consumer group's coordinator: eager rebalances, sessions that expire, late members."""

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from tests.sim.virtual_loop import Process

if TYPE_CHECKING:
    from tests.sim.world import World

HEARTBEAT_S = 0.3


class Member(Protocol):
    """Whoever joins a group."""

    process: Process | None

    async def on_revoked(self) -> None:
        """Lets everything go; the rebalance waits for it."""

    async def on_assigned(self, tps: list[tuple[str, int]], generation: int) -> None:
        """Gets ``tps`` (topic, partition)."""


class Group:
    """``topics`` maps each topic of the group to its number of partitions."""

    def __init__(self, world: "World", topics: dict[str, int], session_s: float) -> None:
        self._world = world
        self._topics = topics
        self._session_s = session_s
        self._members: list[Member] = []
        self._known: list[Member] = []
        self._answers: set[int] = set()
        self._round = 0
        self._changed = asyncio.Event()
        self._progress = asyncio.Event()
        self.generation = 0
        self.assignment: dict[str, list[tuple[str, int]]] = {}
        world.loop.spawn_world(self._run())

    def join(self, member: Member, topics: list[str]) -> None:
        """Takes a member in at the next rebalance, which this begins."""
        assert set(topics) == set(self._topics)
        if member not in self._known:
            self._known.append(member)
        self._members.append(member)
        self._changed.set()
        self._progress.set()

    def leave(self, member: Member) -> None:
        """A member says goodbye, or is taken out."""
        if member in self._members:
            self._members.remove(member)
            self._changed.set()
            self._progress.set()

    def rebalance(self) -> None:
        """Begins a rebalance for no reason, as a lost heartbeat would."""
        self._changed.set()

    def is_current(self, member: Member, generation: int) -> bool:
        return member in self._members and generation == self.generation

    def owner_of(self, topic: str, partition: int) -> str | None:
        """The name of the process that the current generation gave the partition to."""
        for name, tps in self.assignment.items():
            if (topic, partition) in tps:
                return name
        return None

    def process_stopped(self, process: Process) -> None:
        """A member's process was killed or frozen: its heartbeats end now."""
        self._world.loop.world_later(self._session_s, self._end_session, process)

    def process_thawed(self, process: Process) -> None:
        """A frozen process goes on; its next heartbeat tells it whether it is still a member."""
        for member in self._known:
            if member.process is process and member not in self._members:
                delay_s = self._world.rng("group").random() * HEARTBEAT_S
                self._world.loop.world_later(delay_s, self._rejoin, member)

    def _end_session(self, process: Process) -> None:
        if process.running:
            return
        for member in list(self._members):
            if member.process is process:
                self.leave(member)

    def _rejoin(self, member: Member) -> None:
        process = member.process
        if member in self._members or process is None or not process.running:
            return

        async def come_back() -> None:
            await member.on_revoked()
            if member not in self._members:
                self.join(member, list(self._topics))

        self._spawn(member, come_back())

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._rebalance()

    async def _rebalance(self) -> None:
        self._answers = set()
        self._round += 1
        asked: set[int] = set()
        rng = self._world.rng("group")
        while True:
            for member in self._members:
                if id(member) not in asked:
                    asked.add(id(member))
                    delay_s = rng.random() * HEARTBEAT_S
                    self._world.loop.world_later(delay_s, self._ask, member, self._round)
            if all(id(member) in self._answers for member in self._members):
                break
            self._progress.clear()
            await self._progress.wait()
        self._changed.clear()
        self.generation += 1
        self._assign()

    def _ask(self, member: Member, asked_in: int) -> None:
        async def answer() -> None:
            if asked_in != self._round:
                return  # it was frozen when it was asked, and the group has gone on without it
            await member.on_revoked()
            if asked_in == self._round:
                self._answers.add(id(member))
                self._progress.set()

        self._spawn(member, answer())

    def _assign(self) -> None:
        places = [(t, p) for t, count in sorted(self._topics.items()) for p in range(count)]
        shares: list[list[tuple[str, int]]] = [[] for _ in self._members]
        self.assignment = {}
        for number, place in enumerate(places):
            if shares:
                shares[number % len(shares)].append(place)
        for member, share in zip(self._members, shares, strict=True):
            if member.process is not None:
                self.assignment[member.process.name] = share
            self._spawn(member, member.on_assigned(share, self.generation))

    def _spawn(self, member: Member, work: Coroutine[Any, Any, None]) -> None:
        if member.process is None:
            raise ValueError("simulated: a member belongs to a process")
        self._world.loop.spawn(member.process, work)
