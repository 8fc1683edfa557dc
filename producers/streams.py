"""A provider's stream that is recorded at its end; everything else of it is passed through."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Self

from producers.extract import StreamUsage

if TYPE_CHECKING:
    from producers.call import Call


def metered(call: "Call", chunks: Any) -> "Metered | AsyncMetered":
    """``chunks`` as they are, recorded by ``call`` when they end."""
    if hasattr(chunks, "__aiter__"):
        return AsyncMetered(call, chunks)
    return Metered(call, chunks)


class _Recording:
    """Watches one stream and records it once; ``is_hidden`` says which chunks are kept back."""

    def __init__(self, call: "Call", chunks: Any) -> None:
        self._call = call
        self._chunks = chunks
        self.is_hidden: Callable[[Any], bool] | None = None
        self._usage = StreamUsage()
        self._has_begun = False
        self._is_over = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)

    def __del__(self) -> None:
        # Left without being closed, as a web framework does when its client goes away.
        with contextlib.suppress(Exception):
            self._finish()

    def _watch(self, chunk: Any) -> Any:
        self._has_begun = True
        with contextlib.suppress(Exception):  # what a chunk hides must not end the stream
            self._usage.feed(chunk)
        return chunk

    def _finish(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._has_begun:
            self._call.record(self._usage)
        else:
            self._call.release()


class Metered(_Recording):
    """A stream for ``for`` and ``with``."""

    _iterator: Iterator[Any] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self._chunks)
        try:
            chunk = self._watch(next(self._iterator))
            while self.is_hidden is not None and self.is_hidden(chunk):
                chunk = self._watch(next(self._iterator))
            return chunk
        except BaseException:
            self._finish()
            raise

    def __enter__(self) -> Self:
        if hasattr(self._chunks, "__enter__"):
            self._chunks.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        self._finish()
        return self._chunks.__exit__(*error) if hasattr(self._chunks, "__exit__") else None

    def close(self) -> None:
        """Ends the stream."""
        self._finish()
        if hasattr(self._chunks, "close"):
            self._chunks.close()


class AsyncMetered(_Recording):
    """A stream for ``async for`` and ``async with``."""

    _iterator: AsyncIterator[Any] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            self._iterator = aiter(self._chunks)
        try:
            chunk = self._watch(await anext(self._iterator))
            while self.is_hidden is not None and self.is_hidden(chunk):
                chunk = self._watch(await anext(self._iterator))
            return chunk
        except BaseException:
            self._finish()
            raise

    async def __aenter__(self) -> Self:
        if hasattr(self._chunks, "__aenter__"):
            await self._chunks.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> Any:
        self._finish()
        if hasattr(self._chunks, "__aexit__"):
            return await self._chunks.__aexit__(*error)
        return None

    async def close(self) -> None:
        """Ends the stream."""
        self._finish()
        if hasattr(self._chunks, "close"):
            await self._chunks.close()

    aclose = close
