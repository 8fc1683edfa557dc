"""aiokafka's producer and consumer, as far as the project uses them, on the in-memory log.

They are constructed like the originals; the connection argument ``simulation`` says which log and
process they belong to.
"""

import asyncio
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiokafka.errors import (
    CommitFailedError,
    ConcurrentTransactions,
    IllegalOperation,
    IllegalStateError,
    OffsetOutOfRangeError,
)
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import TopicPartition

from tests.sim.log import ABORTED, COMMITTED, Draft, Entry, Log
from tests.sim.network import Client
from tests.sim.world import World

FETCH_RECORDS = 500
RECORD_OVERHEAD_BYTES = 30


class Acknowledged(NamedTuple):
    """aiokafka's ``RecordMetadata``, as far as it is looked at."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int


class Batch:
    """aiokafka's ``BatchBuilder``."""

    def __init__(self, limit_bytes: int, now_ms: int) -> None:
        self._limit_bytes = limit_bytes
        self._now_ms = now_ms
        self._size_bytes = 0
        self.drafts: list[Draft] = []

    def append(
        self, *, timestamp: int | None, key: bytes | None, value: bytes | None, headers: Any = ()
    ) -> object | None:
        size = RECORD_OVERHEAD_BYTES + len(key or b"") + len(value or b"")
        size += sum(len(name) + len(content or b"") for name, content in headers)
        if self.drafts and self._size_bytes + size > self._limit_bytes:
            return None
        self._size_bytes += size
        stamp = self._now_ms if timestamp is None else timestamp
        self.drafts.append(Draft(key, value, tuple(headers), stamp))
        return self

    def close(self) -> None:
        """Nothing more is appended."""

    def record_count(self) -> int:
        return len(self.drafts)

    def size(self) -> int:
        return self._size_bytes


class TransactionManager:
    """aiokafka's ``TransactionManager``, as far as the worker asks it."""

    def __init__(self, producer: "SimulatedProducer") -> None:
        self._producer = producer

    @property
    def state(self) -> TransactionState:
        if self._producer.failure is not None:
            return TransactionState.FATAL_ERROR
        if self._producer.is_in_transaction:
            return TransactionState.IN_TRANSACTION
        return TransactionState.READY

    async def wait_for_transaction_end(self) -> None:
        if self._producer.failure is not None:
            raise self._producer.failure

    def is_in_transaction(self) -> bool:
        return self.state is TransactionState.IN_TRANSACTION

    def maybe_add_partition_to_txn(self, tp: TopicPartition) -> None:
        self._producer.register(tp)


class SimulatedProducer:
    """``AIOKafkaProducer``."""

    def __init__(
        self,
        *,
        simulation: World,
        transactional_id: str | None = None,
        transaction_timeout_ms: int = 60_000,
        request_timeout_ms: int = 40_000,
        max_batch_size: int = 16_384,
        **_: Any,
    ) -> None:
        self._world = simulation
        self._log: Log = simulation.log
        self._process = simulation.current_process()
        self._client = Client(simulation.network, self._process)
        self._name = transactional_id
        self._timeout_s = request_timeout_ms / 1000
        self._transaction_timeout_s = transaction_timeout_ms / 1000
        self._max_batch_bytes = max_batch_size
        self._epoch = -1
        self.is_in_transaction = False
        self._has_begun = False
        self.failure: Exception | None = None
        self._under_way: list[asyncio.Future[Any]] = []
        self._to_register: list[TopicPartition] = []
        self._registering: asyncio.Future[None] | None = None
        self._txn_manager = TransactionManager(self)

    async def start(self) -> None:
        if self._name is not None:
            name, timeout_s = self._name, self._transaction_timeout_s
            self._epoch = await self._client.request(
                "init", lambda: self._log.init_producer(name, timeout_s)
            )
        else:
            await self._client.request("connect", lambda: None)

    async def stop(self) -> None:
        waiting = [future for future in self._under_way if not future.done()]
        if waiting:
            await asyncio.wait(waiting)

    async def __aenter__(self) -> "SimulatedProducer":
        await self.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.stop()

    # -- transactions ---------------------------------------------------

    @property
    def _identity(self) -> tuple[str, int]:
        return self._name or "", self._epoch

    async def begin_transaction(self) -> None:
        if self._name is None or self.is_in_transaction:
            raise IllegalOperation("simulated: not ready for a transaction")
        self.is_in_transaction, self._has_begun = True, False

    async def commit_transaction(self) -> None:
        await self._end(COMMITTED)

    async def abort_transaction(self) -> None:
        self.failure = None
        await self._end(ABORTED)

    async def _end(self, outcome: str) -> None:
        if self._registering is not None:
            await asyncio.wait([self._registering])
        if self.failure is not None:
            raise self.failure
        self.is_in_transaction = False
        if self._has_begun:
            identity = self._identity
            await self._client.request(
                "commit", lambda: self._log.end_transaction(identity, outcome), self._timeout_s
            )

    async def send_offsets_to_transaction(
        self, offsets: Mapping[TopicPartition, Any], group_id: str
    ) -> None:
        if not self.is_in_transaction:
            raise IllegalOperation("simulated: not in a transaction")
        await self._client.request("offsets", self._begin_at_log, self._timeout_s)

    def register(self, tp: TopicPartition) -> None:
        """Adds a partition to the transaction in the background, as aiokafka's sender does."""
        if not self._to_register:
            asyncio.get_running_loop().call_soon(self._send_registrations)
        self._to_register.append(tp)

    def _send_registrations(self) -> None:
        tps, self._to_register = self._to_register, []

        def execute() -> None:
            self._begin_at_log()
            for tp in tps:
                self._log.register(self._identity, tp.topic, tp.partition)

        self._registering = self._client.request("register", execute, self._timeout_s)
        self._under_way.append(self._registering)
        self._registering.add_done_callback(self._note_failure)

    def _begin_at_log(self) -> None:
        if self._has_begun:
            return
        self._log.begin(self._identity)
        self._has_begun = True
        transaction = self._log.ids[self._name or ""].current
        if transaction is not None:
            loop = self._world.loop
            loop.world_later(self._transaction_timeout_s, self._log.expire, transaction)

    # -- sending ---------------------------------------------------

    def create_batch(self) -> Batch:
        return Batch(self._max_batch_bytes, self._world.wall_ms(self._process))

    async def send_batch(
        self, batch: Batch, topic: str, *, partition: int
    ) -> "asyncio.Future[Acknowledged]":
        return self._send(topic, partition, batch.drafts)

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Iterable[tuple[str, bytes]] | None = None,
    ) -> "asyncio.Future[Acknowledged]":
        assert partition is not None, "simulated: the project always names the partition"
        now_ms = self._world.wall_ms(self._process) if timestamp_ms is None else timestamp_ms
        return self._send(topic, partition, [Draft(key, value, tuple(headers or ()), now_ms)])

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> Acknowledged:
        return await (await self.send(*args, **kwargs))

    def _send(
        self, topic: str, partition: int, drafts: list[Draft]
    ) -> "asyncio.Future[Acknowledged]":
        if self._name is not None and not self.is_in_transaction:
            raise IllegalOperation("simulated: not in a transaction")
        writer = "" if self._process is None else self._process.name

        def execute() -> Acknowledged:
            producer = None
            if self._name is not None:
                self._begin_at_log()
                producer = self._identity
            offset, timestamp = self._log.append(topic, partition, drafts, writer, producer)
            appends_time = self._log.partition(topic, partition).config.log_append_time
            return Acknowledged(topic, partition, offset, timestamp, int(appends_time))

        future = self._client.request("produce", execute, self._timeout_s)
        self._under_way = [one for one in self._under_way if not one.done()]
        self._under_way.append(future)
        future.add_done_callback(self._note_failure)
        return future

    def _note_failure(self, future: "asyncio.Future[Acknowledged]") -> None:
        error = None if future.cancelled() else future.exception()
        if isinstance(error, Exception) and self._name is not None:
            self.failure = error


class SimulatedConsumer:
    """``AIOKafkaConsumer``."""

    def __init__(
        self,
        *topics: str,
        simulation: World,
        group_id: str | None = None,
        isolation_level: str = "read_uncommitted",
        auto_offset_reset: str = "latest",
        fetch_max_wait_ms: int = 500,
        **_: Any,
    ) -> None:
        self._world = simulation
        self._log: Log = simulation.log
        self.process = simulation.current_process()
        self._connection = Client(simulation.network, self.process)
        self._committed = isolation_level == "read_committed"
        self._reset = auto_offset_reset
        self._max_wait_s = fetch_max_wait_ms / 1000
        self._group_id = group_id
        self._assigned: dict[TopicPartition, int | None] = {}
        self._paused: set[TopicPartition] = set()
        self._stable: dict[TopicPartition, int] = {}
        self._highwater: dict[TopicPartition, int] = {}
        self._polled_ms: dict[TopicPartition, int] = {}
        self._listener: Any = None
        self._generation = -1
        self._changes = 0
        self._client = SimpleNamespace(fetch_all_metadata=self._fetch_all_metadata)

    async def start(self) -> None:
        await self._connection.request("connect", lambda: None)

    async def stop(self) -> None:
        if self._listener is not None:
            self._world.groups[self._group_id or ""].leave(self)
            self._listener = None

    async def __aenter__(self) -> "SimulatedConsumer":
        await self.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.stop()

    # -- what there is ---------------------------------------------------

    async def _fetch_all_metadata(self) -> Any:
        await self._connection.request("metadata", lambda: None)
        return SimpleNamespace(
            partitions_for_topic=lambda topic: set(self._log.topics.get(topic, ())) or None
        )

    async def topics(self) -> set[str]:
        return set(await self._connection.request("metadata", lambda: list(self._log.topics)))

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return await self._offsets(tps, lambda partition: partition.start)

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        if self._committed:
            return await self._offsets(tps, lambda partition: partition.last_stable)
        return await self._offsets(tps, lambda partition: partition.end)

    async def _offsets(self, tps: Iterable[TopicPartition], of: Any) -> dict[TopicPartition, int]:
        tps = list(tps)
        return await self._connection.request(
            "offsets",
            lambda: {tp: of(self._log.partition(tp.topic, tp.partition)) for tp in tps},
        )

    # -- assignment ---------------------------------------------------

    def assign(self, tps: Iterable[TopicPartition]) -> None:
        self._assigned = dict.fromkeys(tps)
        self._changes += 1

    def subscribe(self, topics: Iterable[str], *, listener: Any) -> None:
        self._listener = listener
        self._world.groups[self._group_id or ""].join(self, list(topics))

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._assigned)

    async def on_revoked(self) -> None:
        """A rebalance begins."""
        await _awaited(self._listener.on_partitions_revoked(self.assignment()))

    async def on_assigned(self, tps: list[tuple[str, int]], generation: int) -> None:
        """A rebalance has given this member ``tps``."""
        self._generation = generation
        self._paused.clear()
        self.assign([TopicPartition(*tp) for tp in tps])
        await _awaited(self._listener.on_partitions_assigned(self.assignment()))

    def pause(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._check_assigned(tp)
        self._paused.update(tps)

    def resume(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._check_assigned(tp)
        self._paused.difference_update(tps)
        self._changes += 1

    def _check_assigned(self, tp: TopicPartition) -> None:
        if tp not in self._assigned:
            raise IllegalStateError(f"simulated: {tp} is not assigned")

    # -- positions ---------------------------------------------------

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._check_assigned(tp)
        self._assigned[tp] = offset
        self._changes += 1

    async def seek_to_beginning(self, *tps: TopicPartition) -> None:
        for tp, offset in (await self.beginning_offsets(tps)).items():
            self.seek(tp, offset)

    async def position(self, tp: TopicPartition) -> int:
        self._check_assigned(tp)
        position = self._assigned[tp]
        if position is None:
            ask = self.end_offsets if self._reset == "latest" else self.beginning_offsets
            position = (await ask([tp]))[tp]
            self.seek(tp, position)
        return position

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        group = self._world.groups[self._group_id or ""]
        generation = self._generation

        def execute() -> None:
            if not group.is_current(self, generation):
                raise CommitFailedError("simulated: the group has gone on")

        await self._connection.request("group-commit", execute)

    def last_stable_offset(self, tp: TopicPartition) -> int | None:
        self._check_assigned(tp)
        return self._stable.get(tp)

    def highwater(self, tp: TopicPartition) -> int | None:
        self._check_assigned(tp)
        return self._highwater.get(tp)

    def last_poll_timestamp(self, tp: TopicPartition) -> int | None:
        self._check_assigned(tp)
        return self._polled_ms.get(tp)

    # -- fetching ---------------------------------------------------

    async def getmany(
        self, *tps: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[Entry]]:
        loop = self._world.loop
        deadline_s = loop.now_s + timeout_ms / 1000
        while True:
            wanted = [tp for tp in (tps or self._assigned) if tp not in self._paused]
            for tp in wanted:
                if tp in self._assigned:
                    await self.position(tp)
            wait_s = min(self._max_wait_s, max(0.0, deadline_s - loop.now_s))
            found = await self._fetch(wanted, wait_s, max_records or FETCH_RECORDS)
            if found or loop.now_s >= deadline_s - 1e-9:
                return found

    async def _fetch(
        self, tps: list[TopicPartition], wait_s: float, limit: int
    ) -> dict[TopicPartition, list[Entry]]:
        changes = self._changes
        positions = {tp: at for tp in tps if (at := self._assigned.get(tp)) is not None}
        if not positions:
            await asyncio.sleep(wait_s)
            return {}
        answer = await self._world.fetch(
            self._connection, positions, wait_s, limit, committed=self._committed
        )
        if changes != self._changes:
            return {}  # positions have moved meanwhile, as for the real one
        records: dict[TopicPartition, list[Entry]] = {}
        for tp, fetched in answer.items():
            if isinstance(fetched, OffsetOutOfRangeError):
                self._out_of_range(tp, fetched)
                continue
            self._assigned[tp] = fetched.position
            self._stable[tp], self._highwater[tp] = fetched.stable, fetched.highwater
            self._polled_ms[tp] = self._world.wall_ms(self.process)
            if fetched.records:
                records[tp] = fetched.records
        return records

    def _out_of_range(self, tp: TopicPartition, error: OffsetOutOfRangeError) -> None:
        if self._reset == "none":
            raise error
        self._assigned[tp] = None


async def _awaited(answer: Any) -> None:
    if asyncio.iscoroutine(answer):
        await answer


__all__ = ["ConcurrentTransactions", "SimulatedConsumer", "SimulatedProducer"]
