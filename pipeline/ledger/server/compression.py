"""Compressed bodies: HTTP content encodings, and ClickHouse's own framing (``compress=1``).

A frame of the latter is a CityHash128 checksum (16 bytes, its first half first, each half little
endian), the method, the size of the frame without its checksum, the size of its content (both
32-bit little endian), and the content.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from importlib import import_module
from typing import BinaryIO, Final, cast

import lz4.block
import lz4.frame
import zstandard
from clickhouse_cityhash.cityhash import CityHash128

from pipeline.ledger.server.errors import (
    CANNOT_DECOMPRESS,
    CHECKSUM_DOESNT_MATCH,
    QUERY_IS_TOO_LARGE,
    UNKNOWN_COMPRESSION_METHOD,
    QueryError,
)

_LZ4: Final = 0x82
_ZSTD: Final = 0x90
_NONE: Final = 0x02
_CHECKSUM_BYTES: Final = 16
_HALVES: Final = struct.Struct("<QQ")
_HALF: Final = (1 << 64) - 1
_HEADER: Final = struct.Struct("<BII")
_FRAME_BYTES: Final = 1 << 20
_ZSTD_STEP_BYTES: Final = 1 << 10

# In the order ClickHouse prefers them.
RESPONSE_ENCODINGS: Final = ("lz4", "gzip", "deflate", "zstd")


def checksum(frame: bytes) -> bytes:
    """The CityHash128 of ``frame`` as ClickHouse writes it before a frame."""
    halves = int(CityHash128(frame))  # the first half in the upper 64 bits
    return _HALVES.pack(halves >> 64, halves & _HALF)


def frame_blocks(data: bytes) -> bytes:
    """``data`` in ClickHouse's framing, LZ4, frames of at most 1 MiB of content."""
    frames: list[bytes] = []
    for start in range(0, len(data), _FRAME_BYTES):
        part = data[start : start + _FRAME_BYTES]
        packed = cast(bytes, lz4.block.compress(part, store_size=False))
        frame = _HEADER.pack(_LZ4, len(packed) + _HEADER.size, len(part)) + packed
        frames.append(checksum(frame) + frame)
    return b"".join(frames)


def _unpack(method: int, packed: bytes, size: int) -> bytes:
    if method == _NONE:
        return packed
    if method == _LZ4:
        return cast(bytes, lz4.block.decompress(packed, uncompressed_size=size))
    if method == _ZSTD:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=size)
    raise QueryError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {method:#x}.")


def _frames(data: bytes, limit_bytes: int) -> Iterator[bytes]:
    position = total = 0
    while position < len(data):
        head = position + _CHECKSUM_BYTES
        if head + _HEADER.size > len(data):
            raise QueryError(CANNOT_DECOMPRESS, "Cannot decompress: the last frame is cut off.")
        method, frame_size, size = _HEADER.unpack_from(data, head)
        frame = data[head : head + frame_size]
        total += size
        if total > limit_bytes:
            raise QueryError(QUERY_IS_TOO_LARGE, f"The body holds more than {limit_bytes} bytes.")
        if len(frame) < frame_size or frame_size < _HEADER.size:
            raise QueryError(CANNOT_DECOMPRESS, "Cannot decompress: the last frame is cut off.")
        if checksum(frame) != data[position:head]:
            raise QueryError(CHECKSUM_DOESNT_MATCH, "Checksum doesn't match: corrupted data.")
        yield _unpack(method, frame[_HEADER.size :], size)
        position = head + frame_size


def unframe_blocks(data: bytes, limit_bytes: int) -> bytes:
    """The content of ClickHouse-framed ``data`` (LZ4, ZSTD or stored).

    Raises:
        QueryError: a frame is cut off or corrupt, or the content exceeds ``limit_bytes``.
    """
    try:
        return b"".join(_frames(data, limit_bytes))
    except (RuntimeError, ValueError, zstandard.ZstdError) as error:
        raise QueryError(CANNOT_DECOMPRESS, f"Cannot decompress: {error}.") from error


def _brotli(data: bytes) -> BinaryIO:
    try:
        return io.BytesIO(cast(bytes, import_module("brotli").decompress(data)))
    except ImportError:
        raise QueryError(
            UNKNOWN_COMPRESSION_METHOD, "Content encoding br is not supported here."
        ) from None


def _open(data: bytes, encoding: str) -> BinaryIO:
    if encoding in ("gzip", "x-gzip"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=io.BytesIO(data)))
    if encoding == "lz4":
        return cast(BinaryIO, lz4.frame.LZ4FrameFile(io.BytesIO(data)))
    if encoding == "br":
        return _brotli(data)
    raise QueryError(UNKNOWN_COMPRESSION_METHOD, f"Unknown compression method: {encoding}.")


def _inflate(data: bytes, limit_bytes: int) -> bytes:
    # RFC 9110 means zlib's wrapper; some clients send the raw stream all the same.
    wrapped = len(data) > 1 and data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0
    inflater = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
    content = inflater.decompress(data, limit_bytes + 1)
    if not inflater.eof and len(content) <= limit_bytes:
        raise EOFError("the deflate stream is cut off")
    return content


def _unzstd(data: bytes, limit_bytes: int) -> bytes:
    # The library's own reader takes a cut-off frame for the end. A small step bounds what one
    # call can give: a block of four bytes may stand for 128 KiB.
    parts: list[bytes] = []
    size = 0
    frame = zstandard.ZstdDecompressor().decompressobj()
    waiting = memoryview(data)
    while waiting and size <= limit_bytes:
        step = bytes(waiting[:_ZSTD_STEP_BYTES])
        if frame.eof:
            frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(step))
        size += len(parts[-1])
        waiting = waiting[len(step) - len(frame.unused_data) :]
    if not frame.eof and size <= limit_bytes:
        raise EOFError("the zstd stream is cut off")
    return b"".join(parts)


def decode_body(data: bytes, encoding: str, limit_bytes: int) -> bytes:
    """The body behind an HTTP ``Content-Encoding`` (gzip, deflate, zstd, lz4, br).

    Raises:
        QueryError: the encoding is unknown, the data corrupt, or larger than ``limit_bytes``.
    """
    if encoding in ("", "identity"):
        return data
    try:
        if encoding == "deflate":
            content = _inflate(data, limit_bytes)
        elif encoding == "zstd":
            content = _unzstd(data, limit_bytes)
        else:
            with _open(data, encoding) as stream:
                content = stream.read(limit_bytes + 1)
    except QueryError:
        raise
    except (EOFError, OSError, RuntimeError, ValueError, zlib.error, zstandard.ZstdError) as error:
        raise QueryError(CANNOT_DECOMPRESS, f"Cannot decompress {encoding}: {error}.") from error
    if len(content) > limit_bytes:
        raise QueryError(QUERY_IS_TOO_LARGE, f"The body holds more than {limit_bytes} bytes.")
    return content


class BodyEncoder:
    """Encodes a response in parts: ``encode`` each part, then ``finish``; "" passes through."""

    def __init__(self, encoding: str) -> None:
        self._zlib = None
        self._lz4 = None
        self._zstd = None
        self._begun = False
        if encoding == "gzip":
            self._zlib = zlib.compressobj(3, zlib.DEFLATED, zlib.MAX_WBITS | 16)
        elif encoding == "deflate":
            self._zlib = zlib.compressobj(3)
        elif encoding == "zstd":
            self._zstd = zstandard.ZstdCompressor(level=1).compressobj()
        elif encoding == "lz4":
            self._lz4 = lz4.frame.LZ4FrameCompressor()

    def encode(self, part: bytes) -> bytes:
        """The encoded form of what is ready so far."""
        if self._zlib is not None:
            return self._zlib.compress(part)
        if self._zstd is not None:
            return self._zstd.compress(part)
        if self._lz4 is not None:
            begin = b"" if self._begun else cast(bytes, self._lz4.begin())
            self._begun = True
            return begin + cast(bytes, self._lz4.compress(part))
        return part

    def finish(self) -> bytes:
        """The rest of the encoded response."""
        if self._zlib is not None:
            return self._zlib.flush()
        if self._zstd is not None:
            return self._zstd.flush()
        if self._lz4 is not None:
            begin = b"" if self._begun else cast(bytes, self._lz4.begin())
            return begin + cast(bytes, self._lz4.flush())
        return b""
