"""One run of a worker on a topic with a backlog, seen by a read_committed subscriber."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import ConsumerRecord

from pipeline.bench.contenders import RUN_TIMEOUT_S, ContenderFailed
from pipeline.bench.job import Amounts, Key
from pipeline.bench.process_cost import Stopwatch
from pipeline.bench.task import Measured, measured
from pipeline.kafka import client_kwargs
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.tables import TableView, read_tables
from pipeline.stream.topics import Topics


class _Span(msgspec.Struct, array_like=True, gc=False):
    """The head of a priced block: what it covers. The rows are the subscriber's own business."""

    version: int
    epoch: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int


_span_decoder = msgspec.msgpack.Decoder(_Span)


async def run_worker(
    deployment: Deployment,
    settings: Settings,
    events: int,
    begun: Callable[[int], Awaitable[None]] | None = None,
) -> tuple[Measured, dict[int, TableView]]:
    """The cost from the first to the last priced block seen, and the worker's tables.

    ``events`` of ``Measured`` are those of all blocks but the first ones, after which ``begun`` is
    called with the worker's process id. Raises ``ContenderFailed`` when the worker does not get to
    the end of the topic.
    """
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
    kafka = deployment.kafka_server
    broker_pid = kafka.pid if kafka is not None else 0
    try:
        consumer.assign([TopicPartition(topics.priced, p) for p in range(settings.partition_count)])
        async with asyncio.timeout(RUN_TIMEOUT_S):
            covered, cost = await _cover(consumer, events, child, broker_pid, begun)
        partitions = list(range(settings.partition_count))
        tables = await read_tables(client_kwargs(settings), topics, partitions)
        return measured(covered, cost, cells_of(tables)), tables
    except TimeoutError as error:
        raise ContenderFailed(f"the worker did not finish{child.log_note()}") from error
    finally:
        await consumer.stop()
        child.stop(30.0)


def covered_by(blocks: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> int:
    """How many offsets of the input some priced blocks cover."""
    spans = [_span_decoder.decode(one.value or b"") for of in blocks.values() for one in of]
    return sum(span.next_offset - span.first_offset for span in spans)


def cells_of(tables: dict[int, TableView]) -> list[tuple[Key, Amounts]]:
    """The cells of ports and users."""
    return [
        (key, totals[:3])
        for table in tables.values()
        for key, totals in table.cells.items()
        if key[0].startswith(("port:", "user:"))
    ]


async def _cover(
    consumer: AIOKafkaConsumer,
    events: int,
    child: ChildProcess,
    broker_pid: int,
    begun: Callable[[int], Awaitable[None]] | None,
) -> tuple[int, dict[str, float]]:
    """How many events the blocks after the first ones cover, and what they cost.

    So few events that all came at once count from the start of the process on.
    """
    covered, first = 0, 0
    stopwatch, is_first = Stopwatch(child.pid, broker_pid), True
    while covered < events:
        covered += covered_by(await consumer.getmany(timeout_ms=200))
        if is_first and 0 < covered < events:
            is_first, stopwatch, first = False, Stopwatch(child.pid, broker_pid), covered
            if begun is not None:
                await begun(child.pid)
        if covered < events and child.exit_status() is not None:
            raise ContenderFailed(f"the worker ended{child.log_note()}")
    return covered - first, stopwatch.read()
