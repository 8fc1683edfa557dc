"""Closing a Kafka client: at once, and with an end for a task that is cancelled meanwhile.

To close a client aiokafka cancels tasks of its own, awaits them, and takes every
``CancelledError`` it meets for theirs. One that was meant for whoever closes the client is lost
so, and a task that was told to end goes on for ever. ``install`` passes it on once all is closed.

It also waits until each connection is closed from both sides. Over TLS, on uvloop, with an answer
still under way, that takes the 30 s after which uvloop gives up. Whoever closes a client has the
answers that matter, so such a connection is cut.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import CloseReason
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


async def _cut_and_close(client: Any) -> None:
    for connection in client._conns.values():
        transport = None if connection._writer is None else connection._writer.transport
        connection.close(reason=CloseReason.SHUTDOWN)
        if transport is not None and transport.get_extra_info("ssl_object") is not None:
            transport.abort()
    await _close(client)


_close = AIOKafkaClient.close
_close_client = passes_on(_cut_and_close)
_close_fetcher = passes_on(Fetcher.close)


def install() -> None:
    """For every client of this process; harmless to repeat."""
    client: Any = AIOKafkaClient
    client.close = _close_client
    fetcher: Any = Fetcher
    fetcher.close = _close_fetcher
