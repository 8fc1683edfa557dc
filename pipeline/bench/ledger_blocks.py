"""Priced blocks for the benchmark of the sink, as a worker would send them."""

import random
import time
from typing import Any

from pipeline.core.blocks import BLOCK_VERSION, ROW_COLUMNS, PricedBlock
from pipeline.core.events import Event

PARTITIONS = 4
BLOCK_ROWS = 2_000
_TOPIC = "usage.events"
_PRICE = {"rate_id": "book", "price_status": "priced", "price_estimated": False}
_EMPTY = Event(event_id="", occurred_at_us=0, port_id="", provider="openai", model="")


def priced_blocks(
    events: int, *, start: int = 0, rows: int = BLOCK_ROWS, partition: int | None = None,
    first: int = 0,
) -> list[PricedBlock]:  # fmt: skip
    """Blocks of about ``events`` rows, in turn for each partition (or all for one).

    Events are of this hour, numbered from ``start``; offsets of a partition begin at ``first``.
    """
    rng = random.Random(start)
    places = range(PARTITIONS) if partition is None else (partition,)
    offsets = dict.fromkeys(places, first)
    found: list[PricedBlock] = []
    for number in range(max(1, events // rows)):
        place = places[number % len(places)]
        offset = offsets[place]
        offsets[place] = offset + rows
        block_rows = [
            _row(rng, start + number * rows + row, place, offset + row) for row in range(rows)
        ]
        found.append(
            PricedBlock(
                BLOCK_VERSION, 1, _TOPIC, place, offset, offset + rows, block_rows, [], [], []
            )
        )
    return found


def _row(rng: random.Random, number: int, partition: int, offset: int) -> tuple[Any, ...]:
    at_us = int(time.time()) // 3600 * 3_600_000_000 + number
    port = partition + PARTITIONS * rng.randrange(50)
    values = {
        "event_id": f"resp_{rng.getrandbits(128):032x}",
        "occurred_at_us": at_us,
        "port_id": f"port-{port}",
        "model": rng.choice(("gpt-5", "gpt-5-mini", "gpt-5-nano", "gpt-4o")),
        "user_id": f"user-{port}-{rng.randrange(25)}",
        "organization_id": f"org-{port % 20}",
        "group_id": f"group-{port % 50}",
        "session_id": f"{rng.getrandbits(64):016x}",
        "service": f"service-{port % 5}",
        "feature": rng.choice(("ocr", "summary", "embedding", "reply_draft")),
        "request_id": f"{rng.getrandbits(64):016x}",
        "input_tokens": 100 + rng.randrange(4_000),
        "cached_input_tokens": rng.randrange(100),
        "output_tokens": rng.randrange(900),
        "source_offset": offset,
        "recorded_at_ms": at_us // 1000 + 250,
        "cost_nano": rng.randrange(9_000_000),
        **_PRICE,
    }
    return tuple(values[name] if name in values else getattr(_EMPTY, name) for name in ROW_COLUMNS)
