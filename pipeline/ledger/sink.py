"""The ledger sink: priced blocks from Kafka into ClickHouse, each row exactly once.

The ledger itself is the sink's state. Where reading goes on is what the last manifest says, never
what Kafka's consumer group has committed. One round:

1. Collect blocks of the assigned partitions. Each must join the one before it, end to end.
2. Insert their rows, one insert for each month. A part appears whole or not at all.
3. Insert one manifest for each source partition, in one insert: from here on the rows count.
4. Commit the offsets to Kafka. This only tells others how far the sink is.

A crash after 1 or 4 changes nothing. After 2, or in its middle, rows lie above the last manifest:
they are looked up on assignment and skipped, and if one were inserted again it would replace
itself. After 3, reading goes on behind the blocks. When an insert fails, nobody knows whether it
was carried out, so it is never resent: the positions are read again from the ledger.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from aiokafka.structs import ConsumerRecord

from pipeline import faults, metrics
from pipeline.core.blocks import PricedBlock, decode_block
from pipeline.core.errors import Refused, TallyportError
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.client import LedgerDatabaseMissing, LedgerError, LedgerLoginRefused
from pipeline.ledger.intake import Intake, Verdict, first_offset_to_read
from pipeline.ledger.manifests import LogEpoch, decode_epoch
from pipeline.ledger.sink_status import SinkStatus
from pipeline.ledger.writer import Holding, LedgerWriter, Run
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics

INSERT_INTERVAL_S = 0.5
"""At most this many seconds of rows wait; a lone row goes out at once."""
INSERT_MAX_ROWS = 50_000
INSERT_MAX_BYTES = 32 * 1024 * 1024
IDLE_WAIT_S = 0.2
POLL_MAX_BLOCKS = 16
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
) -> None:
    """Runs until ``stop`` is set; calls ``on_ready`` once, when the first positions are read.

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
        fetch_max_wait_ms=100,
        max_partition_fetch_bytes=FETCH_MAX_BYTES,
        session_timeout_ms=6_000,
        heartbeat_interval_ms=2_000,
        rebalance_timeout_ms=10_000,
    )
    sink = _Sink(kafka, consumer, writer, topics, on_ready, status or SinkStatus())
    try:
        await consumer.start()
        consumer.subscribe([topics.priced], listener=sink)
        await sink.run(stop)
    except KafkaError as error:
        raise _kafka_failed(error) from error
    finally:
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
        self._on_ready: Callable[[], None] | None = on_ready
        self._status = status
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._intakes: dict[TopicPartition, Intake] = {}
        self._joined = False
        self._settled = False
        self._failures = 0
        self._waiting_since: float | None = None
        self._last_round = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                await self._turn()
            except IllegalStateError as error:
                _log.info("the partitions have moved meanwhile: %s", error)
                self._forget()
            except (LedgerError, KafkaError) as error:
                await self._back_off(error, stop)
        if self._settled and self._waiting_since is not None:
            try:
                await asyncio.wait_for(self._write_round(), LAST_ROUND_TIMEOUT_S)
            except (LedgerError, KafkaError, TimeoutError) as error:
                _log.warning("the last insert failed, the next start repeats it: %s", error)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
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
        self._settled = False
        self._waiting_since = None

    async def _turn(self) -> None:
        if self._joined and not self._settled:
            await self._settle()
        batches = await self._consumer.getmany(
            timeout_ms=int(self._wait_s() * 1000), max_records=POLL_MAX_BLOCKS
        )
        for tp, records in batches.items():
            await self._collect(tp, records)
        if self._waiting_since is not None and self._wait_s() <= 0:
            await self._write_round()
        await self._note_progress()

    def _wait_s(self) -> float:
        if self._waiting_since is None:
            return IDLE_WAIT_S
        due = max(self._waiting_since, self._last_round + INSERT_INTERVAL_S)
        return max(0.0, due - monotonic())

    async def _settle(self) -> None:
        """Reads the positions of what is assigned, and starts reading there."""
        assigned = set(self._consumer.assignment())
        firsts = await self._consumer.beginning_offsets(assigned) if assigned else {}
        ends = await self._consumer.end_offsets(assigned) if assigned else {}
        sources = (self._topics.events, self._topics.corrections)
        partitions = sorted(tp.partition for tp in assigned)
        holdings = await self._in_thread(self._writer.holdings, sources, partitions)
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
            block = decode_block(value)
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
                await self._write_round()

    async def _learn_log(self) -> None:
        """Which log this is, as soon as a worker has begun it; the ledger takes only its own."""
        log = await _read_epoch(self._kafka, self._topics.epoch)
        if log is not None:
            await self._in_thread(self._writer.join, log)
        self._log = log

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

    async def _write_round(self) -> None:
        """Steps 2 to 4."""
        runs: list[Run] = []
        for tp, intake in self._intakes.items():
            if blocks := intake.take_all():
                unwritten = [intake.without_known_rows(block) for block in blocks]
                runs.append(Run(tp.partition, intake.priced_next_offset, blocks, unwritten))
        self._waiting_since = None
        if not runs:
            return
        rows = await self._in_thread(self._writer.write, runs)
        self._last_round = monotonic()
        self._failures = 0
        metrics.SINK_ROWS.inc(rows)
        self._status.note_round(rows)
        await self._commit(runs)

    async def _commit(self, runs: list[Run]) -> None:
        """Step 4."""
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
            waiting = len(self._intakes[tp].taken)
            lag = max(0, end - await self._consumer.position(tp)) + waiting
            self._status.lag[tp.partition] = lag
            metrics.SINK_LAG.labels(str(tp.partition)).set(lag)
        if self._settled and not any(self._status.lag.values()):
            self._status.note_idle()

    async def _back_off(self, error: Exception, stop: asyncio.Event) -> None:
        """Waits before the positions are read again; raises when it is no use."""
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
        self._writer.close()
        self._consumer.pause(*self._consumer.assignment())
        self._forget()
        try:
            await asyncio.wait_for(stop.wait(), wait_s)
        except TimeoutError:
            return

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)


async def _read_epoch(kafka: dict[str, Any], topic: str) -> LogEpoch | None:
    """The log as its first epoch record says; None while no worker has begun it."""
    log: LogEpoch | None = None
    async for records in read_to_end(kafka, topic):
        log = log or decode_epoch(records[0].value or b"")
    return log


def _kafka_failed(error: KafkaError) -> TallyportError:
    return TallyportError(f"Kafka: {str(error) or type(error).__name__}")
