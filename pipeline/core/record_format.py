"""Kafka's record batches, message format 2: https://kafka.apache.org/documentation/#recordbatch."""

import struct
from collections.abc import Iterator
from typing import Final

HEADER: Final = struct.Struct(">qiibIhiqqqhii")
"""What a batch begins with, up to the count of its records."""
FORMAT: Final = 2
SUMMED_FROM: Final = struct.calcsize(">qiibI")
"""Where the attributes are, and what the checksum is of begins."""
COMPRESSION: Final = 0x07
"""Of the attributes, whose place in ``HEADER`` is 5: which codec, 0 for none."""
IS_APPEND_TIME, IS_TRANSACTIONAL, IS_CONTROL = 0x08, 0x10, 0x20

NO_FORMAT: Final = -1
_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT, _FORMAT_AT = 8, 16
_WHOLE: Final = _LENGTH_AT + _LENGTH.size


def batches(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each whole batch of a fetch begins and ends, and its format; the last may be cut off.

    One that is too short for format 2 is the last, and of ``NO_FORMAT``.
    """
    at = 0
    while at + _WHOLE <= len(data):
        end = at + _WHOLE + _LENGTH.unpack_from(data, at + _LENGTH_AT)[0]
        if end > len(data):
            return
        if end - at < HEADER.size:
            yield at, end, NO_FORMAT
            return
        yield at, end, data[at + _FORMAT_AT]
        at = end
