"""``tallyport bench scale``: what cells, remembered ids and a worker's start cost as they grow.

Each size has topics of its own, with prepared journals (``bench.prepared``), one worker, and the
same load, of users who have cells there. So what differs between two sizes is only how much the
worker holds.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from pipeline.bench.backlog import drop
from pipeline.bench.heartbeats import following, until_contained
from pipeline.bench.load import LoadProcess, Sending
from pipeline.bench.prepared import USED, PreparedTable, write_table
from pipeline.bench.process_cost import Stopwatch, peak_mb, resident_mb
from pipeline.bench.recovery import Say
from pipeline.core.cells import CellValue
from pipeline.core.errors import TallyportError
from pipeline.core.policies import policy_from_object
from pipeline.core.windows import DAY_MS
from pipeline.kafka import client_kwargs
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.epoch import begin_epoch, identities
from pipeline.stream.policy_log import write_policies
from pipeline.stream.reader import end_offsets
from pipeline.stream.topics import Topics, create_or_check
from producers.partitions import home_partition

PORTS = 100
DAYS = 10
"""A user has a cell on each of so many days."""
STRETCH = 3
UNCOUNTED = 1
"""So many rounds go before those that count."""
READY_TIMEOUT_S = 300.0
CONTAINED_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
MB = 1024**2
POLICIES = (
    {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1000000"},
    {"scope": "user:*", "unit": "cost", "period": "rolling-30d", "hard_cap": "1000"},
)
FEW, SPREAD = "few", "spread"
"""The loads: ``few`` users, the same number at every size, and ``spread`` over all users."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much a worker holds; ``cells`` are cut to a multiple of ``DAYS`` × ``PORTS``."""

    cells: int
    ids: int

    @property
    def users(self) -> int:
        """Whose cells they are: a multiple of ``PORTS``, as each user has one port."""
        return max(1, self.cells // DAYS // PORTS) * PORTS

    def values(self, partition: int, partitions: int, today: int) -> list[CellValue]:
        """The cells of the ``steady`` users whose port is at home on ``partition``."""
        homes = [home_partition(f"port-{port:04d}".encode(), partitions) for port in range(PORTS)]
        return [
            (f"user:user-{user:05d}", today - back, USED)
            for user in range(self.users)
            if homes[user % PORTS] == partition
            for back in range(DAYS)
        ]


@dataclass(frozen=True, slots=True)
class Traffic:
    """``events`` are sent ``rounds`` times, ``rate`` a second; None: within a second, a backlog."""

    events: int
    rounds: int
    rate: int | None = None

    def sending(self, users: int) -> Sending:
        """One round, over so many users."""
        rate = min(self.events, self.rate or self.events)
        return Sending(rate, self.events // rate, ports=PORTS, users=users)


@dataclass(slots=True)
class SizeRow:
    """What one size cost. ``start_s`` is a start on what was prepared, ``restart_s`` one on what
    the worker left, states included; memory is resident, between that start and the first load."""

    size: Size
    start_s: float = 0.0
    restart_s: float = 0.0
    rss_mb: float = 0.0
    peak_mb: float = 0.0
    cpu_us: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def median_us(self, load: str) -> float | None:
        """Processor time of the worker for an event, the median of the rounds."""
        return median(self.cpu_us[load]) if load in self.cpu_us else None


@dataclass(frozen=True, slots=True)
class Series:
    """Sizes that differ in one count, in the order in which they were asked for."""

    rows: list[SizeRow]

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers; ratios are to the first size."""
        return {"sizes": [self._row(row) for row in self.rows], "bytes_each": self._bytes_each()}

    def _row(self, row: SizeRow) -> dict[str, object]:
        first = self.rows[0].median_us(FEW) or 0.0
        told: dict[str, object] = {
            "cells": row.size.users * DAYS,
            "ids": row.size.ids,
            "start_s": round(row.start_s, 1),
            "restart_s": round(row.restart_s, 1),
            "rss_mb": round(row.rss_mb, 1),
            "peak_mb": round(row.peak_mb, 1),
        }
        for load in (FEW, SPREAD):
            us = row.median_us(load)
            told[f"{load}_us"] = None if us is None else round(us, 1)
            told[f"{load}_ratio"] = None if us is None else round(us / first, 2)
        return told

    def _bytes_each(self) -> float | None:
        """Memory between the smallest and the largest size for each cell and id more, None where
        only one was asked for."""
        counts = [row.size.cells + row.size.ids for row in self.rows]
        least, most = counts.index(min(counts)), counts.index(max(counts))
        if counts[least] == counts[most]:
            return None
        more_mb = self.rows[most].rss_mb - self.rows[least].rss_mb
        return round(more_mb * MB / (counts[most] - counts[least]), 1)


async def run(deployment: Deployment, sizes: list[Size], traffic: Traffic, say: Say) -> Series:
    """One size after the other, each on topics of its own; raises ``TallyportError``."""
    rows: list[SizeRow] = []
    before = deployment.settings
    for size in sizes:
        settings = before.replaced(topic_prefix=f"scale-{size.cells}-{size.ids}.")
        deployment.settings = settings
        try:
            rows.append(await _SizeRun(deployment, size, traffic, say).run())
        except TimeoutError as error:
            raise TallyportError("the states did not come to contain what was sent") from error
        finally:
            deployment.settings = before
        await drop(settings)
    return Series(rows)


class _SizeRun:
    """One size, from its topics to its row."""

    def __init__(self, deployment: Deployment, size: Size, traffic: Traffic, say: Say) -> None:
        self._deployment = deployment
        self._settings: Settings = deployment.settings
        self._client: dict[str, Any] = client_kwargs(self._settings)
        self._topics = Topics(self._settings.topic_prefix)
        self._partitions = self._settings.partition_count
        self._size = size
        self._traffic = traffic
        self._say = say
        self._row = SizeRow(size)

    async def run(self) -> SizeRow:
        self._say(f"{self._size.cells:,} cells and {self._size.ids:,} ids: writing the journals")
        await self._prepare()
        child, self._row.start_s = await self._start()
        child.stop(STOP_TIMEOUT_S)
        child, self._row.restart_s = await self._start()
        try:
            self._row.rss_mb = resident_mb(child.pid)
            for load, users in self._loads():
                self._say(f"{load}: {self._traffic.events:,} events over {users:,} users")
                costs_us = [
                    await self._cost_us(child, self._traffic.sending(users))
                    for _ in range(UNCOUNTED + self._traffic.rounds)
                ]
                self._row.cpu_us[load] = costs_us[UNCOUNTED:]
            self._row.peak_mb = peak_mb(child.pid)
        finally:
            child.stop(STOP_TIMEOUT_S)
        return self._row

    async def _prepare(self) -> None:
        await create_or_check(self._settings)
        now_ms = int(time.time() * 1000)
        found = await identities(self._client, self._topics)
        epoch = await begin_epoch(self._client, self._topics, found, self._partitions, 0, now_ms)
        policies = [policy_from_object(policy) for policy in POLICIES]
        await write_policies(self._client, self._topics, "bench", policies)
        ids = self._size.ids // self._partitions
        for partition in range(self._partitions):
            values = self._size.values(partition, self._partitions, now_ms // DAY_MS)
            table = PreparedTable(partition, values, ids, STRETCH, now_ms, epoch.epoch)
            await write_table(self._client, self._topics, table)

    async def _start(self) -> tuple[ChildProcess, float]:
        """A worker that has published every state, and the seconds until it was ready."""
        async with following(self._client, self._topics, self._partitions) as consumer:
            began_s = time.monotonic()
            child = self._deployment.launch("worker")
            await self._deployment.wait_ready("worker", READY_TIMEOUT_S)
            took_s = time.monotonic() - began_s
            await until_contained(consumer, {}, CONTAINED_TIMEOUT_S)
        return child, took_s

    def _loads(self) -> Iterator[tuple[str, int]]:
        yield FEW, PORTS
        if self._size.users > PORTS:
            yield SPREAD, self._size.users

    async def _cost_us(self, child: ChildProcess, sending: Sending) -> float:
        """Processor time of the worker for each event of one round."""
        stopwatch = Stopwatch(child.pid, 0)
        await self._send(sending)
        return stopwatch.read()["cpu_s"] / sending.events * 1e6

    async def _send(self, sending: Sending) -> None:
        """Returns when the states contain all of it."""
        load = await LoadProcess.start(self._settings, sending)
        try:
            await load.took_s()
        finally:
            await load.stop()
        events = self._topics.events
        async with following(self._client, self._topics, self._partitions) as consumer:
            ends = await end_offsets(self._client, events, range(self._partitions))
            last = {partition: end - 1 for partition, end in ends.items()}
            await until_contained(consumer, last, CONTAINED_TIMEOUT_S)
