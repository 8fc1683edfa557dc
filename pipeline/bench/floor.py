"""The floor: what aiokafka and msgspec cost when nothing is promised.

``python -m pipeline.bench.floor TASK`` reads the events topic once: getmany, decode, price, fold
into cells. No validation beyond the types, no dedupe, no output, nothing durable. Variant
``validated`` decodes and validates with the worker's codec instead, as the peers do: the same job
without any framework.
"""

import asyncio
from collections.abc import Callable, Iterable

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.bench.job import Cell, DayTotals, Folding, built_in_prices
from pipeline.bench.task import Measured, Task, answer, measured, task_of_this_process
from pipeline.core.events import Event
from pipeline.core.timestamps import parse_rfc3339_us
from pipeline.core.totals import DAY_US

VALIDATED = "validated"


class _Usage(msgspec.Struct, gc=False):
    port_id: str
    provider: str
    model: str
    occurred_at: str
    user_id: str = ""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


class _Bare:
    """Decodes eight fields and their types, and nothing else."""

    def __init__(self) -> None:
        self._price = built_in_prices().price
        self._decode = msgspec.json.Decoder(_Usage).decode
        self.totals = DayTotals()

    def fold(self, values: Iterable[bytes | None]) -> None:
        decode, price = self._decode, self._price
        day, ports, users = -1, dict[str, Cell](), dict[str, Cell]()
        for value in values:
            usage = decode(value or b"")
            at_us = parse_rfc3339_us(usage.occurred_at) or 0
            if at_us // DAY_US != day:
                day = at_us // DAY_US
                ports = self.totals.ports.setdefault(day, {})
                users = self.totals.users.setdefault(day, {})
            event = Event(
                "",
                at_us,
                usage.port_id,
                usage.provider,
                usage.model,
                input_tokens=usage.input_tokens,
                cached_input_tokens=usage.cached_input_tokens,
                output_tokens=usage.output_tokens,
            )
            cost_nano = price(event).cost_nano or 0
            tokens = usage.input_tokens + usage.output_tokens
            for table, name in ((ports, usage.port_id), (users, usage.user_id)):
                cell = table.get(name)
                if cell is None:
                    cell = table[name] = [0, 0, 0]
                cell[0] += 1
                cell[1] += tokens
                cell[2] += cost_nano


async def run(task: Task) -> Measured:
    """Reads the topic to the end of the task."""
    loop = Folding() if task.variant == VALIDATED else _Bare()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=task.kafka,
        enable_auto_commit=False,
        # Not ``seek_to_beginning``: it can lose against the reset that ``assign`` has begun.
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(task.topic, number) for number in range(task.partitions)]
        consumer.assign(tps)
        for tp in tps:
            await consumer.position(tp)
        return await _read(consumer, task, loop.fold, loop.totals)
    finally:
        await consumer.stop()


async def _read(
    consumer: AIOKafkaConsumer,
    task: Task,
    fold: Callable[[Iterable[bytes | None]], None],
    totals: DayTotals,
) -> Measured:
    events, stopwatch = 0, task.stopwatch()
    while events < task.events:
        for records in (await consumer.getmany(timeout_ms=1000, max_records=20_000)).values():
            fold([record.value for record in records])
            events += len(records)
    return measured(events, stopwatch.read(), totals.cells())


if __name__ == "__main__":
    answer(asyncio.run(run(task_of_this_process())))
