"""Reading request bodies: bounded in bytes, time and memory, also after unpacking."""

import asyncio
import zlib
from collections.abc import Generator
from contextlib import contextmanager

from starlette.requests import ClientDisconnect, Request

from pipeline import metrics
from pipeline.web.problems import Problem, unavailable

BODY_TIMEOUT_S = 20.0
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


class InFlight:
    """How many bytes of requests may be held at once, by bodies and by what became of them.

    Memory is promised before anything is read: a request that does not fit is told to come back.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Promises ``size`` bytes. Raises ``Problem`` (503) when they are not to be had."""
        if self.held_bytes + size > self._most:
            raise unavailable("too many bytes are being taken in at this moment; send it again")
        self.keep(size)

    def keep(self, size: int) -> None:
        """Counts ``size`` bytes that are held already, whether they fit or not."""
        self.held_bytes += size
        metrics.HTTP_IN_FLIGHT_BYTES.set(self.held_bytes)

    def give(self, size: int) -> None:
        """Takes the promise back."""
        self.held_bytes -= size
        metrics.HTTP_IN_FLIGHT_BYTES.set(self.held_bytes)

    @contextmanager
    def holding(self, size: int) -> Generator[None]:
        """``take`` and, in the end, ``give``."""
        self.take(size)
        try:
            yield
        finally:
            self.give(size)


def declared_size(request: Request, most_bytes: int) -> int:
    """How many bytes to expect at most, unpacked ones included.

    Raises ``Problem`` 413 for a body that says itself that it is too large, 415 for an encoding
    other than gzip.
    """
    encoding = _encoding(request)
    if encoding not in ("", "identity", "gzip"):
        raise Problem(
            415, f"Content-Encoding {encoding!r} is not taken", headers={"Accept-Encoding": "gzip"}
        )
    length = request.headers.get("content-length")
    if length is None:
        return most_bytes
    if int(length) > most_bytes:  # the server has checked that it is a number
        raise too_large(most_bytes)
    return most_bytes if encoding == "gzip" else int(length)


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The unpacked body.

    Raises ``Problem``: 413 beyond ``most_bytes`` before or after unpacking, 408 when it does not
    arrive in time, 400 when it cannot be unpacked or ends early.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            packed = await _received(request, most_bytes)
    except TimeoutError:
        raise Problem(
            408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", headers=_CLOSE
        ) from None
    except ClientDisconnect:
        raise Problem(400, "the request ended before its body") from None
    return _unpacked(packed, most_bytes) if _encoding(request) == "gzip" else packed


def too_large(most_bytes: int) -> Problem:
    """413 for a body of more than ``most_bytes``."""
    return Problem(413, f"the body may have at most {most_bytes} bytes")


_CLOSE = {"Connection": "close"}


def _encoding(request: Request) -> str:
    return request.headers.get("content-encoding", "").strip().lower()


async def _received(request: Request, most_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > most_bytes:
            raise too_large(most_bytes)
        parts.append(part)
    return b"".join(parts) if len(parts) != 1 else parts[0]


def _unpacked(packed: bytes, most_bytes: int) -> bytes:
    """Gzip's members one after the other, never more than is allowed."""
    parts: list[bytes] = []
    left = most_bytes
    try:
        while packed:
            member = zlib.decompressobj(_GZIP_WINDOW)
            part = member.decompress(packed, left + 1)
            if len(part) > left:
                raise too_large(most_bytes)
            if not member.eof:
                raise Problem(400, "the body's gzip data ends early")
            parts.append(part)
            left -= len(part)
            packed = member.unused_data
    except zlib.error as error:
        raise Problem(400, f"the body is no gzip data ({error})") from None
    return b"".join(parts)
