"""What most commands start with: the settings, quiet logs, and an event loop that ends cleanly."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.core.errors import TallyportError

if TYPE_CHECKING:
    from pipeline.settings import Settings
    from pipeline.stream.topics import Topics

DOTENV = Path(".env")
T = TypeVar("T")


class Kafka(NamedTuple):
    """Connection arguments for any aiokafka client, and the names of the topics."""

    client: Mapping[str, Any]
    topics: "Topics"


def settings() -> "Settings":
    """The settings of this process. Raises ``ConfigurationError`` with every mistake."""
    from pipeline import logs
    from pipeline.settings import load_settings

    logs.configure(debug="--debug" in sys.argv)
    return load_settings(os.environ, DOTENV)


def command_line_user() -> str:
    """Who changes something from here, for the log of changes: ``cli:USER``."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # a container may run under a number without a name
        return f"cli:{os.getuid()}"


def on_kafka(work: Callable[[Kafka], Awaitable[T]], given: "Settings | None" = None) -> T:
    """Run a coroutine against the deployment's Kafka, once it is known to answer.

    Raises ``KafkaUnreachable`` with one line that says what to look at.
    """
    from pipeline.kafka import check_kafka, client_kwargs
    from pipeline.stream.topics import Topics

    configured = given or settings()
    kafka = Kafka(client_kwargs(configured), Topics(configured.topic_prefix))

    async def run() -> T:
        await check_kafka(configured)
        return await work(kafka)

    return run_async(run())


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run one command's coroutine; SIGTERM and Ctrl-C cancel it, so that it closes what it opened.

    Raises ``KeyboardInterrupt`` after it was cancelled that way, and ``TallyportError`` where a
    server cannot be reached.
    """
    told: list[int] = []
    try:
        return asyncio.run(_cancellable(work, told))
    except asyncio.CancelledError as error:
        if not told:
            raise TallyportError("the connection was given up by its own client") from error
        raise KeyboardInterrupt from error
    except Exception as error:
        known = server_trouble(error)
        if known is None:
            raise
        raise TallyportError(known) from error


async def _cancellable(work: Coroutine[Any, Any, T], told: list[int]) -> T:
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        told.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def server_trouble(error: BaseException) -> str | None:
    """A line for the errors of the Kafka and ClickHouse clients, found without importing them."""
    module = type(error).__module__
    text = " ".join(str(error).split())[:300]
    if module.startswith("aiokafka"):
        return f"Kafka: {text or type(error).__name__}"
    if module.startswith("clickhouse_connect"):
        return f"ClickHouse: {text or type(error).__name__}"
    return None
