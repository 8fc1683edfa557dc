"""A record batch for few and large values: built by one copy, summed by the processor.

aiokafka's builder is made for many small records; of a priced block it takes longer to copy and
sum the bytes than the worker takes to write them. Message format 2:
https://kafka.apache.org/documentation/#recordbatch.
"""

import struct
import time
from collections.abc import Sequence
from typing import Any, Final

from aiokafka.producer.message_accumulator import BatchBuilder

from pipeline.core.record_format import FORMAT, IS_TRANSACTIONAL
from pipeline.native.batches import checksum

_BEFORE_SUM: Final = struct.Struct(">qiib")
_SUMMED: Final = struct.Struct(">hiqqqhii")
_SUM_BYTES: Final = 4
_HEADER_BYTES: Final = _BEFORE_SUM.size + _SUM_BYTES + _SUMMED.size
_BEFORE_LENGTH: Final = struct.calcsize(">qi")
_MAX_RECORD_OVERHEAD: Final = 32
_NO_LEADER_EPOCH = -1

LARGE_BYTES: Final = 16 * 1024
"""From here on a value is large."""


def is_large(key: bytes | None, value: bytes | None, headers: Sequence[Any]) -> bool:
    """Whether a batch should begin with such a record. All in it have the time it was made."""
    return key is not None and value is not None and len(value) >= LARGE_BYTES and not headers


class LargeValueBatch(BatchBuilder):
    """As its parent for records with a key, a value and no headers; never compressed."""

    def __init__(self, size_bytes: int, *, is_transactional: bool) -> None:
        super().__init__(size_bytes, 0, is_transactional=is_transactional)
        self._limit_bytes = size_bytes
        self._attributes = IS_TRANSACTIONAL if is_transactional else 0
        self._pieces: list[bytes] = []
        self._filled_bytes = _HEADER_BYTES
        self._stamp_ms = int(time.time() * 1000)
        self._producer = (-1, -1, -1)

    def append(
        self,
        *,
        timestamp: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Any] = (),
    ) -> Any:
        """Something that is not None, or None when the batch is full or closed, or not for such a
        record; the first one always fits."""
        if timestamp is not None or key is None or value is None or headers:
            self.close()
            return None
        if not self._has_room(key, value):
            self.close()
            return None
        body = b"\x00\x00" + _varint(self._relative_offset) + _varint(len(key)) + key
        body += _varint(len(value))
        length = _varint(len(body) + len(value) + 1)
        self._pieces += length, body, value, b"\x00"  # no headers
        self._filled_bytes += len(length) + len(body) + len(value) + 1
        self._relative_offset += 1
        return self

    def _has_room(self, key: bytes, value: bytes) -> bool:
        size_bytes = len(key) + len(value) + _MAX_RECORD_OVERHEAD
        fits = self._filled_bytes + size_bytes <= self._limit_bytes
        return not self._closed and (fits or not self._pieces)

    def size(self) -> int:
        """How many bytes the batch has."""
        return self._filled_bytes

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        self._producer = (producer_id, producer_epoch, base_sequence)

    def _build(self) -> Any:
        self.close()
        if self._pieces:
            count, stamp_ms = self._relative_offset, self._stamp_ms
            summed = _SUMMED.pack(
                self._attributes, count - 1, stamp_ms, stamp_ms, *self._producer, count
            )
            length = self._filled_bytes - _BEFORE_LENGTH
            before = _BEFORE_SUM.pack(0, length, _NO_LEADER_EPOCH, FORMAT)
            buffer = bytearray(b"".join((before, bytes(_SUM_BYTES), summed, *self._pieces)))
            summed_from = len(before) + _SUM_BYTES
            struct.pack_into(">I", buffer, len(before), checksum(buffer, summed_from))
            self._buffer, self._pieces = buffer, []
        return self._buffer


def _varint(value: int) -> bytes:
    """A zigzag varint of Kafka's record format; ``value`` is not negative."""
    left, found = value << 1, bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)
