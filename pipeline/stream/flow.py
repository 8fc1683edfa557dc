"""The flow of one worker: the stages of the partitions it owns, in travel order.

    usage.events ─► PriceStage ─► tallyport.partials ─► MergeStage ─► budget.state
    tallyport.resolved ─┘

Faust's agents hand slices in; a rebalance calls ``release`` and then ``assign``. A stage that
fails ends the worker: its memory may know more than the log, and recovery is quick and exact.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.types import TP

from pipeline.core.errors import TallyportError
from pipeline.core.partials import PARTIAL_VERSION, Partial, encode_partial
from pipeline.core.policies import Policy
from pipeline.native.library import library
from pipeline.stream.context import StreamContext
from pipeline.stream.flush_loop import Fetched, FlushLoop
from pipeline.stream.merging import MergeStage
from pipeline.stream.policy_board import PolicyBoard
from pipeline.stream.pricing import PriceStage
from pipeline.stream.resolved_log import read_resolved
from pipeline.stream.takeover import Takeover, take_over
from pipeline.stream.topics import Topics
from pipeline.stream.transport import Slice
from pipeline.stream.turns import TurnProducer

log = logging.getLogger(__name__)

RESEEK_INTERVAL_S = 0.25
REGISTRY_INTERVAL_S = 1.0
RELEASE_TIMEOUT_S = 20.0
PROBE_SOURCE = -1

Seek = Callable[[str, int, int], Awaitable[None]]


class StillFlushing(TallyportError):
    """Partitions had to be let go, but their flush would not end; only the process can end it."""


class Flow:
    """Owns the stages, their flush loop and the timers. ``on_failure`` hears of the first error."""

    def __init__(
        self, context: StreamContext, seek: Seek, fetched: Fetched, on_failure: Callable[..., None]
    ) -> None:
        self._context = context
        self._seek = seek
        self.fetched = fetched
        self._on_failure = on_failure
        self._registrar = AIOKafkaProducer(**context.client, acks="all", enable_idempotence=True)
        self.board = PolicyBoard(
            context.client, context.topics, self._registrar, self._keeps_registry, self._on_policy
        )
        self.prices: dict[int, PriceStage] = {}
        self.merges: dict[int, MergeStage] = {}
        self._arrived = asyncio.Event()
        self._taking: asyncio.Task[Takeover] | None = None
        self._producer: TurnProducer | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._correcting: asyncio.Task[None] | None = None
        self.flush_loop: FlushLoop | None = None
        self._timers: list[asyncio.Task[None]] = []
        self.assigned = asyncio.Event()

    @property
    def topics(self) -> Topics:
        """The names of the topics this worker reads and writes."""
        return self._context.topics

    async def start(self) -> None:
        """Connects, learns the broker's time and reads every policy."""
        await self._registrar.start()
        await self._ask_time()
        await self.board.start()
        self._timers = [
            self._spawn(self._keep_seeking(), "seeks"),
            self._spawn(self._keep_registry(), "registry"),
            self._spawn(self.board.tail.wait(), "policies"),
        ]

    async def stop(self) -> None:
        """Releases every partition and closes all connections."""
        await self.release()
        if self._correcting is not None:
            await asyncio.wait([self._correcting], timeout=RELEASE_TIMEOUT_S)
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        await self.board.stop()
        await self._registrar.stop()

    def problems(self) -> list[str]:
        """Why this worker cannot take work right now, one line each."""
        return [] if self.assigned.is_set() else ["no partitions are assigned and recovered yet"]

    def positions(self) -> dict[TP, int]:
        """Where reading must go on, by topic and partition."""
        topics = self._context.topics
        return {
            **{TP(topics.events, p): stage.inbox.reached for p, stage in self.prices.items()},
            **{TP(topics.partials, p): stage.inbox.reached for p, stage in self.merges.items()},
        }

    async def assign(self, assignment: Iterable[TP]) -> None:
        """Takes over what was assigned; returns when the tables are verified and serve.

        Where the partitions are let go meanwhile it returns without having taken them.
        """
        await self.release()
        topics = self._context.topics
        sources = sorted(tp.partition for tp in assignment if tp.topic == topics.events)
        homes = sorted(tp.partition for tp in assignment if tp.topic == topics.partials)
        taken = await self._take_over(sources, homes)
        if taken is None:
            log.info("source partitions %s and merge partitions %s have moved on", sources, homes)
            return
        self._producer, self.prices, self.merges = taken.producer, taken.prices, taken.merges
        self._catch_up_policies()
        loop = FlushLoop(
            self._context,
            taken.producer,
            taken.prices,
            taken.merges,
            self._arrived,
            self.fetched,
        )
        self._flushing, self.flush_loop = self._spawn(loop.run(), "flushes"), loop
        self._correcting = self._read_corrections()
        way = "in Python: nothing was compiled" if library() is None else "by the compiled library"
        log.info("serving source partitions %s and merge partitions %s, %s", sources, homes, way)
        self.assigned.set()

    async def _take_over(self, sources: list[int], homes: list[int]) -> Takeover | None:
        """What was taken over; None where ``release`` was called in the midst of it.

        The next owner then shuts out whoever goes on, be it with an error of its own.
        """
        taking = self._taking = asyncio.get_running_loop().create_task(
            take_over(self._context, sources, homes, self.board, self._arrived, self._seek)
        )
        try:
            taken = await taking
        except (Exception, asyncio.CancelledError):
            if self._taking is taking:
                raise
            return None
        if self._taking is not taking:
            await taken.producer.close()
            return None
        self._taking = None
        return taken

    async def release(self) -> None:
        """Finishes the flush that has begun and lets every partition go."""
        self.assigned.clear()
        taking, self._taking = self._taking, None
        if taking is not None:
            taking.cancel()
            await asyncio.wait([taking], timeout=RELEASE_TIMEOUT_S)
        if self._correcting is not None:
            self._correcting.cancel()  # its inboxes are let go; it closes its connection by itself
        flushing, self._flushing = self._flushing, None
        self.flush_loop = None
        for stage in (*self.prices.values(), *self.merges.values()):
            stage.inbox.close()
        if flushing is not None:
            flushing.cancel()
            _, left = await asyncio.wait([flushing], timeout=RELEASE_TIMEOUT_S)
            if left:
                self._on_failure(StillFlushing(f"a flush took longer than {RELEASE_TIMEOUT_S} s"))
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()
        self.prices, self.merges = {}, {}

    async def on_events(self, piece: Slice) -> None:
        """Takes a slice of ``usage.events``."""
        stage = self.prices.get(piece.tp.partition)
        if stage is not None:
            await stage.inbox.offer(piece)

    async def on_partials(self, piece: Slice) -> None:
        """Takes a slice of the partials."""
        stage = self.merges.get(piece.tp.partition)
        if stage is not None:
            await stage.inbox.offer(piece)

    def _read_corrections(self) -> asyncio.Task[None] | None:
        inboxes = {partition: stage.corrections for partition, stage in self.prices.items()}
        if not inboxes:
            return None
        reading = read_resolved(self._context.client, self._context.topics.resolved, inboxes)
        return self._spawn(reading, "corrections")

    def _on_policy(self, changed: Policy | str) -> None:
        for merge in self.merges.values():
            if isinstance(changed, Policy):
                merge.accounts.put_policy(changed)
            else:
                merge.accounts.delete_policy(changed)
        self._arrived.set()

    def _catch_up_policies(self) -> None:
        """Gives new merges what ``_on_policy`` could not: changes while they were taken over."""
        in_force = {policy.key: policy for policy in self.board.policies()}
        for merge in self.merges.values():
            for policy in merge.accounts.policies():
                if policy.key not in in_force:
                    merge.accounts.delete_policy(policy.key)
            for policy in in_force.values():
                merge.accounts.put_policy(policy)

    def _keeps_registry(self) -> bool:
        return 0 in self.merges

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._on_failure(error)

    async def _keep_registry(self) -> None:
        while True:
            await asyncio.sleep(REGISTRY_INTERVAL_S)
            await self.board.keep_registry()

    async def _keep_seeking(self) -> None:
        while True:
            await asyncio.sleep(RESEEK_INTERVAL_S)
            topics = self._context.topics
            for topic, stages in ((topics.events, self.prices), (topics.partials, self.merges)):
                for partition, stage in list(stages.items()):
                    seen = self.fetched(TP(topic, partition))
                    await stage.inbox.look_for_missing(None if seen is None else seen.readable)

    async def _ask_time(self) -> None:
        """Learns the broker's time from a record without any cells."""
        probe = Partial(PARTIAL_VERSION, self._context.epoch, PROBE_SOURCE, 0, 0, False, 0, 0, [])
        sent = await self._registrar.send_and_wait(
            self._context.topics.partials,
            encode_partial(probe),
            key=b"%d" % PROBE_SOURCE,
            partition=0,
        )
        self._context.clock.observe(sent.timestamp)
