"""Policies on a real Kafka: written, deleted, loaded, followed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.core.errors import InvalidField
from pipeline.core.policies import Policy, policy_json
from pipeline.ops.loopback_ports import free_port
from pipeline.stream.policy_log import (
    PolicyEdit,
    PolicyLogError,
    PolicyTail,
    edit_policies,
    load_policies,
    write_policies,
)
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.decided import until_decided

DEADLINE_S = 60


@pytest.fixture
async def client(kafka: str) -> dict[str, Any]:
    return {"bootstrap_servers": kafka}


@pytest.fixture
async def topics(client: dict[str, Any], topic_prefix: str) -> Topics:
    topics = Topics(topic_prefix)
    await create_or_check_topics(client, topics, partitions=1)
    return topics


@pytest.fixture
async def producer(client: dict[str, Any]) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(**client)
    await producer.start()
    yield producer
    await producer.stop()


async def write_policy(client: dict[str, Any], topics: Topics, written: Policy) -> int:
    return await write_policies(client, topics, "test", [written])


async def delete_policy(client: dict[str, Any], topics: Topics, key: str) -> int:
    return await edit_policies(client, topics, "test", lambda _: [PolicyEdit(key, None)])


def policy(hard_cap: int, scope: str = "port:a|b") -> Policy:
    return Policy(scope, "tokens", "month", hard_cap=hard_cap)


async def test_what_was_written_is_loaded(client: dict[str, Any], topics: Topics) -> None:
    assert (await load_policies(client, topics)).policies == {}
    first = await write_policy(client, topics, policy(1))
    await write_policy(client, topics, policy(2))
    await write_policy(client, topics, policy(3, "all"))
    assert await delete_policy(client, topics, policy(3, "all").key) > first
    await until_decided(client, topics.policies)
    view = await load_policies(client, topics)
    assert view.policies == {"port:a%7Cb|tokens|month": policy(2)}
    assert view.invalid == []
    with pytest.raises(InvalidField):
        await delete_policy(client, topics, "port:a|b|tokens|month")


async def test_an_invalid_record_leaves_the_last_valid_one(
    client: dict[str, Any], topics: Topics, producer: AIOKafkaProducer
) -> None:
    in_log, in_registry = policy(1), policy(2, "user:u")
    await write_policy(client, topics, in_log)
    await producer.send_and_wait(
        topics.registry, policy_json(in_registry), in_registry.key.encode(), partition=0
    )
    for key in (in_log.key, in_registry.key, "org:o|cost|day"):
        await producer.send_and_wait(topics.policies, b"{}", key.encode(), partition=0)
    await until_decided(client, topics.policies)
    view = await load_policies(client, topics)
    assert view.policies == {in_log.key: in_log, in_registry.key: in_registry}
    found = {invalid.key.decode(): invalid for invalid in view.invalid}
    assert found[in_log.key].last_valid == in_log
    assert found[in_registry.key].last_valid == in_registry
    assert found["org:o|cost|day"].last_valid is None
    assert found["org:o|cost|day"].field == "scope"


async def test_the_tail_starts_at_the_beginning_and_goes_on(
    client: dict[str, Any], topics: Topics
) -> None:
    await write_policy(client, topics, policy(1))
    await write_policy(client, topics, policy(2))
    seen: list[tuple[int, bytes, bytes | None]] = []
    more = asyncio.Event()

    def on_record(offset: int, key: bytes, value: bytes | None) -> None:
        seen.append((offset, key, value))
        more.set()

    tail = PolicyTail(client, topics.policies, on_record)
    await tail.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await tail.confirmed
            assert [value for _, _, value in seen] == [
                policy_json(policy(1)),
                policy_json(policy(2)),
            ]
            more.clear()
            offset = await delete_policy(client, topics, policy(1).key)
            await more.wait()
            assert seen[-1] == (offset, policy(1).key.encode(), None)
    finally:
        await tail.stop()
    await tail.wait()


async def test_an_empty_log_is_confirmed(client: dict[str, Any], topics: Topics) -> None:
    tail = PolicyTail(client, topics.policies, lambda *_: None)
    await tail.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await tail.confirmed
    finally:
        await tail.stop()


async def test_an_error_in_the_callback_ends_the_tail(
    client: dict[str, Any], topics: Topics
) -> None:
    def on_record(*_: object) -> None:
        raise ZeroDivisionError

    tail = PolicyTail(client, topics.policies, on_record)
    await tail.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await tail.confirmed
            await write_policy(client, topics, policy(1))
            with pytest.raises(ZeroDivisionError):
                await tail.wait()
    finally:
        await tail.stop()


async def test_a_broker_that_is_not_there_is_an_error_not_a_hang() -> None:
    client = {"bootstrap_servers": f"127.0.0.1:{free_port()}"}
    tail = PolicyTail(client, "budget.policies", lambda *_: None)
    await tail.start()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(PolicyLogError):
            await tail.confirmed
        with pytest.raises(PolicyLogError):
            await tail.wait()
        await tail.stop()
        with pytest.raises(PolicyLogError):
            await write_policy(client, Topics(), policy(1))
