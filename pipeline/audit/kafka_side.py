"""What the audit reads from Kafka: the input, what decided, and what the worker wrote."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.audit.fates import Block, Refusal, refusal_digest
from pipeline.audit.recount.count import LogRecord
from pipeline.audit.recount.places import restored_from
from pipeline.audit.recount.policies import PolicyRecord
from pipeline.audit.recount.rates import RateRecord
from pipeline.audit.recount.rules import Rules, read_rules
from pipeline.audit.state_log import StateLog, StateRecord
from pipeline.audit.tables import FATES, Table
from pipeline.core.blocks import ROW_COLUMNS, PricedBlock, decode_block
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.resolved import Resolved, decode_resolved
from pipeline.corrections.progress import read_progress
from pipeline.stream.epoch import Epoch
from pipeline.stream.epoch import read_epoch as read_epoch_record
from pipeline.stream.reader import (
    after_last_record,
    end_offsets,
    read_to_end,
    record_ends,
    topic_partitions,
)
from pipeline.stream.rules import rules_digest
from pipeline.stream.tables import read_tables
from pipeline.stream.topic_identity import topic_id
from pipeline.stream.topics import Topics

_CLOSE_OFFSETS = 2_000
_OFFSET_COLUMN = ROW_COLUMNS.index("source_offset")


@dataclass
class Positions:
    """Where each partition of ``usage.events`` begins, and the offset after its last record."""

    starts: dict[int, int] = field(default_factory=dict[int, int])
    next_offsets: dict[int, int] = field(default_factory=dict[int, int])


@dataclass
class Decisions:
    """What decided in this epoch: rules by partition, a digest of each by its offset, and rates."""

    rules: dict[int, list[Rules]]
    digests: dict[tuple[int, int], bytes]
    rates: list[RateRecord]


@dataclass
class CorrectionLogs:
    """Corrections that Kafka holds, by partition and offset, and those that are resolved.

    ``starts`` are the first offsets of ``usage.corrections``; ``resolved`` holds partition, offset
    and record; ``resolved_at`` offset and record by the place of the correction.
    """

    starts: dict[int, int] = field(default_factory=dict[int, int])
    records: dict[tuple[int, int], LogRecord] = field(
        default_factory=dict[tuple[int, int], LogRecord]
    )
    resolved: list[tuple[int, int, Resolved]] = field(
        default_factory=list[tuple[int, int, Resolved]]
    )
    resolved_at: dict[tuple[int, int], tuple[int, Resolved]] = field(
        default_factory=dict[tuple[int, int], tuple[int, Resolved]]
    )


class KafkaSide:
    """One deployment's topics, read only, committed records only."""

    def __init__(self, client: Mapping[str, Any], topics: Topics) -> None:
        self._client = client
        self.topics = topics

    async def epoch(self) -> Epoch:
        """The epoch of this log; ``Refused`` without one and while a restore goes on."""
        found = await read_epoch_record(self._client, self.topics)
        if found is None:
            raise Refused(f"{self.topics.epoch} is empty; no worker has ever run on this Kafka")
        if found.state != "ready":
            raise Refused(
                f"a restore into this Kafka (epoch {found.epoch}) has not finished; "
                "run `tallyport rebuild`"
            )
        return found

    async def positions(self) -> Positions:
        """Transaction markers behind the last record are not counted."""
        found = Positions()
        topic = self.topics.events
        async with AIOKafkaConsumer(
            **self._client, isolation_level="read_committed", enable_auto_commit=False
        ) as consumer:
            numbers = sorted(await topic_partitions(consumer, topic))
            places = [TopicPartition(topic, p) for p in numbers]
            starts = await consumer.beginning_offsets(places)
            ends = await consumer.end_offsets(places)
        for tp in places:
            found.starts[tp.partition] = starts[tp]
            found.next_offsets[tp.partition] = await after_last_record(
                self._client, tp, starts[tp], ends[tp]
            )
        return found

    async def event_ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Where the committed records of ``usage.events`` end now."""
        return await end_offsets(self._client, self.topics.events, partitions)

    async def events(
        self, start: Mapping[int, int], end: Mapping[int, int]
    ) -> AsyncIterator[list[LogRecord]]:
        """The input between two places, in slices of one partition."""
        open_partitions = [p for p in start if start[p] < end[p]]
        if not open_partitions:
            return
        async for records in read_to_end(
            self._client, self.topics.events, open_partitions, start=start, end=end
        ):
            yield [_log_record(r) for r in records]

    async def events_at(self, places: Iterable[tuple[int, int]]) -> list[LogRecord]:
        """The records at some offsets (partition, offset) that Kafka still holds."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for partition, offset in places:
            wanted[partition].append(offset)
        found: list[LogRecord] = []
        for partition, offsets in wanted.items():
            for run in _close_runs(sorted(offsets)):
                async for records in read_to_end(
                    self._client,
                    self.topics.events,
                    [partition],
                    start={partition: run[0]},
                    end={partition: run[-1] + 1},
                ):
                    found += [_log_record(r) for r in records if r.offset in run]
        return found

    async def decisions(self, epoch: int) -> Decisions:
        """Rules of this epoch, and all rates."""
        found = Decisions({}, {}, [])
        async for record in self._records(self.topics.rules):
            if record.value is None:
                continue
            where = f"{self.topics.rules} partition {record.partition} offset {record.offset}"
            partition, of_epoch, rules = read_rules(record.value, where)
            if of_epoch == epoch:
                found.rules.setdefault(partition, []).append(rules)
                found.digests[partition, rules.from_offset] = _digest_of_rules(record.value)
        async for record in self._records(self.topics.rates):
            arrived_ms = record.timestamp
            whence = restored_from(record.headers)
            if whence is not None:
                arrived_ms = min(arrived_ms, whence.timestamp_ms)
            found.rates.append(RateRecord(record.offset, arrived_ms, record.key, record.value))
        return found

    async def policies(self) -> tuple[list[PolicyRecord], dict[bytes, bytes]]:
        """The log of policies, and the worker's copies of the valid ones by key."""
        records = [
            PolicyRecord(record.key, record.value)
            async for record in self._records(self.topics.policies)
        ]
        registry = {
            record.key or b"": record.value
            async for record in self._records(self.topics.registry)
            if record.value is not None
        }
        return records, registry

    async def table(self, partition: int) -> Table:
        """One of the worker's tables as it was committed at the call."""
        view = (await read_tables(self._client, self.topics, [partition]))[partition]
        position = view.position
        return Table(
            partition,
            view.next_offset,
            view.cells,
            {fate: getattr(position, fate) for fate in FATES},
            position.oldest_day,
            position.epoch,
            position.flush,
            position.rules_digest,
            position.resolved_offset,
        )

    async def read_states(self, logs: Mapping[int, StateLog]) -> None:
        """Reads ``budget.state`` on from where each log stands, to the end as of the call."""
        start = {p: log.next_offset for p, log in logs.items() if log.next_offset}
        async for records in read_to_end(self._client, self.topics.state, logs, start=start):
            log = logs[records[0].partition]
            log.feed([StateRecord(r.offset, r.key or b"", r.value) for r in records])

    async def refusals(self, since_ms: int) -> AsyncIterator[Refusal]:
        """Every record of ``usage.rejected`` that came from ``usage.events`` after ``since_ms``."""
        async for refusal in self._refusals_of(self.topics.events, since_ms):
            yield refusal

    async def correction_refusals(self) -> AsyncIterator[Refusal]:
        """Every record of ``usage.rejected`` that came from ``usage.corrections``."""
        async for refusal in self._refusals_of(self.topics.corrections, 0):
            yield refusal

    async def _refusals_of(self, topic: str, since_ms: int) -> AsyncIterator[Refusal]:
        async for record in self._records(self.topics.rejected):
            named = {
                name: (content or b"").decode(errors="replace") for name, content in record.headers
            }
            if named.get("source-topic") != topic or record.timestamp < since_ms:
                continue
            try:
                place = int(named["source-partition"]), int(named["source-offset"])
                reason = named["reason"]
            except (KeyError, ValueError) as error:
                where = f"{self.topics.rejected} partition {record.partition}"
                raise CorruptRecord(
                    f"{where} offset {record.offset}: lacks a header: {error}"
                ) from error
            digest = refusal_digest(record.key, record.value, record.headers)
            yield Refusal(*place, reason, digest)

    async def blocks(
        self, epoch: int, start: Mapping[int, int]
    ) -> AsyncIterator[tuple[int, Block]]:
        """The priced blocks of this epoch with their offsets, from offsets of the topic on."""
        async for records in read_to_end(self._client, self.topics.priced, start, start=start):
            for record in records:
                block = decode_block(record.value or b"")
                if block.epoch == epoch and block.topic == self.topics.events:
                    yield record.offset, _block(block)

    async def correction_blocks(self, epoch: int) -> AsyncIterator[Block]:
        """The blocks of corrections of this epoch that Kafka still holds."""
        async for record in self._records(self.topics.priced):
            block = decode_block(record.value or b"")
            if block.epoch == epoch and block.topic == self.topics.resolved:
                yield _block(block)

    async def correction_logs(self) -> CorrectionLogs:
        """Corrections as they were sent, and what the resolver made of them."""
        found = CorrectionLogs()
        async with AIOKafkaConsumer(**self._client) as consumer:
            topic = self.topics.corrections
            tps = [TopicPartition(topic, p) for p in await topic_partitions(consumer, topic)]
            starts = await consumer.beginning_offsets(tps)
        found.starts = {tp.partition: offset for tp, offset in starts.items()}
        async for record in self._records(topic):
            found.records[record.partition, record.offset] = _log_record(record)
        async for record in self._records(self.topics.resolved):
            resolved = decode_resolved(record.value)
            found.resolved.append((record.partition, record.offset, resolved))
            found.resolved_at[resolved.place] = (record.offset, resolved)
        return found

    async def correction_ends(self) -> dict[int, int]:
        """Behind the last record of each partition of ``usage.corrections`` that has any."""
        return await record_ends(self._client, self.topics.corrections)

    async def resolved_ends(self) -> dict[int, int]:
        """The same of ``tallyport.resolved``."""
        return await record_ends(self._client, self.topics.resolved)

    async def resolver_progress(self) -> dict[int, int]:
        """Up to where each partition of ``usage.corrections`` is resolved."""
        topic = self.topics.corrections
        corrections_id = str(await topic_id(self._client, topic))
        progress = await read_progress(self._client, self.topics, corrections_id)
        return dict(progress.next_offsets)

    async def priced_starts(self, partitions: Sequence[int]) -> dict[int, int]:
        """The first offset of each partition of ``usage.priced`` that Kafka still holds."""
        async with AIOKafkaConsumer(**self._client) as consumer:
            places = [TopicPartition(self.topics.priced, p) for p in partitions]
            found = await consumer.beginning_offsets(places)
        return {tp.partition: offset for tp, offset in found.items()}

    async def _records(self, topic: str) -> AsyncIterator[ConsumerRecord]:
        async for records in read_to_end(self._client, topic):
            for record in records:
                yield record


def _log_record(record: ConsumerRecord) -> LogRecord:
    return LogRecord(
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        record.headers,
    )


def _block(block: PricedBlock) -> Block:
    return Block(
        block.partition,
        block.first_offset,
        block.next_offset,
        [row[_OFFSET_COLUMN] for row in block.rows],
        block.rejected,
        block.duplicates,
        block.forwarded,
    )


def _digest_of_rules(value: bytes) -> bytes:
    """What a table's position says of these rules: partition and offset do not count."""
    body = msgspec.json.decode(value)
    del body["partition"], body["from_offset"]
    return rules_digest(msgspec.json.encode(body))


def _close_runs(offsets: Sequence[int]) -> list[list[int]]:
    """Offsets in runs that are worth reading at once."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and offset - runs[-1][-1] <= _CLOSE_OFFSETS:
            runs[-1].append(offset)
        else:
            runs.append([offset])
    return runs
