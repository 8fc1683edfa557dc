"""``tallyport bench recovery``: how soon a killed worker's partitions are served again.

The journals of a large table are written by the production encoders, flush by flush, until each is
``stretch`` times as long as what of it is live. Then two workers share the partitions, one of them
is killed, and a subscriber waits until the heartbeat of every partition has passed an event that
was sent after the kill. The stages are what the surviving worker says of itself.
"""

import asyncio
import os
import re
import time
import urllib.request
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.bench.process_cost import peak_mb
from pipeline.core.budgets import is_heartbeat, parse_heartbeat
from pipeline.core.errors import CorruptRecord, TallyportError
from pipeline.core.partials import CellValue
from pipeline.core.policies import policy_from_object
from pipeline.core.totals import SourceTotals
from pipeline.core.windows import DAY_MS
from pipeline.kafka import client_kwargs
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.deployment import Deployment
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import Settings
from pipeline.stream.epoch import begin_epoch, identities
from pipeline.stream.id_journal import IdJournal
from pipeline.stream.journal import Journal, Position
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics, create_or_check
from pipeline.stream.transaction import MAX_BATCH_BYTES, MAX_REQUEST_BYTES, Record, send_records

CELL_BYTES = 48
DAYS = 30
FLUSH_CELLS = 4_000
FLUSH_IDS = 5_000
SERVED_TIMEOUT_S = 300.0
POLICIES = (
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
    {"scope": "user:*", "unit": "cost", "period": "rolling-30d", "hard_cap": "1000"},
)
STAGES = ("own", "totals", "tables", "merges")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill. Times in seconds since it; ``stages`` are the survivor's own, in order."""

    cells: int
    ids: int
    journal_mb: float
    served_s: float
    stages: dict[str, float]
    before_mb: float
    peak_mb: float

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers. ``noticed`` is what the group took to notice and rebalance,
        with the first flush after the takeover."""
        rest_s = self.served_s - sum(self.stages.values())
        return {
            "cells": self.cells,
            "ids": self.ids,
            "journal_mb": round(self.journal_mb),
            "served_s": round(self.served_s, 1),
            "noticed_s": round(rest_s, 1),
            **{f"{name}_s": round(seconds, 1) for name, seconds in self.stages.items()},
            "before_mb": round(self.before_mb),
            "peak_mb": round(self.peak_mb),
        }


async def run(settings: Settings, cells: int, ids: int, stretch: int, say: Say) -> Recovery:
    """Runs everything on a deployment of its own; raises ``TallyportError`` when one part fails."""
    async with Deployment(settings, parts=()) as deployment:
        settings = deployment.settings
        await create_or_check(settings)
        client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
        now_ms = int(time.time() * 1000)
        count = settings.partition_count
        ids_now = await identities(client, topics)
        epoch = await begin_epoch(client, topics, ids_now, count, 0, now_ms)
        policies = [policy_from_object(policy) for policy in POLICIES]
        await write_policies(client, topics, "bench", policies)
        say(f"writing the journals of {cells:,} cells and {ids:,} ids")
        written = 0
        for partition in range(count):
            table = _Table(partition, cells // count, ids // count, stretch, now_ms, epoch.epoch)
            written += await _write(client, topics, partition, table)
        say(f"{written / 1e6:,.0f} MB are written; starting two workers")
        first, _ = await _worker(deployment, "first")
        second, port = await _worker(deployment, "second")
        await _served(settings, say)
        before_mb = _resident_mb(second.pid)
        _forget_peak(second.pid)
        say("killing one of the two workers")
        killed_s = time.monotonic()
        first.kill()
        await _served(settings, say)
        served_s = time.monotonic() - killed_s
        return Recovery(
            cells, ids, written / 1e6, served_s, _stages(port), before_mb, peak_mb(second.pid)
        )


class _Table:
    """A synthetic table and the records of its journals, made flush by flush."""

    def __init__(
        self, partition: int, cells: int, ids: int, stretch: int, now_ms: int, epoch: int
    ) -> None:
        self._random = Random(partition)
        self._ids = ids
        self._now_ms = now_ms
        self._limit_bytes = stretch * cells * CELL_BYTES
        self._totals = SourceTotals()
        today = now_ms // DAY_MS
        self._values: list[CellValue] = [
            (
                f"user:user-{partition}-{number // DAYS:06d}",
                today - number % DAYS,
                (3, 9_000, 12_345_678, 12_345_678, 0, 0),
            )
            for number in range(cells)
        ]
        for value in self._values:
            self._totals.put(*value)
        oldest_day = today - DAYS
        self._position = Position(
            epoch=epoch, watermark_ms=now_ms, oldest_day=oldest_day, cells=cells
        )

    def flushes(self) -> Iterator[tuple[list[Record], list[Record]]]:
        """The records for the journal of totals, and for that of ids, flush by flush."""
        journal, ids = Journal(), IdJournal()
        written, at = 0, 0
        while written < self._limit_bytes or at < len(self._values) or ids.count < self._ids:
            first = at % max(1, len(self._values))
            changed = self._values[first : first + FLUSH_CELLS]
            at += FLUSH_CELLS
            id_records = self._id_records(ids)
            self._position = msgspec.structs.replace(
                self._position,
                flush=self._position.flush + 1,
                accepted=ids.count,
                ids=ids.count,
            )
            totals = [Record(*r) for r in journal.records(self._position, changed, self._totals)]
            written += sum(len(record.value or b"") for record in totals)
            yield totals, id_records

    def _id_records(self, ids: IdJournal) -> list[Record]:
        count = min(FLUSH_IDS, self._ids - ids.count)
        if count <= 0:
            return []
        packed = self._random.randbytes(16 * count)
        keys = [packed[at : at + 16] for at in range(0, len(packed), 16)]
        left = self._ids - ids.count
        times_ms = [self._now_ms - left * 60] * count
        return [Record(*record) for record in ids.records(keys, times_ms, 0)]


async def _write(client: dict[str, Any], topics: Topics, partition: int, table: _Table) -> int:
    """Writes the journals of one partition; returns how many bytes."""
    written = 0
    producer = AIOKafkaProducer(
        **client, max_batch_size=MAX_BATCH_BYTES, max_request_size=MAX_REQUEST_BYTES
    )
    await producer.start()
    try:
        for totals, ids in table.flushes():
            sent = await send_records(producer, topics.totals, partition, totals)
            sent += await send_records(producer, topics.ids, partition, ids)
            for future, _ in sent:
                await future
            written += sum(len(record.value or b"") for record in (*totals, *ids))
    finally:
        await producer.stop()
    return written


async def _worker(deployment: Deployment, name: str) -> tuple[ChildProcess, int]:
    """A ready worker, and the port of its health."""
    settings = deployment.settings
    port = free_port()
    deployment.settings = settings.replaced(health_port=port)
    child = deployment.launch("worker")
    deployment.children[name] = deployment.children.pop("worker")
    deployment.settings = settings
    await deployment.wait_ready(name, SERVED_TIMEOUT_S)
    return child, port


async def _served(settings: Settings, say: Say) -> None:
    """Sends one event to every partition and waits until all heartbeats have passed them."""
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    async with _following(client, topics, settings.partition_count) as consumer:
        wanted = await _send_one_each(client, topics, settings.partition_count)
        waiting = set(range(settings.partition_count))
        async with asyncio.timeout(SERVED_TIMEOUT_S):
            while waiting:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        if is_heartbeat(record.key or b"") and _passed(record, wanted):
                            waiting.discard(record.partition)
    say("every partition is served")


def _passed(record: ConsumerRecord, wanted: dict[int, int]) -> bool:
    try:
        beat = parse_heartbeat(record.key or b"", record.value or b"")
    except CorruptRecord:
        return False
    return all(beat.through.get(partition, 0) > offset for partition, offset in wanted.items())


@asynccontextmanager
async def _following(
    client: dict[str, Any], topics: Topics, partitions: int
) -> AsyncGenerator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **client, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topics.state, partition) for partition in range(partitions)]
        consumer.assign(tps)
        await consumer.seek_to_end(*tps)
        for tp in tps:
            await consumer.position(tp)
        yield consumer
    finally:
        await consumer.stop()


async def _send_one_each(client: dict[str, Any], topics: Topics, partitions: int) -> dict[int, int]:
    """Offsets by partition. A body that is no event will do: it is rejected in order."""
    async with AIOKafkaProducer(**client, acks="all") as producer:
        value = datetime.now(UTC).isoformat().encode()
        sent = [
            await producer.send_and_wait(topics.events, value, partition=partition)
            for partition in range(partitions)
        ]
    return {metadata.partition: metadata.offset for metadata in sent}


def _stages(port: int) -> dict[str, float]:
    """What the last takeover took, from the worker's own metrics."""
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    pattern = r'^tallyport_takeover_seconds\{stage="(\w+)"\} (\S+)$'
    found = {name: float(seconds) for name, seconds in re.findall(pattern, text, re.MULTILINE)}
    if set(found) != set(STAGES):
        raise TallyportError("the worker does not tell how long its takeover took")
    return {name: found[name] for name in STAGES}


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def _forget_peak(pid: int) -> None:
    """Lets the kernel count the process's peak memory anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
