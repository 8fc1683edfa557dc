"""The floor: what aiokafka and msgspec cost when nothing is promised.

``python -m pipeline.bench.floor`` reads the events topic once: getmany, decode, price, fold into
two dicts. No validation beyond the types, no dedupe, no output, nothing durable.
"""

import asyncio
import json
import os
import time

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.core.book import builtin_book
from pipeline.core.events import Event
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.kafka import client_kwargs
from pipeline.settings import load_settings
from pipeline.stream.topics import Topics


class _Usage(msgspec.Struct, gc=False):
    port_id: str
    provider: str
    model: str
    occurred_at: str
    user_id: str = ""
    input_tokens: int = 0
    cached_input_tokens: int = 0
    output_tokens: int = 0


async def run() -> dict[str, float]:
    """Events read, seconds and CPU seconds."""
    settings = load_settings(os.environ, None)
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    price = PriceVersion(RateLog("USD").snapshot(), builtin_book()).price
    decode = msgspec.json.Decoder(_Usage).decode
    consumer = AIOKafkaConsumer(
        **client,
        enable_auto_commit=False,
        # Not ``seek_to_beginning``: it can lose against the reset that ``assign`` has begun.
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=4 * 1024 * 1024,
    )
    await consumer.start()
    try:
        tps = [TopicPartition(topics.events, p) for p in range(settings.partition_count)]
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        for tp in tps:
            await consumer.position(tp)
        ports: dict[str, list[int]] = {}
        users: dict[str, list[int]] = {}
        events, expected = 0, sum(ends.values())
        started_s, cpu_s = time.perf_counter(), time.process_time()
        while events < expected:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=20_000)).values():
                for record in records:
                    usage = decode(record.value or b"")
                    event = Event(
                        "",
                        1_700_000_000_000_000,
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
                            cell = table[name] = [0, 0]
                        cell[0] += tokens
                        cell[1] += cost_nano
                events += len(records)
        return {
            "events": events,
            "seconds": time.perf_counter() - started_s,
            "cpu_s": time.process_time() - cpu_s,
        }
    finally:
        await consumer.stop()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run())))
