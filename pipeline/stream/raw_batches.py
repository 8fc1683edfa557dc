"""A partition's part of a fetch, its batches handed over as columns instead of records.

For aiokafka's ``PartitionRecords``, which goes on deciding what of it counts: aborted
transactions, control batches, offsets that were read before.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from aiokafka import codec
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import ConsumerRecord

from pipeline.native.batches import HEADER, BatchReader, checksum

_CHECKED_FROM: Final = struct.calcsize(">qiibI")
_LENGTH: Final = struct.Struct(">i")
_LENGTH_AT, _MAGIC_AT = 8, 16
_WHOLE: Final = _LENGTH_AT + _LENGTH.size
_COMPRESSION, _IS_TRANSACTIONAL, _IS_CONTROL = 0x07, 0x10, 0x20
FORMAT: Final = 2
_NO_FORMAT: Final = -1
RUN_RECORDS = 100


class Run(NamedTuple):
    """Records that follow each other in a batch; ``offset`` is the last one's."""

    offset: int
    records: Any


def is_raw(data: bytes) -> bool:
    """Whether each batch is of the one format that brokers still write."""
    return all(magic == FORMAT for _, _, magic in _batches(data))


def _batches(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Where each whole batch begins and ends, and its format; the last may be cut off.

    One that is too short for this format is the last, and of ``_NO_FORMAT``.
    """
    at = 0
    while at + _WHOLE <= len(data):
        end = at + _WHOLE + _LENGTH.unpack_from(data, at + _LENGTH_AT)[0]
        if end > len(data):
            return
        if end - at < HEADER.size:
            yield at, end, _NO_FORMAT
            return
        yield at, end, data[at + _MAGIC_AT]
        at = end


class BatchOfRuns:
    """A batch of aiokafka's that gives lists of records; all else is its own."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Run]:
        records, broken = chain(self._batch), None  # a batch itself can be begun only once
        while True:
            run: list[ConsumerRecord] = []
            try:
                run.extend(islice(records, RUN_RECORDS))
            except Exception as error:  # what stands before the record it is about is good
                broken = error
            if run:
                yield Run(run[-1].offset, run)
            if broken is not None:
                raise broken
            if len(run) < RUN_RECORDS:
                return


class RawBatches:
    """Stands in for aiokafka's ``MemoryRecords`` over the same bytes."""

    def __init__(self, data: bytes, reader: BatchReader) -> None:
        self._data = data
        self._reader = reader
        self._batches = _batches(data)
        self._next = next(self._batches, None)

    def has_next(self) -> bool:
        return self._next is not None

    def next_batch(self) -> "RawBatch":
        if self._next is None:
            raise CorruptRecordException("there is no batch left")
        begin, end, _ = self._next
        self._next = next(self._batches, None)
        return RawBatch(self._data[begin:end], self._reader)


@dataclass
class RawBatch:
    """Stands in for aiokafka's ``DefaultRecordBatch``; iterated it gives one ``Run`` of columns.

    Of a malformed batch aiokafka's own decoder gives what stands before the fault, and its error.
    """

    data: bytes
    reader: BatchReader

    def __post_init__(self) -> None:
        header = HEADER.unpack_from(self.data)
        self.base_offset: int = header[0]
        self._crc: int = header[4]
        self._attributes: int = header[5]
        self.next_offset: int = header[0] + header[6] + 1
        self.producer_id: int = header[9]
        self.is_transactional = bool(self._attributes & _IS_TRANSACTIONAL)
        self.is_control_batch = bool(self._attributes & _IS_CONTROL)

    def validate_crc(self) -> bool:
        return checksum(self.data, _CHECKED_FROM) == self._crc

    def __next__(self) -> Any:
        """The record of a control batch."""
        return next(DefaultRecordBatch(self.data))

    def __iter__(self) -> Iterator[Run]:
        records = self.reader.read(self.data, self._uncompressed())
        if records is None:
            yield from BatchOfRuns(DefaultRecordBatch(self.data))
        elif len(records):
            yield Run(int(records.offsets[-1]), records)

    def _uncompressed(self) -> bytes:
        records, kind = self.data[HEADER.size :], self._attributes & _COMPRESSION
        if not kind:
            return records
        decode = _DECODERS.get(kind)
        if decode is None:
            raise UnsupportedCodecError(f"unknown compression {kind}")
        return bytes(decode(records))


_DECODERS: Final[dict[int, Any]] = {
    1: codec.gzip_decode,
    2: codec.snappy_decode,
    3: codec.lz4_decode,
    4: codec.zstd_decode,
}
