"""What a compressed record batch holds, never more of it at once than a bound.

Brokers bound a batch as it was sent; a megabyte of it may come to 32 GB. Codecs by the number in a
batch's attributes: https://kafka.apache.org/documentation/#recordbatch.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any, Final

import cramjam
import lz4.frame
import zstandard
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError

PIECE_BYTES: Final = 256 * 1024
_GZIP_OR_ZLIB: Final = 32 + zlib.MAX_WBITS
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES: Final = 16
_SNAPPY_GROWTH: Final = 32
"""Three bytes of Snappy come to 64 at most; what says more of itself is not believed."""
_BROKEN: Final = (
    zlib.error, zstandard.ZstdError, cramjam.DecompressionError, RuntimeError, struct.error,
    EOFError,
)  # fmt: skip


def uncompressed(kind: int, data: bytes, limit_bytes: int) -> bytes | None:
    """The whole of ``data``; None when it is more than ``limit_bytes``.

    Raises as ``pieces`` does.
    """
    found, size_bytes = list[bytes](), 0
    for piece in pieces(kind, data):
        found.append(piece)
        size_bytes += len(piece)
        if size_bytes > limit_bytes:
            return None
    return found[0] if len(found) == 1 else b"".join(found)


def pieces(kind: int, data: bytes) -> Iterator[bytes]:
    """What ``data`` holds, piece by piece; one piece by Snappy is at most 32 times as much as its
    block, by the others ``PIECE_BYTES``.

    Raises ``UnsupportedCodecError``, and ``CorruptRecordException`` for what cannot be read.
    """
    codec = _CODECS.get(kind)
    if codec is None:
        raise UnsupportedCodecError(f"unknown compression {kind}")
    try:
        yield from codec(data)
    except _BROKEN as error:
        raise CorruptRecordException(f"compression {kind}: {error}") from error


def _as_it_is(data: bytes) -> Iterator[bytes]:
    yield data


def _gzip(data: bytes) -> Iterator[bytes]:
    while data:
        member = zlib.decompressobj(_GZIP_OR_ZLIB)
        while not member.eof:
            piece = member.decompress(data, PIECE_BYTES)
            data = member.unconsumed_tail
            if piece:
                yield piece
            elif not data and not member.eof:
                raise EOFError("the data ends early")
        data = member.unused_data.lstrip(b"\x00")


def _snappy(data: bytes) -> Iterator[bytes]:
    if not data.startswith(_XERIAL):
        yield _snappy_block(data)
        return
    at = _XERIAL_HEADER_BYTES
    while at < len(data):
        size_bytes = struct.unpack_from(">i", data, at)[0]
        at += 4
        if not 0 < size_bytes <= len(data) - at:
            raise EOFError("the data ends early")
        yield _snappy_block(data[at : at + size_bytes])
        at += size_bytes


def _snappy_block(block: bytes) -> bytes:
    if cramjam.snappy.decompress_raw_len(block) > _SNAPPY_GROWTH * len(block):
        raise EOFError("a block says that it holds more than it can")
    return bytes(cramjam.snappy.decompress_raw(block))


def _lz4(data: bytes) -> Iterator[bytes]:
    while data:
        frame: Any = lz4.frame.LZ4FrameDecompressor()
        piece = frame.decompress(data, PIECE_BYTES)
        while piece:
            yield piece
            piece = b"" if frame.eof else frame.decompress(b"", PIECE_BYTES)
        if not frame.eof:
            raise EOFError("the data ends early")
        data = frame.unused_data or b""


def _zstd(data: bytes) -> Iterator[bytes]:
    reader = zstandard.ZstdDecompressor().stream_reader(BytesIO(data), read_across_frames=True)
    while piece := reader.read(PIECE_BYTES):
        yield piece


_CODECS: Final[dict[int, Any]] = {0: _as_it_is, 1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}
