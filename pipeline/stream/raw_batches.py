"""A partition's part of a fetch, its batches handed over as columns instead of records.

For aiokafka's ``PartitionRecords``, which goes on deciding what of it counts: aborted
transactions, control batches, offsets that were read before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch

from pipeline.careful_records import CarefulRecords
from pipeline.core.record_format import (
    COMPRESSION,
    FORMAT,
    HEADER,
    IS_CONTROL,
    IS_TRANSACTIONAL,
    SUMMED_FROM,
    batches,
)
from pipeline.fetched_records import BatchStandIn, CompressedBatch, Uncompressed
from pipeline.native.batches import BatchReader, checksum

RUN_RECORDS = 100


class Run(NamedTuple):
    """Records that follow each other in a batch; ``offset`` is the last one's."""

    offset: int
    records: Any


def is_raw(data: bytes) -> bool:
    """Whether each batch is of the one format that brokers still write."""
    return all(magic == FORMAT for _, _, magic in batches(data))


class BatchOfRuns(BatchStandIn):
    """A batch that gives lists of records."""

    def __iter__(self) -> Iterator[Run]:
        batch = self._batch
        found = batch.records() if isinstance(batch, CompressedBatch) else batch
        # Of those that are read one by one, a hundred may be more than memory holds.
        most = 1 if isinstance(found, CarefulRecords) else RUN_RECORDS
        records, broken = chain(found), None  # a batch itself can be begun only once
        while True:
            run: list[Any] = []
            try:
                run.extend(islice(records, most))
            except Exception as error:  # what stands before the record it is about is good
                broken = error
            if run:
                yield Run(run[-1].offset, run)
            if broken is not None:
                raise broken
            if len(run) < most:
                return


class RawBatches:
    """Stands in for aiokafka's ``MemoryRecords`` over the same bytes."""

    def __init__(self, data: bytes, reader: BatchReader, uncompressed: Uncompressed) -> None:
        self._data = data
        self._reader = reader
        self._uncompressed = uncompressed
        self._batches = batches(data)
        self._next = next(self._batches, None)

    def has_next(self) -> bool:
        return self._next is not None

    def next_batch(self) -> "RawBatch":
        if self._next is None:
            raise CorruptRecordException("there is no batch left")
        begin, end, _ = self._next
        self._next = next(self._batches, None)
        return RawBatch(self._data[begin:end], self._reader, self._uncompressed)


@dataclass
class RawBatch:
    """Stands in for aiokafka's ``DefaultRecordBatch``; iterated it gives one ``Run`` of columns.

    Of a malformed batch aiokafka's own decoder gives what stands before the fault, and its error.
    """

    data: bytes
    reader: BatchReader
    uncompressed: Uncompressed

    def __post_init__(self) -> None:
        header = HEADER.unpack_from(self.data)
        self.base_offset: int = header[0]
        self._crc: int = header[4]
        self._attributes: int = header[5]
        self.next_offset: int = header[0] + header[6] + 1
        self.producer_id: int = header[9]
        self.is_transactional = bool(self._attributes & IS_TRANSACTIONAL)
        self.is_control_batch = bool(self._attributes & IS_CONTROL)

    def validate_crc(self) -> bool:
        return checksum(self.data, SUMMED_FROM) == self._crc

    def __next__(self) -> Any:
        """The record of a control batch."""
        return next(DefaultRecordBatch(self.data))

    def __iter__(self) -> Iterator[Run]:
        is_compressed = self._attributes & COMPRESSION
        records = self.uncompressed.whole(self.data) if is_compressed else self.data[HEADER.size :]
        if records is None:
            yield from BatchOfRuns(self.uncompressed.one_by_one(self.data, is_large=True))
            return
        columns = self.reader.read(self.data, records)
        if columns is None:
            batch = DefaultRecordBatch(self.data)
            yield from BatchOfRuns(
                CompressedBatch(batch, self.data, self.uncompressed) if is_compressed else batch
            )
        elif len(columns):
            yield Run(int(columns.offsets[-1]), columns)
