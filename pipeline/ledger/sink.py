"""The ledger sink: priced blocks from Kafka into ClickHouse, each row exactly once.

The ledger itself is the sink's state. Where reading goes on is what the last manifest says, never
what Kafka's consumer group has committed. One round:

1. Collect blocks of the assigned partitions. Each must join the one before it, end to end.
2. Mark the days of their rows, so that rollups of them no longer count.
3. Insert their rows, one insert for each month. A part appears whole or not at all.
4. Insert one manifest for each source partition, in one insert: from here on the rows count.
5. Commit the offsets to Kafka. This only tells others how far the sink is.

While 2 to 5 of a round are under way, 1 of the next goes on, and its rows become columns; its
step 2 waits for the last 5.

A crash after 1, 2 or 5 changes nothing. After 3, or in its middle, rows lie above the last
manifest: they are looked up on assignment and skipped, and if one were inserted again it would
replace itself. After 4, reading goes on behind the blocks. When an insert fails, nobody knows
whether it was carried out, so it is never resent: the positions are read again from the ledger.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from pipeline import faults, metrics
from pipeline.core.blocks import PricedBlock, hold_block
from pipeline.core.errors import CorruptRecord, Refused, TallyportError
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.block_runs import Run
from pipeline.ledger.client import LedgerDatabaseMissing, LedgerError, LedgerLoginRefused
from pipeline.ledger.intake import Intake, Verdict, first_offset_to_read
from pipeline.ledger.log_reading import read_log
from pipeline.ledger.manifests import LogEpoch
from pipeline.ledger.recorder import RegisterRecorder
from pipeline.ledger.rolling import rolling_up
from pipeline.ledger.sink_status import SinkStatus
from pipeline.ledger.sink_watch import until_first_ends, watch_sink
from pipeline.ledger.writer import Holding, LedgerWriter
from pipeline.settings import Settings
from pipeline.stream.topic_identity import watch_topics
from pipeline.stream.topics import Topics

INSERT_INTERVAL_S = 0.5
"""At most this many seconds of rows wait; a lone row goes out at once."""
INSERT_MAX_ROWS = 50_000
INSERT_MAX_BYTES = 32 * 1024 * 1024
IDLE_WAIT_S = 0.2
POLL_MAX_BLOCKS = 16
FETCH_MIN_BYTES = 256 * 1024
FETCH_MAX_WAIT_MS = 100
"""A worker's small flushes are fetched some at a time: one fetch for each would cost the broker and
this process more than the rows in it."""
FETCH_MAX_BYTES = 9 * 1024 * 1024
"""Somewhat above the largest block, 8 MiB."""

FAILURES_MAX = 12
"""So many failures in a row end the process; a round that succeeds starts the count again."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 20.0
LAST_ROUND_TIMEOUT_S = 15.0

_log = logging.getLogger(__name__)


async def run_sink(
    settings: Settings,
    stop: asyncio.Event,
    on_ready: Callable[[], None],
    status: SinkStatus | None = None,
    beside: Callable[[Callable[[], bool]], Awaitable[None]] | None = None,
) -> None:
    """Runs until ``stop`` is set; calls ``on_ready`` once, when the first positions are read.

    ``beside`` runs as long; it is told how to ask whether this is the sink, of all, to do it.
    Raises ``LedgerError`` when ClickHouse keeps failing, ``Refused`` when Kafka and ledger do not
    belong together or blocks are missing, ``CorruptRecord`` for a block that cannot be trusted.
    """
    await check_kafka(settings)
    topics = Topics(settings.topic_prefix)
    kafka = client_kwargs(settings)
    writer = LedgerWriter(settings)
    consumer = AIOKafkaConsumer(
        **kafka,
        group_id=topics.sink_group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_min_bytes=FETCH_MIN_BYTES,
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
        max_partition_fetch_bytes=FETCH_MAX_BYTES,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=500,
        rebalance_timeout_ms=10_000,
    )
    status = status or SinkStatus()
    sink = _Sink(kafka, consumer, writer, topics, on_ready, status)
    stalled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    watchdog = watch_sink(stalled, consumer, status)
    try:
        await consumer.start()
        consumer.subscribe([topics.priced], listener=sink)
        watchdog.start()
        with rolling_up(settings, sink.holds_first_partition):
            await until_first_ends(
                sink.run(stop),
                sink.watch_topics(),
                RegisterRecorder(settings, kafka).run(),
                *([] if beside is None else [beside(sink.holds_first_partition)]),
                stalled,
            )
    except KafkaError as error:
        raise _kafka_failed(error) from error
    finally:
        watchdog.close()
        sink.close()
        await consumer.stop()


class _Sink(ConsumerRebalanceListener):
    """The state of one sink process; everything but the writer's calls runs on the event loop."""

    def __init__(
        self,
        kafka: dict[str, Any],
        consumer: AIOKafkaConsumer,
        writer: LedgerWriter,
        topics: Topics,
        on_ready: Callable[[], None],
        status: SinkStatus,
    ) -> None:
        self._kafka = kafka
        self._consumer = consumer
        self._writer = writer
        self._topics = topics
        self._log: LogEpoch | None = None
        self._first_log: asyncio.Future[LogEpoch] = asyncio.get_running_loop().create_future()
        self._on_ready: Callable[[], None] | None = on_ready
        self._status = status
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._columns = ThreadPoolExecutor(max_workers=1, thread_name_prefix="columns")
        self._intakes: dict[TopicPartition, Intake] = {}
        self._joined = False
        self._settled = False
        self._failures = 0
        self._waiting_since: float | None = None
        self._last_round = 0.0
        self._writing: asyncio.Task[None] | None = None
        self._under_way: dict[int, int] = {}  # blocks that are being written, by partition

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._turn()
            except IllegalStateError as error:
                _log.info("the partitions have moved meanwhile: %s", error)
                self._forget()
            except (LedgerError, KafkaError) as error:
                await self._back_off(error, stop)
        try:
            await asyncio.wait_for(self._write_rest(), LAST_ROUND_TIMEOUT_S)
        except (LedgerError, KafkaError, TimeoutError) as error:
            _log.warning("the last insert failed, the next start repeats it: %s", error)

    def holds_first_partition(self) -> bool:
        """Whether this is the sink that does what one of all sinks should do."""
        return any(tp.partition == 0 for tp in self._intakes)

    def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
        for thread in (self._thread, self._columns):
            thread.shutdown(wait=False, cancel_futures=True)
        self._writer.close()

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._forget()

    def on_partitions_assigned(self, assigned: Any) -> None:
        # Nothing is read before the ledger has said where to go on.
        self._consumer.pause(*assigned)
        self._joined = True
        self._forget()

    def _forget(self) -> None:
        self._intakes = {}
        self._under_way = {}
        self._settled = False
        self._waiting_since = None

    async def _turn(self) -> None:
        if self._joined and not self._settled:
            self._status.doing = "it reads its positions from the ledger"
            await self._settle()
            self._status.doing = ""
        batches = await self._consumer.getmany(
            timeout_ms=int(self._wait_s() * 1000), max_records=POLL_MAX_BLOCKS
        )
        for tp, records in batches.items():
            await self._collect(tp, records)
        if self._writing is not None and self._writing.done():
            await self._written()
        if self._waiting_since is not None and self._writing is None and self._wait_s() <= 0:
            await self._start_round()
        await self._note_progress()

    def _wait_s(self) -> float:
        if self._waiting_since is None or self._writing is not None:
            return IDLE_WAIT_S
        due = max(self._waiting_since, self._last_round + INSERT_INTERVAL_S)
        return max(0.0, due - monotonic())

    async def _settle(self) -> None:
        """Reads the positions of what is assigned, and starts reading there."""
        await self._written()
        assigned = set(self._consumer.assignment())
        firsts = await self._consumer.beginning_offsets(assigned) if assigned else {}
        sources = (self._topics.events, self._topics.resolved)
        partitions = sorted(tp.partition for tp in assigned)
        holdings = await self._in_thread(self._thread, self._writer.holdings, sources, partitions)
        # Asked for last: a sink that slept in between would take what another one has written
        # meanwhile for blocks that Kafka lost.
        ends = await self._consumer.end_offsets(assigned) if assigned else {}
        await self._learn_log()
        if assigned != self._consumer.assignment():
            return
        intakes = {
            tp: self._intake(tp, holdings[tp.partition], firsts[tp], ends[tp]) for tp in assigned
        }
        for tp, intake in intakes.items():
            self._consumer.seek(tp, intake.priced_next_offset)
        self._consumer.resume(*assigned)
        self._intakes = intakes
        self._settled = True
        self._status.is_ready = True
        if self._on_ready is not None:
            self._on_ready()
            self._on_ready = None

    def _intake(self, tp: TopicPartition, holding: Holding, first: int, end: int) -> Intake:
        name = f"{tp.topic} partition {tp.partition}"
        epoch = None if self._log is None else self._log.epoch
        start, lost_before = first_offset_to_read(name, holding.positions, epoch, first, end)
        return Intake(
            tp.topic, tp.partition, start, dict(holding.positions), holding.known, lost_before
        )

    async def _collect(self, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        """Step 1. Records of a partition that was given away meanwhile are dropped."""
        for record in records:
            intake = self._intakes.get(tp)
            if intake is None:
                return
            value = record.value or b""
            try:
                block = hold_block(value)
            except CorruptRecord as error:
                where = f"{tp.topic} partition {tp.partition} offset {record.offset}"
                raise CorruptRecord(f"{where}: {error}") from error
            if self._log is None:
                await self._learn_log()
            try:
                self._check_epoch(block)
                verdict = intake.offer(block, record.offset, len(value))
            except Refused:
                metrics.SINK_HOLES.inc()
                raise
            if verdict is Verdict.GAP:
                self._consumer.seek(tp, intake.priced_next_offset)
                return
            if verdict is Verdict.TAKE and self._waiting_since is None:
                self._waiting_since = monotonic()
            if self._is_full():
                await self._start_round()

    async def _learn_log(self) -> None:
        """Which log this is, as soon as a worker has begun it; the ledger takes only its own."""
        log = await read_log(self._kafka, self._topics.epoch)
        if log is not None:
            await self._in_thread(self._thread, self._writer.join, log)
            if not self._first_log.done():
                self._first_log.set_result(log)
        self._log = log

    async def watch_topics(self) -> None:
        """Raises ``Refused`` when the topic of blocks is not the one that the log began with."""
        log = await self._first_log
        recorded = {name: id_ for name, id_ in log.topic_ids if name == self._topics.priced}
        await watch_topics(self._kafka, recorded)

    def _check_epoch(self, block: PricedBlock) -> None:
        if self._log is None or block.epoch != self._log.epoch:
            known = "none" if self._log is None else self._log.epoch
            raise Refused(
                f"{self._topics.priced} partition {block.partition} has a block of log epoch "
                f"{block.epoch}, but {self._topics.epoch} says {known}; the topics do not belong "
                "together"
            )

    def _is_full(self) -> bool:
        rows = sum(intake.taken_rows for intake in self._intakes.values())
        size_bytes = sum(intake.taken_bytes for intake in self._intakes.values())
        return rows >= INSERT_MAX_ROWS or size_bytes >= INSERT_MAX_BYTES

    async def _start_round(self) -> None:
        """Begins steps 2 to 5 with what was collected, once those of the round before are done."""
        intakes = self._intakes
        runs: list[Run] = []
        for tp, intake in intakes.items():
            if blocks := intake.take_all():
                unwritten = [intake.without_known_rows(block) for block in blocks]
                runs.append(Run(tp.partition, intake.priced_next_offset, blocks, unwritten))
        self._waiting_since = None
        entries = await self._in_thread(self._columns, self._writer.entries_of, runs)
        await self._written()
        if runs and self._intakes is intakes:  # else the partitions have moved meanwhile
            self._under_way = {run.priced_partition: len(run.blocks) for run in runs}
            self._writing = asyncio.ensure_future(self._write(runs, entries))

    async def _written(self) -> None:
        """Waits for the round under way, if any; raises what went wrong in it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing
            self._under_way = {}

    async def _write_rest(self) -> None:
        await self._start_round()
        await self._written()

    async def _write(self, runs: list[Run], entries: pa.Table | None) -> None:
        """Steps 2 to 5."""
        self._status.doing = f"it writes {sum(len(run.blocks) for run in runs)} blocks"
        rows = await self._in_thread(self._thread, self._writer.write, runs, entries)
        self._status.doing = ""
        self._last_round = monotonic()
        self._failures = 0
        metrics.SINK_ROWS.inc(rows)
        self._status.note_round(rows)
        await self._commit(runs)

    async def _commit(self, runs: list[Run]) -> None:
        """Step 5."""
        faults.point("sink-before-commit")
        priced = self._topics.priced
        offsets = {TopicPartition(priced, r.priced_partition): r.priced_next_offset for r in runs}
        try:
            await self._consumer.commit(offsets)
        except (CommitFailedError, IllegalStateError) as error:
            _log.info("offsets not committed, the partitions have moved: %s", error)
        faults.point("sink-after-commit")

    async def _note_progress(self) -> None:
        for tp in self._intakes:
            if (end := self._consumer.last_stable_offset(tp)) is None:
                continue
            waiting = len(self._intakes[tp].taken) + self._under_way.get(tp.partition, 0)
            lag = max(0, end - await self._consumer.position(tp)) + waiting
            self._status.lag[tp.partition] = lag
            metrics.SINK_LAG.labels(str(tp.partition)).set(lag)

    async def _back_off(self, error: Exception, stop: asyncio.Event) -> None:
        """Waits before the positions are read again; raises when it is no use."""
        writing, self._writing = self._writing, None
        if writing is not None:  # what failed was something else; the writer is still in use
            await asyncio.wait([writing])
            if not writing.cancelled() and (failed := writing.exception()) is not None:
                _log.warning("the round under way failed, too: %s", failed)
        started = self._on_ready is None
        if not started and isinstance(error, LedgerLoginRefused | LedgerDatabaseMissing):
            raise error
        self._failures += 1
        if self._failures > FAILURES_MAX:
            raise TallyportError(
                f"gave up after {FAILURES_MAX} failures in a row; the last one: {error}"
            ) from error
        wait_s = min(BACKOFF_FIRST_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
        _log.warning("%s; reading the positions again in %.1f s", error, wait_s)
        self._status.failures += 1
        self._status.doing = "it waits"
        self._status.trouble = str(error)
        self._writer.close()
        self._consumer.pause(*self._consumer.assignment())
        self._forget()
        try:
            await asyncio.wait_for(stop.wait(), wait_s)
        except TimeoutError:
            return

    async def _in_thread(
        self, thread: ThreadPoolExecutor, call: Callable[..., Any], *arguments: Any
    ) -> Any:
        return await asyncio.get_running_loop().run_in_executor(thread, call, *arguments)


def _kafka_failed(error: KafkaError) -> TallyportError:
    return TallyportError(f"Kafka: {str(error) or type(error).__name__}")
