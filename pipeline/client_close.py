"""Closing a Kafka client while its task is cancelled ends the task.

To close a client aiokafka cancels tasks of its own, awaits them, and takes every
``CancelledError`` it meets for theirs. One that was meant for whoever closes the client is lost
so, and a task that was told to end goes on for ever. ``install`` passes it on once all is closed.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.consumer.fetcher import Fetcher


def passes_on(close: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
    """``close``, after which the task's own cancellation is raised if it was swallowed."""

    async def closed(owner: Any) -> None:
        task = asyncio.current_task()
        before = 0 if task is None else task.cancelling()
        await close(owner)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError

    return closed


_close_client = passes_on(AIOKafkaClient.close)
_close_fetcher = passes_on(Fetcher.close)


def install() -> None:
    """For every client of this process; harmless to repeat."""
    client: Any = AIOKafkaClient
    client.close = _close_client
    fetcher: Any = Fetcher
    fetcher.close = _close_fetcher
