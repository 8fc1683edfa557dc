"""Priced blocks as a worker would send them, from a seed, and a recount that shares no code."""

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from pipeline.core.blocks import BLOCK_VERSION, ROW_COLUMNS, PricedBlock
from pipeline.core.events import Event

EVENT_FIELDS = Event.__struct_fields__
START_US = int(datetime(2026, 11, 29, tzinfo=UTC).timestamp()) * 1_000_000
SPAN_US = 4 * 86_400_000_000
"""From 29 November to 2 December: four days in two months."""


def row(**values: Any) -> tuple[Any, ...]:
    """One row; what is not named has the event's default."""
    event = {name: getattr(_EMPTY, name) for name in EVENT_FIELDS}
    price = {
        "source_offset": 0,
        "recorded_at_ms": START_US // 1000,
        "cost_nano": 0,
        "rate_id": "r1",
        "price_status": "priced",
        "price_estimated": False,
    }
    known = {**event, **price}
    assert values.keys() <= known.keys()
    return tuple({**known, **values}[name] for name in ROW_COLUMNS)


def random_row(rng: random.Random, offset: int, partition: int) -> tuple[Any, ...]:
    status = rng.choice(["priced", "priced", "priced", "free", "unpriced"])
    costs = {"priced": rng.randrange(10**12), "free": 0, "unpriced": None}
    occurred_at_us = START_US + rng.randrange(SPAN_US)
    whole = rng.randrange(10_000)
    return row(
        event_id=f"evt-{partition}-{offset}",
        occurred_at_us=occurred_at_us,
        port_id=f"harbor-{partition}-{rng.randrange(5)}",
        provider=rng.choice(["openai", "speaches"]),
        model=rng.choice(["gpt-5-nano", "whisper", "a'b\\c"]),
        user_id=rng.choice(["", "u1", "u2", "usér|3"]),
        organization_id=rng.choice(["", "o1"]),
        group_id=rng.choice(["", "g1"]),
        feature=rng.choice(["ocr", "summary", "unspecified"]),
        kind=rng.choice(["llm", "stt"]),
        billing_scope=rng.choice(["org", "user"]),
        service_tier=rng.choice(["", "batch"]),
        input_tokens=whole,
        cached_input_tokens=rng.randrange(whole + 1),
        output_tokens=rng.randrange(5_000),
        characters=rng.randrange(3),
        audio_nano=rng.randrange(10**12),
        estimated=rng.random() < 0.1,
        reported_cost=rng.choice(["", "0.25"]),
        tags=rng.choice([{}, {"team": "red"}, {"a": "1", "b": ""}]),
        source_offset=offset,
        recorded_at_ms=occurred_at_us // 1000 + 250,
        cost_nano=costs[status],
        rate_id="" if status == "unpriced" else "r1",
        price_status=status,
        price_estimated=rng.random() < 0.1,
    )


def block(rows: list[tuple[Any, ...]], first: int, end: int, **values: Any) -> PricedBlock:
    """A block over the source offsets ``[first, end)``."""
    known: dict[str, Any] = {
        "version": BLOCK_VERSION,
        "epoch": 1,
        "topic": "usage.events",
        "partition": 0,
        "first_offset": first,
        "next_offset": end,
        "rows": rows,
        "rejected": [],
        "duplicates": [],
        "forwarded": [],
    }
    return PricedBlock(**{**known, **values})


def chain(
    seed: int, count: int, partition: int = 0, topic: str = "usage.events"
) -> list[PricedBlock]:
    """``count`` blocks that join end to end, some offsets rejected, duplicate or forwarded."""
    rng = random.Random(f"{seed}/{partition}")
    blocks: list[PricedBlock] = []
    offset = 0
    for _ in range(count):
        first, ends = offset, defaultdict[str, list[int]](list)
        rows: list[tuple[Any, ...]] = []
        for _ in range(rng.randrange(1, 40)):
            kind = rng.choices(["row", "rejected", "duplicates", "forwarded"], [20, 1, 1, 1])[0]
            if kind == "row":
                rows.append(random_row(rng, offset, partition))
            else:
                ends[kind].append(offset)
            offset += 1
        offset += rng.choice([0, 0, 1])  # a transaction marker of whoever produced the events
        blocks.append(block(rows, first, offset, topic=topic, partition=partition, **ends))
    return blocks


def dicts(blocks: Iterable[PricedBlock]) -> Iterator[dict[str, Any]]:
    for each in blocks:
        for values in each.rows:
            yield dict(zip(ROW_COLUMNS, values, strict=True))


_EMPTY = Event(event_id="e", occurred_at_us=START_US, port_id="p", provider="openai", model="m")
