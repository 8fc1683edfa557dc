"""The resolver: each correction becomes its ledger entry once, in one place, in order.

Corrections that name the same event depend on each other, and so on all that were taken before.
One process of a deployment resolves them, the one whose sink holds the first partition; its
transactional id shuts out every other. One turn:

    1  take      what arrived on ``usage.corrections``
    2  look up   the ledger: which are repeats, and how the events stand; what was resolved before
                 and is not in the ledger yet is remembered here
    3  wait      where an event is not found: until the ledger has taken in everything that was
                 sent before; where a rate is not: until the end of the rates was seen
    4  write     entries, rejected records and the position, in one transaction
    5  remember  the entries, until the ledger has them

A crash before the commit of 4 leaves nothing visible, and the same records are taken again. After
it, the position is behind them, and 5 is read back from the log.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord, RecordMetadata

from pipeline import metrics
from pipeline.core.book import builtin_book
from pipeline.core.corrections import Standing
from pipeline.core.errors import CorruptRecord, Refused, TallyportError
from pipeline.core.home import home_partition
from pipeline.core.resolved import Resolved, decode_resolved, encode_resolved, resolved_of
from pipeline.corrections.entries import EventKey, standing_of
from pipeline.corrections.ledger import LedgerLookups
from pipeline.corrections.memory import Pending
from pipeline.corrections.progress import (
    PROGRESS_KEY,
    Progress,
    encode_progress,
    read_progress,
)
from pipeline.corrections.verdicts import Batch, Verdicts, batches_of
from pipeline.faults import point
from pipeline.kafka import client_kwargs
from pipeline.ledger.log_reading import read_log
from pipeline.ledger.manifests import LogEpoch
from pipeline.settings import Settings
from pipeline.stream.epoch import read_epoch
from pipeline.stream.rate_log import RateTail
from pipeline.stream.reader import ReadTimedOut, read_to_end
from pipeline.stream.rejected_record import rejected_record
from pipeline.stream.topic_identity import topic_id
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import FencedProducer, Outbox, Record

POLL_S = 0.5
BATCH_RECORDS = 1_000
LET_GO_S = 0.5
FAILURES_MAX = 12
"""So many failures in a row end it; a turn that succeeds starts the count again."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 20.0

_log = logging.getLogger(__name__)


class Resolver:
    """Resolves corrections while ``is_owner`` says that this process should."""

    def __init__(self, settings: Settings, is_owner: Callable[[], bool]) -> None:
        self._settings = settings
        self._kafka = client_kwargs(settings)
        self._topics = Topics(settings.topic_prefix)
        self._is_owner = is_owner
        self._failures = 0

    async def run(self) -> None:
        """Resolves until cancelled; raises ``TallyportError`` when it keeps failing."""
        while True:
            try:
                log = await self._log() if self._is_owner() else None
                if log is not None:
                    await self._serve(log)
                else:
                    await asyncio.sleep(POLL_S)
            except (CorruptRecord, Refused):
                raise
            except (TallyportError, KafkaError) as error:
                await self._back_off(error)

    async def _log(self) -> LogEpoch | None:
        """The log, once a worker has begun it and no restore goes on."""
        log = await read_log(self._kafka, self._topics.epoch)
        return log if log is not None and log.ready else None

    async def _serve(self, log: LogEpoch) -> None:
        topics, settings = self._topics, self._settings
        rates = RateTail(
            self._kafka,
            topics.rates,
            builtin_book(),
            lead_s=settings.price_lead_s,
            currency=settings.currency,
        )
        # Fence first: what a former owner left open is decided before anything is read.
        producer = FencedProducer(self._kafka, topics.resolver_transactional_id, "")
        try:
            await producer.start()
            await rates.start()
            epoch = await read_epoch(self._kafka, topics)
            starts = {} if epoch is None else epoch.starts
            async with LedgerLookups(settings, self._kafka, log, starts) as ledger:
                tenure = _Tenure(self._kafka, topics, settings, producer, rates, ledger)
                await tenure.begin()
                while self._is_owner():
                    await tenure.turn()
                    self._failures = 0
                await tenure.end()
        finally:
            await rates.stop()
            await producer.close()

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        if self._failures > FAILURES_MAX:
            raise TallyportError(
                f"corrections could not be resolved {FAILURES_MAX} times in a row; the last "
                f"failure: {error}"
            ) from error
        wait_s = min(BACKOFF_FIRST_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
        _log.warning("%s; resolving corrections again in %.1f s", error, wait_s)
        await asyncio.sleep(wait_s)


class _Tenure:
    """The time between a fence and the next one."""

    def __init__(
        self,
        kafka: Mapping[str, Any],
        topics: Topics,
        settings: Settings,
        producer: FencedProducer,
        rates: RateTail,
        ledger: LedgerLookups,
    ) -> None:
        self._kafka = kafka
        self._topics = topics
        self._partitions = settings.partition_count
        self._price_lead_s = settings.price_lead_s
        self._producer = producer
        self._rates = rates
        self._ledger = ledger
        self._pending = Pending()
        self._progress: Progress
        self._consumer: AIOKafkaConsumer
        self._looked_at_s = 0.0

    async def begin(self) -> None:
        """Reads back where to go on, and what the ledger may not have yet."""
        corrections_id = str(await topic_id(self._kafka, self._topics.corrections))
        self._progress = await read_progress(self._kafka, self._topics, corrections_id)
        await self._remember_unwritten()
        self._consumer = AIOKafkaConsumer(
            **self._kafka,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=int(POLL_S * 1000),
        )
        try:
            await self._consumer.start()
            await self._seek()
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """Lets go of the connection."""
        await self._consumer.stop()

    async def turn(self) -> None:
        """Takes what there is and resolves it; waits a little when there is nothing."""
        try:
            await self._let_go()
            if self._pending.is_full:
                await asyncio.sleep(POLL_S)
                return
            found = await self._consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=BATCH_RECORDS
            )
            records = [record for of_partition in found.values() for record in of_partition]
            if records:
                point("resolver-taken")
                for batch in batches_of(records):
                    await self._resolve(batch)
            await self._note_lag()
        except BaseException:
            await self.end()
            raise

    async def _resolve(self, batch: Batch) -> None:
        """Steps 2 to 5."""
        asked_s = monotonic()
        known_ids = await self._ledger.known_ids(batch.ids)
        known_ids |= {one for one in batch.ids if self._pending.has(one)}
        standings = await self._standings(batch.keys)
        if missing := {key: day for key, day in batch.keys.items() if key not in standings}:
            point("resolver-waits")
            await self._ledger.taken_in(self._topics.events)
            standings |= await self._standings(missing)
        verdicts = batch.judge(known_ids, standings, self._rates.version)
        if verdicts.doubt_rates:
            await self._until_rates_seen(asked_s)
            verdicts = batch.judge(known_ids, standings, self._rates.version)
        point("resolver-judged")
        await self._write(batch.records, verdicts)

    async def _standings(self, keys: Mapping[EventKey, str]) -> dict[EventKey, Standing]:
        entries = await self._ledger.entries(keys)
        found = {
            key: standing_of(of_event, self._pending.entries(key), keys[key])
            for key, of_event in entries.items()
        }
        return {key: standing for key, standing in found.items() if standing is not None}

    async def _until_rates_seen(self, since_s: float) -> None:
        """Until the end of the rates, as of ``since_s`` of the monotonic clock, was read."""
        while (self._rates.confirmed_s or 0.0) < since_s:
            await self._rates.wait_confirmed(0.0)
            await asyncio.sleep(POLL_S / 10)

    async def _write(self, records: Sequence[ConsumerRecord], verdicts: Verdicts) -> None:
        """Steps 4 and 5."""
        progress = Progress(
            self._progress.version,
            self._progress.topic_id,
            dict(self._progress.next_offsets),
            dict(self._progress.numbers),
        )
        for record in records:
            progress.next_offsets[record.partition] = record.offset + 1
        outbox = Outbox()
        resolved = self._entries(verdicts, progress, outbox)
        for record, rejection in verdicts.rejected:
            rejected = rejected_record(record, rejection, record.topic, record.partition)
            outbox.add(self._topics.rejected, record.partition, rejected)
        outbox.add(self._topics.resolver, 0, Record(PROGRESS_KEY, encode_progress(progress)))
        written = await self._producer.commit(outbox)
        point("resolver-committed")
        self._progress = progress
        self._remember(resolved, written)
        metrics.CORRECTIONS_DUPLICATE.inc(verdicts.repeats)
        for _, rejection in verdicts.rejected:
            metrics.CORRECTIONS_REJECTED.labels(rejection.reason).inc()

    def _entries(
        self, verdicts: Verdicts, progress: Progress, outbox: Outbox
    ) -> dict[int, list[Resolved]]:
        prices = self._rates.version
        decided = (*prices.key, prices.currency, self._price_lead_s)
        resolved: dict[int, list[Resolved]] = defaultdict(list)
        for record, correction, entry in verdicts.accepted:
            home = home_partition(correction.port_id, self._partitions)
            number = progress.numbers[home] = progress.numbers.get(home, 0) + 1
            place = (self._topics.corrections, record.partition, record.offset, record.timestamp)
            one = resolved_of(correction, entry, place, number, decided)
            resolved[home].append(one)
            key = correction.port_id.encode()
            outbox.add(self._topics.resolved, home, Record(key, encode_resolved(one)))
        return resolved

    def _remember(
        self, resolved: Mapping[int, list[Resolved]], written: Sequence[RecordMetadata]
    ) -> None:
        """Step 5. Nobody else writes there: the records of a transaction stand side by side.

        Where the log ends now says less: until the marker is written, which may be after the
        commit was answered, it is said to end before them.
        """
        for partition, records in resolved.items():
            firsts = [
                batch.offset
                for batch in written
                if (batch.topic, batch.partition) == (self._topics.resolved, partition)
            ]
            if min(firsts, default=-1) < 0:
                raise ReadTimedOut("the broker did not say where corrections were written")
            self._pending.add(partition, min(firsts) + len(records), records)

    async def _remember_unwritten(self) -> None:
        """What stands in the log of resolved corrections behind what the ledger has.

        Its numbers go on from what stands there, also where the record of progress was lost.
        """
        topic, numbers = self._topics.resolved, self._progress.numbers
        start = await self._ledger.reached(topic)
        async for records in read_to_end(self._kafka, topic):
            last = self._decoded(records[-1])
            partition = records[-1].partition
            numbers[partition] = max(numbers.get(partition, 0), last.number)
            behind = [r for r in records if r.offset >= start.get(r.partition, 0)]
            decoded = [(record, self._decoded(record)) for record in behind]
            known = await self._ledger.known_ids(one.correction_id for _, one in decoded)
            for record, one in decoded:
                if one.correction_id not in known:
                    self._pending.add(record.partition, record.offset + 1, [one])

    def _decoded(self, record: ConsumerRecord) -> Resolved:
        try:
            return decode_resolved(record.value)
        except CorruptRecord as error:
            place = f"{self._topics.resolved} partition {record.partition} offset {record.offset}"
            raise CorruptRecord(f"{place}: {error}") from error

    async def _seek(self) -> None:
        """Goes on where resolving has come to, or where the topic begins now.

        Raises ``Refused`` when the topic ends before that.
        """
        tps = [TopicPartition(self._topics.corrections, p) for p in range(self._partitions)]
        firsts = await self._consumer.beginning_offsets(tps)
        ends = await self._consumer.end_offsets(tps)
        next_offsets = self._progress.next_offsets
        deleted = 0
        for tp in tps:
            wanted = next_offsets.get(tp.partition, 0)
            if wanted > ends[tp]:
                raise Refused(
                    f"{tp.topic} partition {tp.partition} ends at offset {ends[tp]}, but "
                    f"corrections have been resolved up to {wanted}: the topic lost records"
                )
            if wanted < firsts[tp]:
                _log.warning(
                    "%s partition %d begins at offset %d: what was between %d and there was "
                    "deleted before it was resolved",
                    tp.topic, tp.partition, firsts[tp], wanted,
                )  # fmt: skip
                deleted += firsts[tp] - wanted
                next_offsets[tp.partition] = firsts[tp]
        if deleted:
            await self._pass_over(deleted)
        self._consumer.assign(tps)
        for tp in tps:
            self._consumer.seek(tp, next_offsets.get(tp.partition, 0))

    async def _pass_over(self, deleted: int) -> None:
        """Writes the position behind what was deleted, so that it is counted once."""
        outbox = Outbox()
        outbox.add(self._topics.resolver, 0, Record(PROGRESS_KEY, encode_progress(self._progress)))
        await self._producer.commit(outbox)
        metrics.CORRECTIONS_LOST.labels(metrics.LOST_DELETED).inc(deleted)

    async def _let_go(self) -> None:
        now_s = monotonic()
        if len(self._pending) and now_s - self._looked_at_s >= LET_GO_S:
            self._looked_at_s = now_s
            self._pending.let_go(await self._ledger.reached(self._topics.resolved))

    async def _note_lag(self) -> None:
        lag = 0
        for tp in self._consumer.assignment():
            end = self._consumer.last_stable_offset(tp)
            if end is not None:
                lag += max(0, end - await self._consumer.position(tp))
        metrics.CORRECTIONS_LAG.set(lag)
