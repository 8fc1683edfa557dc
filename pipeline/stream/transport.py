"""Faust's transport, handing over slices instead of single messages.

Stock Faust starts four asyncio tasks for each message (about 56 µs). Here a *slice*, a run of
records of one partition as the fetcher returned it, travels as one message. Each slice says from
which position to which it reaches, so that whoever takes it can tell a transaction marker or an
aborted batch (no record, but the position went on) from a slice that was dropped on the way.
"""

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import aiokafka
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import NoOffsetForPartitionError, OffsetOutOfRangeError
from aiokafka.structs import ConsumerRecord, TopicPartition
from faust.transport.drivers.aiokafka import (
    AIOKafkaConsumerThread,
    Consumer,
    Transport,
)
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from pipeline import fetched_records
from pipeline.core.record_columns import RecordColumns, joined
from pipeline.native.batches import batch_reader
from pipeline.stream.raw_batches import BatchOfRuns, RawBatches, Run, is_raw
from pipeline.stream.reader import out_of_range

fetched_records.install()

FETCH_MAX_WAIT_MS = 100
POLL_S = 0.2
MAX_FETCH_RUNS = 200
MAX_PARTITION_FETCH_BYTES = 1024 * 1024
COLUMNS_FROM_BYTES = 32 * 1024
"""Of less than this objects are made sooner than columns, and are handled sooner."""


Records = list[ConsumerRecord] | RecordColumns


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive records of one partition, from ``position`` up to ``next_position``."""

    tp: TP
    position: int
    next_position: int
    records: Records


@dataclass(frozen=True, slots=True)
class FetchState:
    """What the last answered fetch of a partition saw: the log's end, and how far it can be read.

    Between ``readable`` and ``highwater`` is what stands behind a transaction that is open, records
    that are acknowledged among it. ``asked_at_s`` (monotonic) is when it was asked for: an answer
    that waited in a socket while this process stood still does not speak of the time when it was
    read.
    """

    highwater: int
    readable: int
    asked_at_s: float


class SliceConsumerThread(AIOKafkaConsumerThread):
    """aiokafka's consumer on its own thread, configured by us rather than by Faust.

    ``_reached`` is the end of the last slice of each partition; only this thread touches it.
    """

    _reached: dict[TP, int]
    _fetch_states: dict[TP, FetchState]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reached = {}
        self._fetch_states = {}

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = RoundRobinPartitionAssignor
        return aiokafka.AIOKafkaConsumer(
            **cast("SliceTransport", transport).client,
            group_id=conf.id,
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=MAX_PARTITION_FETCH_BYTES,
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            max_poll_interval_ms=int((conf.broker_max_poll_interval or 300) * 1000),
            isolation_level="read_committed",
        )

    async def on_start(self) -> None:
        """Connects, and makes the fetcher hand over plain records and note when it asked."""
        await super().on_start()
        fetcher: Any = self._ensure_consumer()._fetcher  # pyright: ignore
        fetcher._records = _PlainResults(cast("SliceTransport", self.consumer.transport).columns)
        fetch = fetcher._proc_fetch_request

        async def fetch_and_note(assignment: Any, node_id: int, request: Any) -> Any:
            asked_at_s = time.monotonic()
            tps = [TP(topic, part[0]) for topic, parts in request.topics for part in parts]
            before = {tp: _timestamp(assignment, tp) for tp in tps}
            answer = await fetch(assignment, node_id, request)
            for tp in tps:
                if _timestamp(assignment, tp) != before[tp]:
                    state = assignment.state_value(tp)
                    readable = state.highwater if state.lso is None else state.lso
                    self._fetch_states[tp] = FetchState(state.highwater, readable, asked_at_s)
            return answer

        fetcher._proc_fetch_request = fetch_and_note

    async def _fetch_records(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        consumer: aiokafka.AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> Any:
        # Faust changes this set on another thread: when a partition is assigned, for one.
        active = frozenset(active_partitions or ())
        try:
            fetched = await super()._fetch_records(
                consumer,
                active,  # pyright: ignore[reportArgumentType]
                timeout=timeout,
                max_records=MAX_FETCH_RUNS,
            )
        except NoOffsetForPartitionError:
            return []  # assigned, but its table has not said yet where to start
        except OffsetOutOfRangeError as error:
            raise out_of_range(error, "this worker's table") from error
        # No await between the drain and here: positions belong to exactly these records.
        assignment = _assignment(consumer)
        if assignment is None:
            return []
        slices: list[Slice] = []
        for tp in active:
            state = assignment.state_value(tp)
            reached = self._reached.get(tp)
            if reached is None or state is None or not state.has_valid_position:
                continue
            records = one_behind_the_other(fetched.get(tp, ()))
            if records or state.position != reached:
                slices.append(Slice(tp, reached, state.position, records))
                self._reached[tp] = state.position
        return slices

    async def seek_table(self, tp: TP, offset: int) -> None:
        """Goes on at ``offset``; on the consumer's thread, so that no fetch overlaps it."""
        await self.call_thread(self._seek_table, tp, offset)

    async def _seek_table(self, tp: TP, offset: int) -> None:
        consumer = self._ensure_consumer()
        if tp in consumer.assignment():
            consumer.seek(TopicPartition(tp.topic, tp.partition), offset)
            self._reached[tp] = offset

    def _stopped_set(self) -> None:
        # A thread that has ended by itself has closed its loop, and nobody waits in it any more.
        with contextlib.suppress(RuntimeError):
            super()._stopped_set()

    def fetch_state(self, tp: TP) -> FetchState | None:
        """What is known of the partition's end; None before the first fetch."""
        return self._fetch_states.get(tp)


class _Runs:
    """A partition's part of a fetch whose batches hand over runs instead of records."""

    def __init__(self, fetched: Any) -> None:
        self._fetched = fetched
        self.has_next = fetched.has_next

    def next_batch(self) -> "BatchOfRuns":
        return BatchOfRuns(self._fetched.next_batch())


class _PlainRecords(fetched_records.TolerantRecords):
    """Hands over lists of records as the decoder made them.

    A record has offset, timestamp, key, value and headers; wrapping each in a ``ConsumerRecord``
    costs more than pricing it, and handing over each by itself as much as decoding it.
    """

    def _consumer_record(self, tp: Any, record: Any) -> Any:
        if not isinstance(record, Run):  # of a batch that was decoded once more
            return [record]
        # A fetch brings whole batches, whose first records may have been read before.
        after = self.next_fetch_offset
        if isinstance(record.records, RecordColumns):
            return record.records.from_offset(after)
        if record.records[0].offset >= after:
            return record.records
        return [one for one in record.records if one.offset >= after]


class _PlainResults(OrderedDict[Any, Any]):
    """The fetcher's results by partition; makes the records of each one plain, and those of
    topic ``columns`` columns where they can be and are many."""

    def __init__(self, columns: str) -> None:
        super().__init__()
        self._columns = columns
        self._reader = batch_reader()

    def __setitem__(self, tp: Any, result: Any) -> None:
        if isinstance(result, FetchResult):
            records: Any = result._partition_records  # pyright: ignore
            records.__class__ = _PlainRecords
            reader, data = self._reader, records._records.data
            is_large = tp.topic == self._columns and len(data) >= COLUMNS_FROM_BYTES
            if reader is not None and is_large and is_raw(data):
                records._records = RawBatches(data, reader, records.uncompressed)
            else:
                records._records = _Runs(records._records)
        super().__setitem__(tp, result)


def one_behind_the_other(runs: Sequence[Records]) -> Records:
    """The records of ``runs``; columns where all of them are."""
    columns = [run for run in runs if isinstance(run, RecordColumns)]
    if columns and len(columns) == len(runs):
        return joined(columns)
    return list(chain.from_iterable(runs))


def _timestamp(assignment: Any, tp: TP) -> int | None:
    """When the fetcher last learnt something of the partition (wall clock, ms)."""
    state = assignment.state_value(tp)
    return None if state is None else state.timestamp


def _assignment(consumer: aiokafka.AIOKafkaConsumer) -> Any:
    subscription: Any = consumer._subscription.subscription  # pyright: ignore
    return None if subscription is None else subscription.assignment


class SliceConsumer(Consumer):
    """Delivers slices; positions belong to the tables, so nothing is acked or committed here."""

    def _new_consumer_thread(self) -> AIOKafkaConsumerThread:
        return SliceConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def fetch_state(self, tp: TP) -> FetchState | None:
        """See ``SliceConsumerThread.fetch_state``."""
        return cast(SliceConsumerThread, self._thread).fetch_state(tp)

    @property
    def fetching(self) -> aiokafka.AIOKafkaConsumer | None:
        """aiokafka's consumer; None before its thread has made it."""
        return cast(SliceConsumerThread, self._thread)._consumer  # pyright: ignore

    @property
    def fetch_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the thread that fetches."""
        return self._thread.thread_loop

    async def perform_seek(self) -> None:
        """Seeks every assigned partition to the position of its table."""
        positions: Mapping[TP, int] = cast(Any, self.app).flow.positions()
        for tp in self.assignment():
            if tp in positions:
                await self.seek(tp, positions[tp])

    async def seek(self, partition: TP, offset: int) -> None:
        """Goes on reading ``partition`` at ``offset``."""
        await cast(SliceConsumerThread, self._thread).seek_table(partition, offset)

    async def commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Does nothing: offsets are committed inside each flush's transaction."""
        return False

    async def _drain_messages(self, fetcher: Any) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                fetched, _ = await self._wait_next_records(POLL_S)
                if fetched and self.flow_active:
                    await self._deliver(fetched)
                else:
                    await asyncio.sleep(0)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise
        except asyncio.CancelledError:
            if not self.app.should_stop:
                raise

    async def _deliver(self, fetched: Any) -> None:
        # One wait for all slices of a fetch: a wait each would be two tasks and a turn of a busy
        # loop each, and until they are delivered nothing more is fetched.
        await self.wait_first(self._hand_over(fetched), self.suspend_flow.wait())

    async def _hand_over(self, fetched: list[Slice]) -> None:
        # A slice that is dropped here is noticed by its table, which then seeks back.
        generation = self.app.consumer_generation_id
        for piece in fetched:
            if not self.flow_active or generation != self.app.consumer_generation_id:
                return
            await self.callback(_message(piece, generation))


def _message(piece: Slice, generation: int) -> ConsumerMessage:
    # The Conductor looks at topic, partition and value only; the schema hands the value through.
    return ConsumerMessage(
        piece.tp.topic,
        piece.tp.partition,
        piece.position,
        0.0,
        0,
        None,
        b"",
        cast(Any, piece),
        None,
        None,
        None,
        piece.tp,
        generation_id=generation,
    )


class SliceTransport(Transport):
    """``client`` holds aiokafka's connection arguments. Of topic ``columns`` slices have columns
    instead of records."""

    Consumer = SliceConsumer
    client: dict[str, Any]
    columns: str
