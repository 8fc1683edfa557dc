"""A plain Faust agent doing the same job: decode, price, one table write per port and per user.

``python -m pipeline.bench.plain_faust SECONDS`` prints how many events it took in that time. It
has Faust's own changelog topics and nothing of ours: no validation, no dedupe, no ledger.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import faust
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.core.book import builtin_book
from pipeline.core.events import Event
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.kafka import client_kwargs, kafka_address
from pipeline.settings import Settings, load_settings
from pipeline.stream.topics import Topics

START_TIMEOUT_S = 90.0


async def run(seconds: float, scratch: Path) -> dict[str, float]:
    """Events taken and seconds."""
    settings = load_settings(os.environ, None)
    price = PriceVersion(RateLog("USD").snapshot(), builtin_book()).price
    name = f"{settings.topic_prefix}plain-faust-{time.time_ns()}"
    await _create_changelogs(settings, name)
    app = faust.App(
        name,
        broker=f"kafka://{kafka_address(settings)}",
        store="memory://",
        value_serializer="json",
        web_enabled=False,
        autodiscover=False,
        topic_partitions=settings.partition_count,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        datadir=scratch,
    )
    ports = app.Table("ports", default=lambda: [0, 0], partitions=settings.partition_count)
    users = app.Table("users", default=lambda: [0, 0], partitions=settings.partition_count)
    events = app.topic(Topics(settings.topic_prefix).events, value_serializer="json")
    taken = {"events": 0, "first_s": 0.0, "last_s": 0.0}
    begun = asyncio.Event()

    @app.agent(events)
    async def count(stream: Any) -> None:
        async for usage in stream:
            tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
            event = Event(
                "",
                1_700_000_000_000_000,
                usage["port_id"],
                usage["provider"],
                usage["model"],
                input_tokens=usage.get("input_tokens", 0),
                cached_input_tokens=usage.get("cached_input_tokens", 0),
                output_tokens=usage.get("output_tokens", 0),
            )
            cost_nano = price(event).cost_nano or 0
            for table, name in ((ports, usage["port_id"]), (users, usage.get("user_id", ""))):
                tokens_before, cost_before = table[name]
                table[name] = [tokens_before + tokens, cost_before + cost_nano]
            taken["events"] += 1
            taken["last_s"] = time.perf_counter()
            taken["first_s"] = taken["first_s"] or taken["last_s"]
            begun.set()

    await app.start()
    async with asyncio.timeout(START_TIMEOUT_S):
        await begun.wait()
    await asyncio.sleep(seconds)
    return {"events": taken["events"], "seconds": taken["last_s"] - taken["first_s"]}


async def _create_changelogs(settings: Settings, name: str) -> None:
    # Faust would create them too late for its own check of their partition counts.
    admin = AIOKafkaAdminClient(**client_kwargs(settings))
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(f"{name}-{table}-changelog", settings.partition_count, 1)
                for table in ("ports", "users")
            ]
        )
    finally:
        await admin.close()


async def _main(seconds: float, scratch: Path) -> None:
    print(json.dumps(await run(seconds, scratch)), flush=True)
    os._exit(0)  # Faust would flush for many seconds; the figure is taken


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_main(float(sys.argv[1]), Path(folder)))
