"""Whoever cannot begin to read lets go of the client it made."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

import pytest
from aiokafka.errors import KafkaConnectionError

from pipeline.stream import reader, resolved_log


class Unreachable:
    """A client whose start fails or is cancelled, when it holds connections already."""

    open = 0

    def __init__(self, failure: type[BaseException]) -> None:
        self._failure = failure

    def __call__(self, *topics: str, **given: Any) -> Self:
        return self

    async def start(self) -> None:
        self.open += 1
        raise self._failure

    async def stop(self) -> None:
        self.open -= 1


async def read_to_end() -> None:
    async for _ in reader.read_to_end({}, "t"):
        pass


READERS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
    "read_to_end": read_to_end,
    "record_ends": lambda: reader.record_ends({}, "t"),
    "end_offsets": lambda: reader.end_offsets({}, "t", [0]),
    "open_follower": lambda: reader.open_follower({}, "t", 100),
    "read_resolved": lambda: resolved_log.read_resolved({}, "t", {}),
}


@pytest.mark.parametrize("failure", [KafkaConnectionError, asyncio.CancelledError])
@pytest.mark.parametrize("name", READERS)
async def test_a_reader_that_cannot_start_leaves_nothing_open(
    name: str, failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Unreachable(failure)
    for module in (reader, resolved_log):
        monkeypatch.setattr(module, "AIOKafkaConsumer", client)
    with pytest.raises(failure):
        await READERS[name]()
    assert client.open == 0
