"""Reading lines as they come, from a file or a pipe, without ever holding more than a few."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator
from typing import NamedTuple

_CHUNK_BYTES = 256 * 1024
_QUEUED_CHUNKS = 4


class Line(NamedTuple):
    """``text`` without its line end; None when the line was longer than allowed."""

    number: int
    text: bytes | None


async def follow_lines(descriptor: int, max_bytes: int) -> AsyncGenerator[list[Line]]:
    """The lines of an open file or pipe in lists, each as soon as it has arrived.

    The descriptor is read in a daemon thread, as a pipe may stay silent for ever.
    """
    loop = asyncio.get_running_loop()
    queue = asyncio.Queue[bytes | OSError](_QUEUED_CHUNKS)

    def read() -> None:
        chunk: bytes | OSError = b"-"
        while chunk and not isinstance(chunk, OSError):
            try:
                chunk = os.read(descriptor, _CHUNK_BYTES)
            except OSError as error:
                chunk = error
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody listens any more
                asyncio.run_coroutine_threadsafe(queue.put(chunk), loop).result()

    threading.Thread(target=read, name="lines", daemon=True).start()
    splitter = LineSplitter(max_bytes)
    while chunk := await queue.get():
        if isinstance(chunk, OSError):
            raise chunk
        if lines := splitter.feed(chunk):
            yield lines
    if lines := splitter.finish():
        yield lines


class LineSplitter:
    """Lines of at most ``max_bytes`` from chunks of any size; blank lines count but are left out.

    Never holds more of a line than that and a chunk.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._number = 0
        self._rest = b""
        self._too_long = False

    def feed(self, chunk: bytes) -> list[Line]:
        """The lines that end in ``chunk``, the next one."""
        *ended, self._rest = (self._rest + chunk).split(b"\n")
        lines = [line for text in ended if (line := self._line(text))]
        if len(self._rest) > self._max_bytes + 1:
            self._rest, self._too_long = b"-", True
        return lines

    def finish(self) -> list[Line]:
        """The last line, where it has no end."""
        text, self._rest = self._rest, b""
        if not text:
            return []
        line = self._line(text)
        return [line] if line else []

    def _line(self, text: bytes) -> Line | None:
        self._number += 1
        too_long, self._too_long = self._too_long, False
        text = text.removesuffix(b"\r")
        if too_long or len(text) > self._max_bytes:
            return Line(self._number, None)
        return Line(self._number, text) if text.strip() else None
