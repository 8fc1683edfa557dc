"""The records of one batch, read piece by piece in Python.

Slower than aiokafka's decoder, for batches that it should not or cannot read: a large one is never
uncompressed as a whole, a record larger than anybody means it to be is cut, and header names of any
bytes are taken. Message format 2: https://kafka.apache.org/documentation/#recordbatch.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from aiokafka.errors import CorruptRecordException

from pipeline.core.record_format import COMPRESSION, HEADER, IS_APPEND_TIME
from pipeline.uncompressed import pieces

MAX_RECORD_BYTES: Final = 32 * 1024 * 1024
MAX_HEADERS: Final = 100_000
KEPT_KEY_BYTES: Final = 64 * 1024
KEPT_VALUE_BYTES: Final = 64 * 1024 + 1
"""One byte more than the value of an event or a correction may have."""
CUT_FROM: Final = "cut-from-bytes"
_MAX_VARINT_BYTES: Final = 10
_CREATE_TIME, _APPEND_TIME = 0, 1

Headers = Sequence[tuple[str, bytes | None]]


class CarefulRecord(NamedTuple):
    """A record with the attributes of aiokafka's; names of headers that are not UTF-8 have lone
    surrogates for their odd bytes (Python's ``surrogateescape``)."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    checksum: None = None


class CarefulRecords:
    """Iterates over the records of the batch in ``data``.

    With ``cuts`` a record of more than ``MAX_RECORD_BYTES`` or ``MAX_HEADERS`` is cut to its
    beginning: so much of key and value, no headers but ``cut-from-bytes`` with the size it had. Its
    value is filled up with blanks to ``KEPT_VALUE_BYTES``, so that whoever reads it rejects it as
    too large, also when it is sent again. ``taken_bytes`` says how much has been uncompressed.

    Raises ``CorruptRecordException`` for what breaks the format.
    """

    def __init__(self, data: bytes, *, cuts: bool) -> None:
        self._cuts = cuts
        header = HEADER.unpack_from(data)
        self._base_offset: int = header[0]
        self._is_append_time = bool(header[5] & IS_APPEND_TIME)
        self._first_ms, self._last_ms, self._left = header[7], header[8], header[12]
        self._bytes = _Bytes(pieces(header[5] & COMPRESSION, data[HEADER.size :]))

    def __iter__(self) -> Iterator[CarefulRecord]:
        return self

    def __next__(self) -> CarefulRecord:
        if self._left <= 0:
            raise StopIteration
        self._left -= 1
        return self._read()

    @property
    def taken_bytes(self) -> int:
        """How many bytes have been uncompressed."""
        return self._bytes.taken

    def _read(self) -> CarefulRecord:
        found = self._bytes
        length = found.varint()
        start = found.taken
        found.take(1)  # its attributes, of which there are none
        later_ms = found.varint()
        offset = self._base_offset + found.varint()
        is_cut = self._cuts and length > MAX_RECORD_BYTES
        key = _part(found, KEPT_KEY_BYTES if is_cut else length)
        value = _part(found, KEPT_VALUE_BYTES if is_cut else length)
        count = found.varint()
        if count < 0:
            raise CorruptRecordException(f"a record says that it has {count} headers")
        if is_cut or (self._cuts and count > MAX_HEADERS):
            found.skip(start + length - found.taken)
            key = key and key[:KEPT_KEY_BYTES]
            value = (value or b"")[:KEPT_VALUE_BYTES].ljust(KEPT_VALUE_BYTES)
            headers: Headers = [(CUT_FROM, b"%d" % length)]
        else:
            headers = [_header(found, length) for _ in range(count)]
        if found.taken - start != length:
            raise CorruptRecordException(
                f"a record says that it has {length} bytes, and has {found.taken - start}"
            )
        if self._is_append_time:
            return CarefulRecord(offset, self._last_ms, _APPEND_TIME, key, value, headers)
        timestamp_ms = self._first_ms + later_ms
        return CarefulRecord(offset, timestamp_ms, _CREATE_TIME, key, value, headers)


def _part(found: "_Bytes", kept_bytes: int) -> bytes | None:
    """A key or a value, its beginning where it has more than ``kept_bytes``."""
    size_bytes = found.varint()
    if size_bytes < 0:
        return None
    kept = found.take(min(size_bytes, kept_bytes))
    found.skip(size_bytes - len(kept))
    return kept


def _header(found: "_Bytes", most_bytes: int) -> tuple[str, bytes | None]:
    name = _part(found, most_bytes)
    if name is None:
        raise CorruptRecordException("a header has no name")
    return name.decode("utf-8", "surrogateescape"), _part(found, most_bytes)


class _Bytes:
    """Bytes that come in pieces, in their order; ``taken`` counts those that were asked for."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self.taken = 0
        self._pieces = pieces
        self._piece = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next ``count``."""
        found = self._piece[self._at : self._at + count]
        if len(found) < count:
            parts, left = [found], count - len(found)
            while left:
                self._next_piece()
                parts.append(self._piece[:left])
                left -= len(parts[-1])
            found = b"".join(parts)
            self._at = len(parts[-1])
        else:
            self._at += count
        self.taken += count
        return found

    def skip(self, count: int) -> None:
        """Leaves the next ``count`` behind; that is not negative where the batch is sound."""
        if count < 0:
            raise CorruptRecordException("a record ends before its parts do")
        left = count
        while left > len(self._piece) - self._at:
            left -= len(self._piece) - self._at
            self._next_piece()
        self._at += left
        self.taken += count

    def varint(self) -> int:
        """The number that comes next, a zigzag varint."""
        found = 0
        for place in range(_MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            found |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return found >> 1 ^ -(found & 1)
        raise CorruptRecordException("a number of a record does not end")

    def _next_piece(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise CorruptRecordException("a batch ends before its records do")
        self._piece, self._at = piece, 0
