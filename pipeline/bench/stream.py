"""``tallyport bench stream``: the worker against the floor and against a plain Faust agent.

One Kafka, one topic with a backlog, one contender at a time, in interleaved rounds: the machine's
mood changes, so only the ratios within a round mean something. The worker runs with everything on
(validation, dedupe, priced blocks, journals, partials, budget states); its rate is taken from the
first to the last priced block that a read_committed subscriber saw.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.core.blocks import decode_block
from pipeline.core.errors import TallyportError
from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment, child_environ
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics, create_or_check
from producers.kafka import Publisher
from producers.steady import steady

FAUST_SECONDS = 15.0
ROUND_TIMEOUT_S = 240.0
POLICIES = (
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
    {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": 10**12},
    {"scope": "user:*", "unit": "cost", "period": "day", "hard_cap": "1000"},
)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Round:
    """Events per second of each contender in one round; the worker's peak memory in MB, and the
    live cells of its tables at the end."""

    floor: float
    worker: float
    faust: float
    worker_mb: float = 0.0
    cells: int = 0


@dataclass(frozen=True, slots=True)
class StreamBench:
    """All rounds, in the order they ran."""

    events: int
    rounds: list[Round]

    def ratio(self, of: Callable[[Round], float]) -> float:
        """The median over the rounds."""
        return statistics.median(of(r) for r in self.rounds)

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers."""
        return {
            "events": self.events,
            "rounds": [
                {
                    "floor": r.floor,
                    "worker": r.worker,
                    "plain_faust": r.faust,
                    "mb": r.worker_mb,
                    "cells": r.cells,
                }
                for r in self.rounds
            ],
            "worker_to_floor": self.ratio(lambda r: r.worker / r.floor),
            "worker_to_plain_faust": self.ratio(lambda r: r.worker / r.faust),
        }


async def run(settings: Settings, events: int, rounds: int, users: int, say: Say) -> StreamBench:
    """Runs everything on a deployment of its own; raises ``TallyportError`` when one part fails.

    ``users`` is how many different ones the events are of: most cells are theirs.
    """
    async with Deployment(settings, parts=()) as deployment:
        done: list[Round] = []
        for number in range(rounds):
            done.append(await _round(deployment, f"bench{number}.", events, users, say))
        return StreamBench(events, done)


async def _round(deployment: Deployment, prefix: str, events: int, users: int, say: Say) -> Round:
    settings = deployment.settings.replaced(topic_prefix=prefix)
    await create_or_check(settings)
    client, topics = client_kwargs(settings), Topics(prefix)
    policies = [policy_from_object(policy) for policy in POLICIES]
    await write_policies(client, topics, "bench", policies)
    say(f"{prefix} filling {events:,} events")
    async with Publisher(client, topics.events) as publisher:
        seed, end = time.time_ns() % 2**32, datetime.now(UTC)
        await publisher.send_many(steady(events, seed, users=users, end=end))
        await publisher.flush()
    floor = await _child(settings, "pipeline.bench.floor")
    floor_rate = floor["events"] / floor["seconds"]
    say(f"{prefix} floor {floor_rate:,.0f} events/s")
    worker_rate, worker_mb = await _worker(deployment, settings, events)
    say(f"{prefix} worker {worker_rate:,.0f} events/s")
    tables = await read_tables(client, topics, list(range(settings.partition_count)))
    cells = sum(len(table.cells) for table in tables.values())
    faust = await _child(settings, "pipeline.bench.plain_faust", str(FAUST_SECONDS))
    faust_rate = faust["events"] / faust["seconds"]
    say(f"{prefix} plain Faust {faust_rate:,.0f} events/s")
    return Round(floor_rate, worker_rate, faust_rate, worker_mb, cells)


async def _child(settings: Settings, module: str, *arguments: str) -> dict[str, float]:
    import os

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        env=child_environ(settings, os.environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(ROUND_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise TallyportError(f"{module} failed: {err.decode(errors='replace')[-2000:]}")
    return json.loads(out.decode().strip().splitlines()[-1])


async def _worker(deployment: Deployment, settings: Settings, events: int) -> tuple[float, float]:
    topics = Topics(settings.topic_prefix)
    consumer = AIOKafkaConsumer(
        **client_kwargs(settings),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    deployment.settings = settings
    child = deployment.launch("worker")
    try:
        tps = [TopicPartition(topics.priced, p) for p in range(settings.partition_count)]
        consumer.assign(tps)
        async with asyncio.timeout(ROUND_TIMEOUT_S):
            rate = await _rate(consumer, events)
        return rate, peak_mb(child.pid)
    except TimeoutError as error:
        raise TallyportError(f"the worker did not finish{child.log_note()}") from error
    finally:
        await consumer.stop()
        child.stop(30.0)


async def _rate(consumer: AIOKafkaConsumer, events: int) -> float:
    taken, first_rows, first_s = 0, 0, 0.0
    while taken < events:
        rows = 0
        for records in (await consumer.getmany(timeout_ms=200)).values():
            rows += sum(len(decode_block(record.value or b"").rows) for record in records)
        if rows and not taken:
            first_s, first_rows = time.perf_counter(), rows
        taken += rows
    return (taken - first_rows) / (time.perf_counter() - first_s)


def peak_mb(pid: int) -> float:
    """The process's peak resident memory, 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        return 0.0
    return 0.0
