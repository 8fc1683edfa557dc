"""``tallyport bench stream --workers N``: so many workers beside one, on the same load.

They share the partitions and are then held still (SIGSTOP) until everything is sent, for less than
their sessions last: neither a rebalance nor the sending is measured. Each worker has a processor of
its own as far as there are some; broker and subscriber have what is left.
"""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocol

from pipeline.bench.backlog import drop, fill, send
from pipeline.bench.contenders import RUN_TIMEOUT_S, ContenderFailed
from pipeline.bench.process_cost import cpu_s, peak_mb
from pipeline.bench.task import Measured, measured
from pipeline.bench.traffic import Load
from pipeline.bench.worker_run import cells_of, covered_by
from pipeline.kafka import client_kwargs
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.app import SESSION_TIMEOUT_S
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics

SHARED_TIMEOUT_S = 90.0
POLL_S = 0.2

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WorkersBench:
    """What one worker and ``workers`` of them measured in each round."""

    load: Load
    workers: int
    rounds: list[tuple[Measured, Measured]] = field(default_factory=list[tuple[Measured, Measured]])

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers; ``to_one`` is the median of the ratios within a round."""
        ratios = [many.events_per_s / one.events_per_s for one, many in self.rounds]
        return {
            "events": self.load.events,
            "to_one": statistics.median(ratios),
            "workers": [
                {
                    "workers": count,
                    "events_per_s": statistics.median(m.events_per_s for m in found),
                    "cpu_s_per_million": statistics.median(m.cpu_us for m in found),
                    "broker_cpu_s_per_million": statistics.median(m.broker_cpu_us for m in found),
                    "peak_mb": statistics.median(m.peak_mb for m in found),
                }
                for count, found in zip(
                    (1, self.workers), zip(*self.rounds, strict=True), strict=True
                )
            ],
        }


async def run(settings: Settings, load: Load, workers: int, rounds: int, say: Say) -> WorkersBench:
    """Runs both in every round, by turns which is first.

    Raises ``ContenderFailed`` when one does not finish, or when their totals differ.
    """
    bench = WorkersBench(load, workers)
    async with Deployment(settings, parts=()) as deployment:
        settings = deployment.settings
        for number in range(rounds):
            seed = time.time_ns() % 2**32
            found: dict[int, Measured] = {}
            for count in (1, workers)[:: -1 if number % 2 else 1]:
                deployment.settings = settings.replaced(topic_prefix=f"workers{number}.{count}.")
                found[count] = await _Run(deployment, load, count).measure(seed)
                say(f"round {number + 1}: {count}: {found[count].events_per_s:,.0f} events/s")
            if found[1].digest != found[workers].digest:
                raise ContenderFailed(f"the totals of {workers} workers are not those of one")
            bench.rounds.append((found[1], found[workers]))
    return bench


class _Run:
    """So many workers on topics of their own."""

    def __init__(self, deployment: Deployment, load: Load, count: int) -> None:
        self._deployment = deployment
        self._settings = deployment.settings
        self._load = load
        self._count = count
        self._workers: list[ChildProcess] = []

    async def measure(self, seed: int) -> Measured:
        settings, topics = self._settings, Topics(self._settings.topic_prefix)
        await fill(settings, ())
        consumer = AIOKafkaConsumer(
            **client_kwargs(settings),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            partitions = list(range(settings.partition_count))
            consumer.assign([TopicPartition(topics.priced, p) for p in partitions])
            await self._start()
            covered, cost = await self._cover(consumer, seed)
            tables = await read_tables(client_kwargs(settings), topics, partitions)
            return measured(covered, cost, cells_of(tables))
        except TimeoutError as error:
            raise ContenderFailed(f"{self._count} workers did not finish{self._notes()}") from error
        finally:
            await consumer.stop()
            for worker in self._workers:
                worker.stop(30.0)
            await drop(settings)

    async def _start(self) -> None:
        """Returns when each worker has its share of the partitions."""
        usable = sorted(os.sched_getaffinity(0))
        for number in range(self._count):
            self._deployment.settings = self._settings.replaced(
                worker_cpu=usable[-1 - number % len(usable)]
            )
            name = f"worker-{number}"
            self._workers.append(self._deployment.launch("worker"))
            self._deployment.children[name] = self._deployment.children.pop("worker")
            await self._deployment.wait_ready(name)
        admin = AIOKafkaAdminClient(**client_kwargs(self._settings))
        await admin.start()
        try:
            deadline_s = time.monotonic() + SHARED_TIMEOUT_S
            while await _shares(admin, self._settings) != self._count:
                if time.monotonic() > deadline_s:
                    raise ContenderFailed(f"the workers do not share the work{self._notes()}")
                await asyncio.sleep(POLL_S)
        finally:
            await admin.close()

    async def _cover(self, consumer: AIOKafkaConsumer, seed: int) -> tuple[int, dict[str, float]]:
        """How many events were covered, and what that cost."""
        records = [*self._load.made(seed)]
        stopped_s = time.monotonic()
        self._signal(signal.SIGSTOP)
        try:
            await send(self._settings, records)
        finally:
            self._signal(signal.SIGCONT)
        if time.monotonic() - stopped_s > SESSION_TIMEOUT_S - 2:
            raise ContenderFailed("sending took so long that sessions may have ended; fewer events")
        covered, started_s, before_s = 0, time.perf_counter(), self._cpu_s()
        async with asyncio.timeout(RUN_TIMEOUT_S):
            while covered < self._load.events:
                covered += covered_by(await consumer.getmany(timeout_ms=200))
                if any(worker.exit_status() is not None for worker in self._workers):
                    raise ContenderFailed(f"a worker ended{self._notes()}")
        seconds = time.perf_counter() - started_s
        used_s = [now_s - then_s for now_s, then_s in zip(self._cpu_s(), before_s, strict=True)]
        return covered, {
            "seconds": seconds,
            "cpu_s": used_s[0],
            "broker_cpu_s": used_s[1],
            "peak_mb": max(peak_mb(worker.pid) for worker in self._workers),
        }

    def _signal(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.send(number)

    def _cpu_s(self) -> tuple[float, float]:
        """Processor seconds so far: of the workers, of the broker."""
        kafka = self._deployment.kafka_server
        workers_s = sum(cpu_s(worker.pid) for worker in self._workers)
        return workers_s, 0.0 if kafka is None else cpu_s(kafka.pid)

    def _notes(self) -> str:
        return "".join(worker.log_note() for worker in self._workers)


async def _shares(admin: AIOKafkaAdminClient, settings: Settings) -> int:
    """How many members of the workers' group have partitions, once it is settled."""
    group = Topics(settings.topic_prefix).worker_group
    [answer] = await admin.describe_consumer_groups([group])
    [described] = answer.to_object()["groups"]
    if described["state"] != "Stable":
        return 0
    assignments = [member["member_assignment"] for member in described["members"]]
    return sum(bool(ConsumerProtocol.ASSIGNMENT.decode(one).partitions()) for one in assignments)
