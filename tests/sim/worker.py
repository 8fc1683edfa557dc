"""One worker process: the shipped stages, on the in-memory log, fed as Faust feeds them.

What ``pipeline.wiring`` and Faust do around ``pipeline.stream.flow`` is done here instead:
membership, fetching, slices in queues, release and assign at a rebalance, the end of the process
on the first error. Everything from ``Flow`` inwards is the code that ships.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any

from aiokafka.errors import OffsetOutOfRangeError
from faust.types import TP

from pipeline.core.book import Book, BookContent
from pipeline.core.errors import Refused
from pipeline.settings import Settings
from pipeline.stream.clock import BrokerClock
from pipeline.stream.context import StreamContext
from pipeline.stream.flow import Flow
from pipeline.stream.rate_log import RateTail
from pipeline.stream.topics import Topics
from pipeline.stream.transport import FetchState, Slice
from tests.sim.network import Client
from tests.sim.virtual_loop import Process
from tests.sim.world import World

FETCH_WAIT_S = 0.1
FETCH_RECORDS = 500
QUEUED_SLICES = 8
PAST_SLICES = 6
MARK_BYTES = 40
"""A partial of this size or less is a mark and changes nothing."""
PRICE_LEAD_S = 2
STOP_TIMEOUT_S = 25.0
TOPICS = Topics("")
EPOCH = 1
FREE_PROVIDER = "speaches"


@cache
def book() -> Book:
    """A built-in book that lists one free provider and nothing else."""
    return Book(BookContent("simulated", (), (FREE_PROVIDER,)))


@cache
def settings(partitions: int) -> Settings:
    """The settings of every simulated worker."""
    return Settings(
        kafka_bootstrap="simulated:9092", partitions=partitions, price_lead_s=PRICE_LEAD_S
    )


class SimulatedWorker:
    """``ended`` says how the process ended: ``killed``, ``stopped`` or the error's text."""

    def __init__(
        self, world: World, name: str, on_ended: Callable[["SimulatedWorker"], None]
    ) -> None:
        self.world = world
        self._on_ended = on_ended
        self.process: Process = world.loop.start_process(name)
        self.ended: str | None = None
        self.error: BaseException | None = None
        self.drop: dict[str, int] = {}
        self.flow: Flow | None = None
        self._flowing = False
        self._resumed = asyncio.Event()
        self._assignment: list[TP] = []
        self._generation = -1
        self._recover = asyncio.Event()
        self._positions: dict[TP, int] = {}
        self._fetched: dict[TP, FetchState] = {}
        self._past = {
            topic: deque[Slice](maxlen=PAST_SLICES) for topic in (TOPICS.events, TOPICS.partials)
        }
        self._queues = {
            topic: asyncio.Queue[Slice](QUEUED_SLICES) for topic in (TOPICS.events, TOPICS.partials)
        }
        self._failure: asyncio.Future[BaseException] = world.loop.create_future()
        self._stop = asyncio.Event()
        world.loop.spawn(self.process, self._main())

    # -- what a test may do to it ---------------------------------------------------

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.alive:
            self.ended = "killed"
            self.world.kill(self.process)
            self._on_ended(self)

    def stop(self) -> None:
        """SIGTERM."""
        self._stop.set()

    def deliver_again(self, topic: str, number: int) -> None:
        """Old slices come once more, as those do that were fetched before a seek."""
        if not self._flowing:
            return
        queue = self._queues[topic]
        for piece in list(self._past[topic])[:number]:
            if piece.tp in self._positions and not queue.full():
                queue.put_nowait(piece)
                self.world.hit(f"stale-slice:{topic}")

    # -- the process ---------------------------------------------------

    async def _main(self) -> None:
        try:
            await self._serve()
            self.ended = self.ended or "stopped"
        except Exception as error:
            self.ended = self.ended or f"{type(error).__name__}: {error}"
            self.error = error
        self.world.groups["worker"].leave(self)
        self.world.loop.kill(self.process)
        self._on_ended(self)

    async def _serve(self) -> None:
        client = {"simulation": self.world}
        partitions = self.world.knobs.partitions
        rates = RateTail(client, TOPICS.rates, book(), lead_s=PRICE_LEAD_S)
        await rates.start()
        context = StreamContext(
            settings(partitions), client, TOPICS, partitions, EPOCH, rates, BrokerClock()
        )
        self.flow = Flow(context, self._seek, self._fetched.get, self._on_failure)
        await self.flow.start()
        loop = asyncio.get_running_loop()
        tasks = [
            loop.create_task(work)
            for work in (
                self._keep_recovering(),
                self._keep_fetching(),
                self._run_agent(TOPICS.events),
                self._run_agent(TOPICS.partials),
            )
        ]
        self.world.groups["worker"].join(self, [TOPICS.events, TOPICS.partials])
        stop = loop.create_task(self._stop.wait())
        await asyncio.wait([stop, self._failure], return_when=asyncio.FIRST_COMPLETED)
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await self.flow.stop()
        for task in tasks:
            task.cancel()
        await rates.stop()
        if self._failure.done():
            raise self._failure.result()

    def _on_failure(self, error: BaseException) -> None:
        if not self._failure.done():
            self._failure.set_result(error)

    # -- Faust's part ---------------------------------------------------

    async def on_revoked(self) -> None:
        self._flowing = False
        self._resumed.clear()
        for queue in self._queues.values():
            while not queue.empty():
                queue.get_nowait()
                self.world.hit("dropped-at-rebalance")
        if self.flow is not None:
            self.world.note_stop()
            await self.flow.release()

    async def on_assigned(self, tps: list[tuple[str, int]], generation: int) -> None:
        self._assignment = [TP(*tp) for tp in tps]
        self._generation = generation
        self._positions = {}
        self._recover.set()

    async def _keep_recovering(self) -> None:
        while True:
            await self._recover.wait()
            self._recover.clear()
            generation = self._generation
            assert self.flow is not None
            try:
                await self.flow.assign(set(self._assignment))
            except Exception as error:
                self._on_failure(error)
                return
            if generation != self._generation:
                continue
            positions = self.flow.positions()
            self._positions = {tp: positions[tp] for tp in self._assignment if tp in positions}
            self._flowing = True
            self._resumed.set()

    async def _seek(self, topic: str, partition: int, offset: int) -> None:
        await asyncio.sleep(0)
        if TP(topic, partition) in self._assignment:
            self._positions[TP(topic, partition)] = offset
            self.world.hit("sought-back")

    async def _keep_fetching(self) -> None:
        client = Client(self.world.network, self.process)
        while True:
            await self._resumed.wait()
            positions, generation = dict(self._positions), self._generation
            if not positions:
                await asyncio.sleep(FETCH_WAIT_S)
                continue
            asked_at_s = self.world.loop.now_s
            answer = await self.world.fetch(
                client, positions, FETCH_WAIT_S, FETCH_RECORDS, committed=True
            )
            for tp, fetched in answer.items():
                if self._positions.get(tp) != positions[tp]:
                    continue  # sought, or revoked, while the fetch was under way
                if isinstance(fetched, OffsetOutOfRangeError):
                    self._on_failure(Refused(f"simulated: {tp} lacks offset {positions[tp]}"))
                    return
                self._positions[tp] = fetched.position
                self._fetched[tp] = FetchState(fetched.highwater, fetched.stable, asked_at_s)
                piece = Slice(tp, positions[tp], fetched.position, fetched.records)
                if piece.next_position != piece.position:
                    await self._hand_over(piece, generation)

    async def _hand_over(self, piece: Slice, generation: int) -> None:
        topic = piece.tp.topic
        if self.drop.get(topic, 0) > 0:
            self.drop[topic] -= 1
            self.world.hit("dropped-slice")
            return
        if self._flowing and generation == self._generation:
            if any(len(record.value or b"") > MARK_BYTES for record in piece.records):
                self._past[topic].append(piece)
            await self._queues[topic].put(piece)

    async def _run_agent(self, topic: str) -> None:
        assert self.flow is not None
        take: Any = self.flow.on_events if topic == TOPICS.events else self.flow.on_partials
        try:
            while True:
                await take(await self._queues[topic].get())
        except Exception as error:
            self._on_failure(error)
