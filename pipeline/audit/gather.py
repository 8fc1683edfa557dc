"""Reading what the audit compares: the input and the internal topics, and the ledger."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord
from clickhouse_connect.driver.client import Client

from pipeline.audit.budgets import PolicyRecord
from pipeline.audit.compare import FATES, Manifest, Refusal, StateRecord, Table, totals_of
from pipeline.audit.pricing import RateRecord
from pipeline.audit.reading import COUNTERS, TEXTS
from pipeline.audit.recount import (
    LogRecord,
    Row,
    Rules,
    plain,
    read_rules,
    record_digest,
    row_digest,
)
from pipeline.core.errors import CorruptRecord
from pipeline.stream.reader import read_to_end
from pipeline.stream.tables import read_tables as read_table_views
from pipeline.stream.topics import Topics

POSITION_TIMEOUT_S = 30.0
DAILY_TRIES = 6
DAILY_PAUSE_S = 0.5

_ROW_COLUMNS = (
    "source_offset",
    "event_id",
    "toUnixTimestamp64Micro(occurred_at)",
    "port_id",
    "provider",
    "model",
    *TEXTS,
    "feature",
    "kind",
    "billing_scope",
    *COUNTERS,
    "audio_nano",
    "estimated",
    "reported_cost",
    "tags",
    "toUnixTimestamp64Milli(recorded_at)",
    "cost_nano",
    "price_status",
)
_ESTIMATED, _REPORTED_COST, _TAGS = (
    _ROW_COLUMNS.index(name) - 1 for name in ("estimated", "reported_cost", "tags")
)
_ROWS = f"""
SELECT {", ".join(_ROW_COLUMNS)}
FROM ledger_entries FINAL
WHERE entry_no = 0 AND epoch = {{epoch:UInt32}} AND source_topic = {{topic:String}}
AND source_partition = {{partition:UInt32}} AND source_offset < {{next_offset:Int64}}
ORDER BY source_offset
"""
_MANIFESTS = """
SELECT partition, first_offset, next_offset, rows, rejected, duplicates, forwarded
FROM sink_manifests FINAL
WHERE epoch = {epoch:UInt32} AND topic = {topic:String}
ORDER BY partition, first_offset, next_offset
"""
_SUMS = (
    "toInt64(sum(requests)) AS requests",
    *(f"toInt64(sum({name})) AS {name}" for name in (*COUNTERS, "total_tokens")),
    "toString(sum(audio_seconds)) AS audio_seconds",
    "toString(sum(toInt128(cost_nano))) AS cost_nano",
    "toInt64(sum(unpriced_requests)) AS unpriced_requests",
)


@dataclass
class Positions:
    """Where each partition of ``usage.events`` begins, and the offset after its last record."""

    starts: dict[int, int] = field(default_factory=dict[int, int])
    next_offsets: dict[int, int] = field(default_factory=dict[int, int])


async def read_positions(client: Mapping[str, Any], topic: str) -> Positions:
    """Transaction markers behind the last record are not counted."""
    positions = Positions()
    consumer = AIOKafkaConsumer(
        topic, **client, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        async with asyncio.timeout(POSITION_TIMEOUT_S):
            assigned = sorted(consumer.assignment())
            starts = await consumer.beginning_offsets(assigned)
            ends = await consumer.end_offsets(assigned)
    finally:
        await consumer.stop()
    for tp in assigned:
        positions.starts[tp.partition] = starts[tp]
        positions.next_offsets[tp.partition] = await _after_last_record(
            client, tp, starts[tp], ends[tp]
        )
    return positions


async def _after_last_record(
    client: Mapping[str, Any], tp: TopicPartition, start: int, end: int
) -> int:
    reach = 64
    while end > start:
        begin = max(start, end - reach)
        last = -1
        async for records in read_to_end(
            client, tp.topic, [tp.partition], start={tp.partition: begin}
        ):
            offsets = [record.offset for record in records if record.offset < end]
            last = max(last, *offsets) if offsets else last
        if last >= 0 or begin == start:
            return last + 1
        reach *= 16
    return 0


async def read_events(client: Mapping[str, Any], topic: str) -> AsyncIterator[list[LogRecord]]:
    """Every record of the input, in slices of one partition."""
    async for records in read_to_end(client, topic):
        yield [
            LogRecord(r.partition, r.offset, r.timestamp, r.key, r.value, r.headers)
            for r in records
        ]


async def read_all_rules(client: Mapping[str, Any], topics: Topics) -> dict[int, list[Rules]]:
    """What decided which partition from which offset on."""
    rules = defaultdict[int, list[Rules]](list)
    async for record in _records(client, topics.rules):
        if record.value is not None:
            partition, entry = read_rules(record.value, f"{topics.rules} offset {record.offset}")
            rules[partition].append(entry)
    return dict(rules)


async def read_rates(client: Mapping[str, Any], topics: Topics) -> list[RateRecord]:
    """The log of rates."""
    return [
        RateRecord(record.offset, record.timestamp, record.key, record.value)
        async for record in _records(client, topics.rates)
    ]


async def read_policies(
    client: Mapping[str, Any], topics: Topics
) -> tuple[list[PolicyRecord], dict[bytes, bytes]]:
    """The log of policies, and the worker's copies of the valid ones by key."""
    records = [
        PolicyRecord(record.key, record.value) async for record in _records(client, topics.policies)
    ]
    registry = {
        record.key or b"": record.value
        async for record in _records(client, topics.registry)
        if record.value is not None
    }
    return records, registry


async def read_epoch(client: Mapping[str, Any], topics: Topics) -> int:
    """The number of this log; raises ``CorruptRecord`` when no record says it."""
    async for record in _records(client, topics.epoch):
        try:
            return int(json.loads(record.value or b"")["epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptRecord(f"{topics.epoch}: not a record of an epoch: {error}") from error
    raise CorruptRecord(f"{topics.epoch} is empty; no worker has ever run on this Kafka")


async def read_tables(
    client: Mapping[str, Any], topics: Topics, partitions: list[int]
) -> dict[int, Table]:
    """The worker's tables as they were committed at the call."""
    views = await read_table_views(client, topics, partitions)
    return {
        partition: Table(
            partition,
            view.next_offset,
            {key: totals_of(cell) for key, cell in view.cells.items()},
            {fate: getattr(view.position, fate) for fate in FATES},
            view.position.oldest_day,
        )
        for partition, view in views.items()
    }


class StateLogs:
    """The records of ``budget.state``, read on from where the last reading ended."""

    def __init__(self, client: Mapping[str, Any], topics: Topics, partitions: list[int]) -> None:
        self.records: dict[int, list[StateRecord]] = {p: [] for p in partitions}
        self._client = client
        self._topic = topics.state
        self._next = dict[int, int]()

    async def read_on(self) -> None:
        """Reads to the end as of the call."""
        partitions = list(self.records)
        async for records in read_to_end(self._client, self._topic, partitions, start=self._next):
            log = self.records[records[0].partition]
            log.extend(StateRecord(r.offset, r.key or b"", r.value) for r in records)
            self._next[records[0].partition] = records[-1].offset + 1

    def through(self) -> dict[int, int]:
        """By source partition: the offset that every partition's last heartbeat has reached."""
        reached: dict[int, int] = {}
        for records in self.records.values():
            last = next((r for r in reversed(records) if r.key.startswith(b"!heartbeat|")), None)
            body = json.loads(last.value or b"{}") if last is not None else {}
            marks = {int(p): int(offset) for p, offset in body.get("through", {}).items()}
            for partition in self.records:
                offset = marks.get(partition, 0)
                reached[partition] = min(reached.get(partition, offset), offset)
        return reached


async def read_refusals(client: Mapping[str, Any], topics: Topics) -> list[Refusal]:
    """Every record of ``usage.rejected`` that came from ``usage.events``."""
    refusals: list[Refusal] = []
    async for record in _records(client, topics.rejected):
        named = {
            name: (content or b"").decode(errors="replace") for name, content in record.headers
        }
        if named.get("source-topic") != topics.events:
            continue
        try:
            place = int(named["source-partition"]), int(named["source-offset"])
            reason = named["reason"]
        except (KeyError, ValueError) as error:
            where = f"{topics.rejected} partition {record.partition} offset {record.offset}"
            raise CorruptRecord(f"{where}: lacks a header: {error}") from error
        digest = record_digest(record.key, record.value, record.headers)
        refusals.append(Refusal(*place, reason, digest))
    return refusals


async def _records(client: Mapping[str, Any], topic: str) -> AsyncIterator[ConsumerRecord]:
    async for records in read_to_end(client, topic):
        for record in records:
            yield record


# -- the ledger ------------------------------------------------------------------------------------


def read_manifests(client: Client, topic: str, epoch: int) -> dict[int, list[Manifest]]:
    """The runs of source offsets that the ledger says it holds, by partition."""
    found = client.query(_MANIFESTS, parameters={"epoch": epoch, "topic": topic}).result_rows
    manifests = defaultdict[int, list[Manifest]](list)
    for row in found:
        manifest = Manifest(*(int(value) for value in row))
        manifests[manifest.partition].append(manifest)
    return dict(manifests)


def read_ledger_rows(
    client: Client, topic: str, epoch: int, partition: int, next_offset: int
) -> Iterator[Row]:
    """The ledger's entries of one partition below ``next_offset``, in the order of offsets."""
    parameters = {
        "epoch": epoch,
        "topic": topic,
        "partition": partition,
        "next_offset": next_offset,
    }
    with client.query_row_block_stream(_ROWS, parameters=parameters) as stream:
        for block in stream:
            for values in block:
                yield ledger_row(values)


def ledger_row(values: Any) -> Row:
    """A row of ``_ROWS`` as the recount has it."""
    offset, *rest = values
    named = dict(zip(_ROW_COLUMNS[1:], rest, strict=True))
    rest[_ESTIMATED] = bool(named["estimated"])
    rest[_REPORTED_COST] = plain_text(named["reported_cost"])
    rest[_TAGS] = sorted(dict(named["tags"]).items())
    return Row(
        offset,
        named["port_id"],
        named["event_id"],
        named["toUnixTimestamp64Micro(occurred_at)"],
        named["organization_id"],
        named["group_id"],
        named["user_id"],
        named["billing_scope"] == "org",
        named["input_tokens"] + named["output_tokens"],
        named["cost_nano"],
        named["price_status"],
        row_digest(rest),
    )


def plain_text(text: str) -> str:
    """A stored decimal in canonical form; what is none stays as it is."""
    try:
        return plain(Decimal(text)) if text else ""
    except InvalidOperation:
        return text


def read_sums(client: Client, view: str) -> dict[str, Any]:
    """The sums over a view, as exact integers and strings."""
    result = client.query(f"SELECT {', '.join(_SUMS)} FROM {view}")
    return dict(zip(result.column_names, result.result_rows[0], strict=True))


async def read_agreeing_sums(client: Client) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sums of ``usage_ledger`` and ``usage_daily``; asked again while inserts are in flight."""
    ledger: dict[str, Any] = {}
    daily: dict[str, Any] = {}
    for _ in range(DAILY_TRIES):
        ledger = await asyncio.to_thread(read_sums, client, "usage_ledger")
        daily = await asyncio.to_thread(read_sums, client, "usage_daily")
        if ledger == daily:
            break
        await asyncio.sleep(DAILY_PAUSE_S)
    return ledger, daily
