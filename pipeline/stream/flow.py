"""The flow of one worker: the stages of the partitions it owns, in travel order.

    usage.events ─► PriceStage ─► tallyport.partials ─► MergeStage ─► budget.state

Faust's agents hand slices in; a rebalance calls ``release`` and then ``assign``. A stage that
fails ends the worker: its memory may know more than the log, and recovery is quick and exact.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.types import TP

from pipeline import metrics
from pipeline.core.partials import PARTIAL_VERSION, Partial, encode_partial
from pipeline.core.policies import Policy
from pipeline.stream.context import StreamContext
from pipeline.stream.merging import MergeStage
from pipeline.stream.policy_board import PolicyBoard
from pipeline.stream.pricing import Mark, PriceStage
from pipeline.stream.takeover import take_over
from pipeline.stream.transaction import MAX_BATCH_BYTES, FencedProducer, Record, send_records
from pipeline.stream.transport import FetchState, Slice

log = logging.getLogger(__name__)

MARK_INTERVAL_S = 0.25
REGISTRY_INTERVAL_S = 1.0
RELEASE_TIMEOUT_S = 20.0
PROBE_SOURCE = -1

Seek = Callable[[str, int, int], Awaitable[None]]
Fetched = Callable[[TP], FetchState | None]


class Flow:
    """Owns the stages, the publisher and the timers. ``on_failure`` hears of the first error."""

    def __init__(
        self, context: StreamContext, seek: Seek, fetched: Fetched, on_failure: Callable[..., None]
    ) -> None:
        self._context = context
        self._seek = seek
        self._fetched = fetched
        self._on_failure = on_failure
        self._publisher = AIOKafkaProducer(
            **context.client, acks="all", enable_idempotence=True, max_batch_size=MAX_BATCH_BYTES
        )
        self.board = PolicyBoard(
            context.client, context.topics, self._publisher, self._keeps_registry, self._on_policy
        )
        self.prices: dict[int, PriceStage] = {}
        self.merges: dict[int, MergeStage] = {}
        self._producers: list[FencedProducer] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._timers: list[asyncio.Task[None]] = []
        self.assigned = asyncio.Event()

    async def start(self) -> None:
        """Connects, learns the broker's time and reads every policy."""
        await self._publisher.start()
        await self._send_partials(0, [self._probe()])
        await self.board.start()
        self._timers = [
            self._spawn(self._keep_marking(), "marks"),
            self._spawn(self._keep_registry(), "registry"),
            self._spawn(self.board.tail.wait(), "policies"),
        ]

    async def stop(self) -> None:
        """Releases every partition and closes all connections."""
        await self.release()
        for timer in self._timers:
            timer.cancel()
        await asyncio.gather(*self._timers, return_exceptions=True)
        await self.board.stop()
        await self._publisher.stop()

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
        """Takes over what was assigned; returns when the tables are verified and serve."""
        await self.release()
        topics = self._context.topics
        sources = sorted(tp.partition for tp in assignment if tp.topic == topics.events)
        homes = sorted(tp.partition for tp in assignment if tp.topic == topics.partials)
        taken = await take_over(
            self._context, sources, homes, self.board, self._publisher, self._seek
        )
        self.merges = taken.merges
        self._catch_up_policies()
        for partition, (table, producer) in taken.sources.items():
            self._producers.append(producer)
            self.prices[partition] = PriceStage(
                self._context, table, producer, self._seek_events(partition), self._on_commit
            )
        stages: list[PriceStage | MergeStage] = [*self.prices.values(), *self.merges.values()]
        self._tasks = [self._spawn(stage.run(), type(stage).__name__) for stage in stages]
        log.info("serving source partitions %s and merge partitions %s", sources, homes)
        self.assigned.set()

    async def release(self) -> None:
        """Finishes the flushes that have begun and lets every partition go."""
        self.assigned.clear()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        for stage in (*self.prices.values(), *self.merges.values()):
            stage.inbox.close()
        if tasks:
            await asyncio.wait(tasks, timeout=RELEASE_TIMEOUT_S)
        producers, self._producers = self._producers, []
        await asyncio.gather(*(producer.close() for producer in producers), return_exceptions=True)
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

    def _seek_events(self, partition: int) -> Callable[[int], Awaitable[None]]:
        async def seek_partition(offset: int) -> None:
            await self._seek(self._context.topics.events, partition, offset)

        return seek_partition

    def _on_commit(self, partials: list[tuple[int, Partial]]) -> None:
        # What this process has just committed need not come back through the broker first.
        for home, partial in partials:
            merge = self.merges.get(home)
            if merge is not None:
                merge.offer_local(partial)

    def _on_policy(self, changed: Policy | str) -> None:
        for merge in self.merges.values():
            if isinstance(changed, Policy):
                merge.accounts.put_policy(changed)
            else:
                merge.accounts.delete_policy(changed)
            merge.wake()

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

    async def _keep_marking(self) -> None:
        """Tells every merge partition what each of our source partitions contains."""
        while True:
            await asyncio.sleep(MARK_INTERVAL_S)
            for stage in (*self.prices.values(), *self.merges.values()):
                await stage.inbox.retry_seek()
            marks = [self._mark(partition, stage) for partition, stage in self.prices.items()]
            if marks:
                homes = range(self._context.partitions)
                await asyncio.gather(*(self._send_partials(home, marks) for home in homes))

    def _mark(self, partition: int, stage: PriceStage) -> Partial:
        fetched = self._fetched(TP(self._context.topics.events, partition))
        mark: Mark = stage.mark(fetched)
        if fetched is not None:
            metrics.SOURCE_LAG.labels(partition).set(fetched.highwater - mark.next_offset)
        return Partial(
            PARTIAL_VERSION,
            self._context.epoch,
            mark.source,
            mark.flush,
            0,
            True,
            mark.next_offset,
            mark.as_of_ms,
            [],
        )

    def _probe(self) -> Partial:
        return Partial(PARTIAL_VERSION, self._context.epoch, PROBE_SOURCE, 0, 0, False, 0, 0, [])

    async def _send_partials(self, home: int, partials: list[Partial]) -> None:
        records = [Record(b"%d" % p.source, encode_partial(p)) for p in partials]
        topic = self._context.topics.partials
        for future, _ in await send_records(self._publisher, topic, home, records):
            metadata = await future
            if metadata.timestamp is not None:
                self._context.clock.observe(metadata.timestamp)
