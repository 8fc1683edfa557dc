"""``tallyport bench recovery``: how soon a killed worker's partitions are served again.

The journals of a large table are written by the production encoders, flush by flush, until each is
``stretch`` times as long as what of it is live. Then two workers share the partitions, one of them
is killed, and a subscriber waits until the heartbeat of every partition has passed an event that
was sent after the kill. The stages are what the surviving worker says of itself.
"""

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from pipeline.bench.heartbeats import following, until_contained
from pipeline.bench.prepared import USED, PreparedTable, write_table
from pipeline.bench.process_cost import peak_mb, resident_mb
from pipeline.core.cells import CellValue
from pipeline.core.errors import TallyportError
from pipeline.core.policies import policy_from_object
from pipeline.core.windows import DAY_MS
from pipeline.kafka import client_kwargs
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.deployment import Deployment
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import Settings
from pipeline.stream.epoch import begin_epoch, identities
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics, create_or_check

DAYS = 30
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
            values = _cells(partition, cells // count, now_ms // DAY_MS)
            table = PreparedTable(partition, values, ids // count, stretch, now_ms, epoch.epoch)
            written += await write_table(client, topics, table)
        say(f"{written / 1e6:,.0f} MB are written; starting two workers")
        first, _ = await _worker(deployment, "first")
        second, port = await _worker(deployment, "second")
        await _served(settings, say)
        before_mb = resident_mb(second.pid)
        _forget_peak(second.pid)
        say("killing one of the two workers")
        killed_s = time.monotonic()
        first.kill()
        await _served(settings, say)
        served_s = time.monotonic() - killed_s
        return Recovery(
            cells, ids, written / 1e6, served_s, _stages(port), before_mb, peak_mb(second.pid)
        )


def _cells(partition: int, count: int, today: int) -> list[CellValue]:
    return [
        (f"user:user-{partition}-{number // DAYS:06d}", today - number % DAYS, USED)
        for number in range(count)
    ]


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
    async with following(client, topics, settings.partition_count) as consumer:
        wanted = await _send_one_each(client, topics, settings.partition_count)
        await until_contained(consumer, wanted, SERVED_TIMEOUT_S)
    say("every partition is served")


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


def _forget_peak(pid: int) -> None:
    """Lets the kernel count the process's peak memory anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
