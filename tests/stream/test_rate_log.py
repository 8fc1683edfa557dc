"""Rates on a real Kafka: written, loaded, followed."""

import asyncio
import json
import math
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from pipeline import metrics
from pipeline.core.book import Book, BookContent
from pipeline.core.events import Event
from pipeline.core.prices import UNPRICED, PriceVersion
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings
from pipeline.stream.rate_log import (
    RateLogError,
    RateTail,
    load_rates,
)
from pipeline.stream.topics import Topics, create_or_check

BOOK = Book(BookContent("empty", ()))
EVENT = Event("e", 1_800_000_000_000_000, "p", "acme", "m", input_tokens=1_000_000)


def rate(rate_id: str, price: str, **fields: Any) -> dict[str, Any]:
    return {
        "rate_id": rate_id,
        "provider": "acme",
        "model": "*",
        "effective_from": "2026-01-01T00:00:00Z",
        "backdated": True,
        "per_million": {"input_tokens": price},
        **fields,
    }


@pytest.fixture
async def place(kafka: str, topic_prefix: str) -> tuple[dict[str, Any], str]:
    """Connection arguments, and an empty rates topic."""
    settings = Settings(
        kafka_bootstrap=kafka, topic_prefix=topic_prefix, partitions=1, replication=1
    )
    await create_or_check(settings)
    return client_kwargs(settings), Topics(topic_prefix).rates


async def publish_rates(
    client: dict[str, Any], topic: str, records: list[dict[str, Any]]
) -> list[int]:
    """Writes records whatever they say; their offsets."""
    async with AIOKafkaProducer(**client) as producer:
        return [
            (
                await producer.send_and_wait(
                    topic, json.dumps(one).encode(), one["rate_id"].encode(), partition=0
                )
            ).offset
            for one in records
        ]


async def publish_rate(client: dict[str, Any], topic: str, record: dict[str, Any]) -> int:
    return (await publish_rates(client, topic, [record]))[0]


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what changes is another task's attribute)
            await asyncio.sleep(0.01)


async def test_what_is_written_is_loaded(place: tuple[dict[str, Any], str]) -> None:
    client, topic = place
    assert (await load_rates(client, topic, 60)).next_offset == 0
    assert await publish_rate(client, topic, rate("a", "1.50")) == 0
    late = rate("late", "2", backdated=False)
    assert await publish_rates(client, topic, [late, rate("b", "3"), rate("a", "4")]) == [1, 2, 3]

    found = await load_rates(client, topic, 60)
    assert [used.rate.rate_id for used in found.used] == ["a", "b"]
    assert [(one.offset, one.reason) for one in found.ignored] == [
        (1, "too-early"),
        (3, "other-content"),
    ]
    assert found.next_offset == 4
    earlier = await load_rates(client, topic, 60, before_offset=1)
    assert (earlier.next_offset, len(earlier.used)) == (1, 1)


async def test_a_tail_follows_and_confirms(place: tuple[dict[str, Any], str]) -> None:
    client, topic = place
    await publish_rate(client, topic, rate("a", "1"))
    seen: list[PriceVersion] = []
    tail = RateTail(client, topic, BOOK, lead_s=60, on_change=seen.append)
    assert tail.version.price(EVENT) == UNPRICED
    await tail.start()
    try:
        first = tail.version
        assert first.price(EVENT).rate_id == "a"
        assert first.key == (1, BOOK.digest)
        await publish_rate(client, topic, rate("b", "2"))
        await until(lambda: tail.next_offset == 2)
        assert tail.version.price(EVENT).rate_id == "b"
        assert first.price(EVENT).rate_id == "a"
        assert [version.key[0] for version in seen] == [1, 2]

        confirmed_s = tail.confirmed_s or 0.0
        await until(lambda: (tail.confirmed_s or 0.0) > confirmed_s)
        await tail.wait_confirmed(0)
        assert await tail.confirmed_within(60, 0)
        assert 0 < tail.age_s() < 20
        tail.confirmed_s = time.monotonic() - 3_600
        assert await tail.confirmed_within(0, 7_200)
        tail.confirmed_s = -math.inf
        assert not await tail.confirmed_within(-1, 7_200)
    finally:
        await tail.stop()


async def test_a_bad_record_does_not_stop_a_tail(place: tuple[dict[str, Any], str]) -> None:
    client, topic = place
    producer = AIOKafkaProducer(**client)
    await producer.start()
    try:
        await producer.send_and_wait(topic, b"\xff not json", key=b"x", partition=0)
        await producer.send_and_wait(topic, None, key=b"x", partition=0)
    finally:
        await producer.stop()
    await publish_rate(client, topic, rate("a", "1"))
    tail = RateTail(client, topic, BOOK, lead_s=60)
    await tail.start()
    try:
        assert tail.next_offset == 3
        assert [one.reason for one in tail.version.rates.ignored] == ["malformed", "malformed"]
        assert metrics.REGISTRY.get_sample_value("tallyport_rates_unused") == 2
        assert tail.version.price(EVENT).rate_id == "a"
    finally:
        await tail.stop()


async def test_a_missing_topic_and_an_exception_end_a_tail(
    place: tuple[dict[str, Any], str],
) -> None:
    client, topic = place
    with pytest.raises(RateLogError, match="does not exist"):
        await RateTail(client, f"{topic}.other", BOOK, lead_s=60).start()

    def fail(version: PriceVersion) -> None:
        raise ValueError(f"no use for version {version.key[0]}")

    tail = RateTail(client, topic, BOOK, lead_s=60, on_change=fail)
    await tail.start()
    try:
        waiting = asyncio.create_task(tail.wait())
        await publish_rate(client, topic, rate("a", "1"))
        async with asyncio.timeout(60):
            with pytest.raises(RateLogError, match="no use for version 1"):
                await waiting
    finally:
        await tail.stop()
