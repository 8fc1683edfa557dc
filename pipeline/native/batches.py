"""Kafka's record batches as columns, found by the compiled library.

Message format 2: https://kafka.apache.org/documentation/#recordbatch.
"""

from typing import Any

import numpy as np
from aiokafka.record.util import calc_crc32c

from pipeline.core.record_columns import RECORD, RecordColumns
from pipeline.core.record_format import HEADER, IS_APPEND_TIME
from pipeline.native.library import library


def checksum(data: bytes | bytearray | memoryview, start: int = 0) -> int:
    """CRC-32C of ``data`` from ``start`` on."""
    compiled = library()
    if compiled is not None:
        found = compiled.tp_crc32c(_address(data) + start, len(data) - start)
        if found >= 0:
            return found
    return calc_crc32c(bytes(memoryview(data)[start:]))


def _address(data: bytes | bytearray | memoryview) -> int:
    return np.frombuffer(data, np.uint8).ctypes.data


class BatchReader:
    """Reads whole batches of format 2. ``batch_reader`` makes one where it can."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def read(self, batch: bytes, records: bytes) -> RecordColumns | None:
        """Its records, which ``records`` holds uncompressed; None when they are malformed."""
        header = HEADER.unpack_from(batch)
        base_offset, attributes, first_ms, last_ms, count = (
            header[0], header[5], header[7], header[8], header[12],
        )  # fmt: skip
        # A record takes seven bytes at least, so a count is not trusted with more memory.
        if not 0 <= count <= len(records) // 7:
            return None
        is_create_time = not attributes & IS_APPEND_TIME
        table = np.empty(count, RECORD)
        found = self._compiled.tp_scan(
            records, len(records), count, base_offset,
            first_ms if is_create_time else last_ms, is_create_time, table.ctypes.data,
        )  # fmt: skip
        return RecordColumns(records, table) if found else None


def batch_reader() -> BatchReader | None:
    """A reader of batches; None where nothing was compiled."""
    compiled = library()
    return None if compiled is None else BatchReader(compiled)
