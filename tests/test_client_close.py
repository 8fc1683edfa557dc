"""Whoever is told to end while it closes a Kafka client ends."""

import asyncio

import pytest
from aiokafka.client import AIOKafkaClient

from pipeline import client_close


async def test_a_cancellation_is_not_swallowed(kafka: str) -> None:
    client_close.install()
    client = AIOKafkaClient(bootstrap_servers=kafka)
    await client.bootstrap()
    closing = asyncio.ensure_future(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_cancellation_that_was_there_before_is_not_raised_again(kafka: str) -> None:
    client_close.install()
    client = AIOKafkaClient(bootstrap_servers=kafka)
    await client.bootstrap()

    async def end_in_order() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await client.close()
        return "ended"

    task = asyncio.ensure_future(end_in_order())
    await asyncio.sleep(0)
    task.cancel()
    assert await asyncio.wait_for(task, 30) == "ended"


async def test_a_time_limit_still_ends_as_one(kafka: str) -> None:
    client_close.install()
    client = AIOKafkaClient(bootstrap_servers=kafka)
    await client.bootstrap()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await client.close()
