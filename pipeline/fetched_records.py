"""What a fetch of any consumer holds, whatever a client has put into it.

Brokers take batches that aiokafka's decoder cannot take, or should not. ``install`` lets every
consumer of this process read them:

- The name of a header may be any bytes; one that is not UTF-8 would stop whoever reads the
  partition. Its odd bytes come as lone surrogates (Python's ``surrogateescape``).
- A compressed batch may come to gigabytes. At most ``MAX_WHOLE_BYTES`` of one are uncompressed at
  once, larger ones record by record, and one turn of ``getmany`` ends with ``MAX_TURN_BYTES`` of a
  partition. A record that is too large for anybody is cut (see ``careful_records``).

What cannot be decoded at all raises ``CorruptRecord`` with topic, partition and offset.

The compiled decoder stays in charge: what it gives up on is decoded once more, in Python.
"""

import struct
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, Final, cast

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.memory_records import MemoryRecords

from pipeline.careful_records import CarefulRecords
from pipeline.core.errors import CorruptRecord
from pipeline.core.record_format import COMPRESSION, FORMAT, HEADER, NO_FORMAT, SUMMED_FROM, batches
from pipeline.uncompressed import uncompressed

MAX_WHOLE_BYTES: Final = 4 * 1024 * 1024
MAX_TURN_BYTES: Final = 8 * 1024 * 1024
_ATTRIBUTES: Final = struct.Struct(">h")


def install() -> None:
    """Makes every consumer of this process read so; harmless to repeat."""
    fetcher.PartitionRecords = TolerantRecords  # pyright: ignore[reportPrivateImportUsage]
    fetcher.MemoryRecords = FetchedBytes  # pyright: ignore[reportPrivateImportUsage]
    fetcher.FetchResult = BoundedResult  # pyright: ignore[reportPrivateImportUsage]


class Uncompressed:
    """How many bytes of a fetch have been uncompressed so far."""

    __slots__ = ("_done_bytes", "_reading")

    def __init__(self) -> None:
        self._done_bytes = 0
        self._reading: CarefulRecords | None = None

    @property
    def size_bytes(self) -> int:
        """All of it; of a batch that is being read one by one, what was reached."""
        reading = self._reading
        return self._done_bytes + (0 if reading is None else reading.taken_bytes)

    def whole(self, batch: bytes) -> bytes | None:
        """The records of a compressed batch, unless they are more than ``MAX_WHOLE_BYTES``."""
        kind = HEADER.unpack_from(batch)[5] & COMPRESSION
        records = uncompressed(kind, batch[HEADER.size :], MAX_WHOLE_BYTES)
        self._done_bytes += MAX_WHOLE_BYTES if records is None else len(records)
        return records

    def one_by_one(self, batch: bytes, *, is_large: bool) -> CarefulRecords:
        """The records of a batch, those that are too large cut when the batch ``is_large``."""
        self._done_bytes, self._reading = self.size_bytes, CarefulRecords(batch, cuts=is_large)
        return self._reading


class FetchedBytes:
    """One partition's part of a fetch; its bytes are kept for a second attempt."""

    __slots__ = ("_batches", "_places", "data", "has_next", "size_in_bytes", "uncompressed")

    def __init__(self, data: bytes) -> None:
        self._batches = MemoryRecords(data)
        self._places = batches(data)
        self.data = data
        self.uncompressed = Uncompressed()
        self.has_next = self._batches.has_next
        self.size_in_bytes = self._batches.size_in_bytes

    def next_batch(self) -> Any:
        """The batch that comes next."""
        batch: Any = self._batches.next_batch()
        begin, end, kind = next(self._places, (0, 0, NO_FORMAT))
        if kind == FORMAT and self.data[begin + SUMMED_FROM + 1] & COMPRESSION:
            return CompressedBatch(batch, self.data[begin:end], self.uncompressed)
        return batch


class BatchStandIn:
    """Stands in for a batch of aiokafka's, whose own all is that is not said here."""

    def __init__(self, batch: Any) -> None:
        self._batch = batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        """The record of a control batch."""
        return next(self._batch)


class CompressedBatch(BatchStandIn):
    """A batch that aiokafka does not uncompress itself."""

    def __init__(self, batch: Any, data: bytes, uncompressed: Uncompressed) -> None:
        super().__init__(batch)
        self._data = data
        self._uncompressed = uncompressed

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records())

    def records(self) -> Iterable[Any]:
        """Its records; iterated once."""
        records = self._uncompressed.whole(self._data)
        if records is None:
            return self._uncompressed.one_by_one(self._data, is_large=True)
        header = bytearray(self._data[: HEADER.size])
        _ATTRIBUTES.pack_into(header, SUMMED_FROM, self._batch.attributes & ~COMPRESSION)
        return DefaultRecordBatch(bytes(header) + records)


class TolerantRecords(PartitionRecords):
    """The records of one partition's part of a fetch, whatever their headers are called."""

    _records: Any

    def __init__(self, tp: Any, records: FetchedBytes, *arguments: Any) -> None:
        super().__init__(tp, records, *arguments)
        self._data = records.data
        self.uncompressed = records.uncompressed

    def _unpack_records(self) -> Generator[Any]:
        try:
            try:
                yield from super()._unpack_records()
            except UnicodeDecodeError:
                # On with the same batch; what of it was handed over is left out.
                at = self.next_fetch_offset
                self._records = _CarefulFetch(self._data, at, self.uncompressed)
                yield from super()._unpack_records()
        except (UnicodeDecodeError, CorruptRecordException) as error:
            raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> CorruptRecord:
        tp = self._tp
        return CorruptRecord(
            f"{tp.topic} partition {tp.partition} offset {self.next_fetch_offset}: the record "
            f"cannot be decoded: {error}"
        )


class BoundedResult(FetchResult):
    """What a fetch brought of a partition; handed over in turns of ``MAX_TURN_BYTES``, of which
    only what was compressed counts: the fetch itself bounds all else."""

    def getall(self, max_records: int | None = None) -> list[Any]:
        """The records of one turn, ``max_records`` at most."""
        found = list[Any]()
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return found
        records = cast(TolerantRecords, self._partition_records)
        end_bytes = records.uncompressed.size_bytes + MAX_TURN_BYTES
        for record in records:
            found.append(record)
            if len(found) == max_records or records.uncompressed.size_bytes >= end_bytes:
                self._update_position()
                return found
        self._update_position()
        self._partition_records = None
        return found


class _CarefulFetch:
    """The batches of a fetch from the one that holds ``offset``, each decoded in Python."""

    def __init__(self, data: bytes, offset: int, uncompressed: Uncompressed) -> None:
        self._data = data
        self._uncompressed = uncompressed
        self._places = deque(batches(data))
        while self._places and self._batch(*self._places[0]).next_offset <= offset:
            self._places.popleft()

    def has_next(self) -> bool:
        return bool(self._places)

    def next_batch(self) -> Any:
        begin, end, kind = self._places.popleft()
        batch = self._batch(begin, end, kind)
        if kind < FORMAT:
            return batch
        return _CarefulBatch(batch, self._data[begin:end], self._uncompressed)

    def _batch(self, begin: int, end: int, kind: int) -> Any:
        if kind == NO_FORMAT:
            raise CorruptRecordException("a batch is too short for its header")
        piece = self._data[begin:end]
        return LegacyRecordBatch(piece, kind) if kind < FORMAT else DefaultRecordBatch(piece)


class _CarefulBatch(CompressedBatch):
    def records(self) -> Iterable[Any]:
        is_compressed = bool(self._batch.attributes & COMPRESSION)
        is_large = is_compressed and self._uncompressed.whole(self._data) is None
        return self._uncompressed.one_by_one(self._data, is_large=is_large)
