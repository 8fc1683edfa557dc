"""Reading ``usage.rejected`` from its end: what was refused last, and why.

A partition is read backwards in bounded steps, so an answer costs the same however much was
rejected. Values are cut to a preview; the record itself stays where it is.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from pipeline import fetched_records
from pipeline.core.errors import TallyportError
from pipeline.core.windows import format_ms
from pipeline.stream.reader import topic_partitions

fetched_records.install()

READ_TIMEOUT_S = 10.0
PREVIEW_BYTES = 2_000
PARSED_BYTES = 64 * 1024
"""Larger values are no events; whose they were is not looked for."""
_STEPS = 20
"""So many steps back in one partition at most, for one answer."""
_FETCH_BYTES = 4 * 1024 * 1024


class RejectedLogError(TallyportError):
    """The rejected records cannot be read."""


class Rejected(msgspec.Struct, frozen=True):
    """One refused record. ``port_id`` is what its body says, None where it says nothing."""

    rejected_at: str
    reason: str
    detail: str
    source_topic: str
    source_partition: int | None
    source_offset: int | None
    partition: int
    offset: int
    port_id: str | None
    size_bytes: int
    preview: str
    is_cut: bool


class RejectedPage(NamedTuple):
    """Newest first. ``before`` is where older ones go on, by partition; None at the end."""

    records: list[Rejected]
    before: dict[int, int] | None


class RejectedCount(NamedTuple):
    """How many were refused since a time, by reason; a lower bound unless ``is_complete``."""

    by_reason: dict[str, int]
    is_complete: bool


Wanted = Callable[[Rejected], bool]


async def read_rejected(
    client: Mapping[str, Any],
    topic: str,
    limit: int,
    wanted: Wanted,
    before: Mapping[int, int] | None = None,
) -> RejectedPage:
    """The ``limit`` newest ones that are ``wanted``, below the offsets ``before``.

    A page may hold fewer, also none, and still go on: one answer looks at a bounded number of
    records. Raises ``RejectedLogError``.
    """
    async with _reading(client, topic) as consumer:
        tps = await _partitions(consumer, topic)
        given = {} if before is None else before
        starts = await consumer.beginning_offsets(tps)
        ends = await consumer.end_offsets(tps)
        found: list[tuple[int, Rejected]] = []
        uppers: dict[int, int] = {}
        for tp in tps:
            end: int = ends[tp]
            upper = min(end, given.get(tp.partition, end))
            records, uppers[tp.partition] = await _read_back(
                consumer, tp, starts[tp], upper, limit, wanted
            )
            found += records
        found.sort(key=lambda one: (one[0], one[1].partition, one[1].offset), reverse=True)
        for _, left in found[limit:]:  # newest first, so the last one set is the lowest
            uppers[left.partition] = max(uppers[left.partition], left.offset + 1)
        more = any(uppers[tp.partition] > starts[tp] for tp in tps)
        return RejectedPage([one for _, one in found[:limit]], uppers if more else None)


async def count_rejected(
    client: Mapping[str, Any], topic: str, since_ms: int, wanted: Wanted, most: int
) -> RejectedCount:
    """Counts those since ``since_ms`` by reason, looking at about ``most`` records at most.

    Raises ``RejectedLogError``.
    """
    async with _reading(client, topic) as consumer:
        tps = await _partitions(consumer, topic)
        ends = await consumer.end_offsets(tps)
        since = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
        counts: Counter[str] = Counter()
        is_complete = True
        for tp in tps:
            at = since.get(tp)
            if at is None:
                continue
            lower = max(at.offset, ends[tp] - max(1, most // len(tps)))
            is_complete = is_complete and lower == at.offset
            for _, one in await _read_range(consumer, tp, lower, ends[tp], wanted):
                counts[one.reason] += 1
        return RejectedCount(dict(sorted(counts.items())), is_complete)


@asynccontextmanager
async def _reading(client: Mapping[str, Any], topic: str) -> AsyncGenerator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=50,
        fetch_max_bytes=_FETCH_BYTES,
    )
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            await consumer.start()
            yield consumer
    except TimeoutError as error:
        raise RejectedLogError(f"{topic}: cannot be read: no answer in time") from error
    except KafkaError as error:
        raise RejectedLogError(f"{topic}: cannot be read: {error}") from error
    finally:
        await consumer.stop()


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in sorted(await topic_partitions(consumer, topic))]


async def _read_back(
    consumer: AIOKafkaConsumer,
    tp: TopicPartition,
    start: int,
    upper: int,
    limit: int,
    wanted: Wanted,
) -> tuple[list[tuple[int, Rejected]], int]:
    """Up to ``limit`` records of one partition below ``upper``, and below what to go on."""
    found: list[tuple[int, Rejected]] = []
    for _ in range(_STEPS):
        if upper <= start or len(found) >= limit:
            break
        lower = max(start, upper - 2 * limit)
        found = await _read_range(consumer, tp, lower, upper, wanted) + found
        upper = lower
    if len(found) > limit:
        found = found[-limit:]
        upper = found[0][1].offset
    return found, upper


async def _read_range(
    consumer: AIOKafkaConsumer, tp: TopicPartition, lower: int, upper: int, wanted: Wanted
) -> list[tuple[int, Rejected]]:
    consumer.assign([tp])
    consumer.seek(tp, lower)
    found: list[tuple[int, Rejected]] = []
    while await consumer.position(tp) < upper:
        batches = await consumer.getmany(tp, timeout_ms=200)
        for record in batches.get(tp, ()):
            if record.offset < upper:
                one = _rejected(record)
                if wanted(one):
                    found.append((record.timestamp, one))
    return found


def _rejected(record: ConsumerRecord) -> Rejected:
    named = {
        name: (value or b"").decode("utf-8", "replace") for name, value in record.headers
    }  # the worker's own come after those of the producer
    value: bytes = record.value or b""
    return Rejected(
        rejected_at=format_ms(record.timestamp),
        reason=named.get("reason", ""),
        detail=named.get("detail", ""),
        source_topic=named.get("source-topic", ""),
        source_partition=_number(named.get("source-partition")),
        source_offset=_number(named.get("source-offset")),
        partition=record.partition,
        offset=record.offset,
        port_id=port_in(value),
        size_bytes=len(value),
        preview=value[:PREVIEW_BYTES].decode("utf-8", "replace"),
        is_cut=len(value) > PREVIEW_BYTES,
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() else None


def port_in(value: bytes) -> str | None:
    """The port that a record's body names, in an envelope or not; None where it names none."""
    if len(value) > PARSED_BYTES:
        return None
    try:
        body = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    for holder in (body, body.get("data")):
        found = holder.get("port_id") if isinstance(holder, dict) else None
        if isinstance(found, str) and found:
            return found
    return None
