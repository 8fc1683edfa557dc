"""Header names of Kafka records that are not valid UTF-8, taken and sent on unchanged.

Brokers take any bytes as the name of a header; aiokafka reads and writes UTF-8 only, and a name
that is not would stop whoever reads the partition. ``install`` lets every consumer of this process
read such a name with its odd bytes as lone surrogates (Python's ``surrogateescape``), and
``RawNamesBatch`` writes them back as they were. What cannot be decoded at all raises
``CorruptRecord`` with topic, partition and offset.

The compiled decoder stays in charge: only a fetch it gives up on is decoded once more, in Python.
"""

import struct
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record import default_records, legacy_records
from aiokafka.record.memory_records import MemoryRecords

from pipeline.core.errors import CorruptRecord

_LENGTH = struct.Struct(">i")
_LENGTH_OFFSET = 8
_MAGIC_OFFSET = 16
_WITH_HEADERS = 2
_RawBatch: Any = default_records._DefaultRecordBatchPy  # pyright: ignore[reportPrivateUsage]
_RawBuilder: Any = default_records._DefaultRecordBatchBuilderPy  # pyright: ignore[reportPrivateUsage]


def install() -> None:
    """Makes every consumer of this process take any header name; harmless to repeat."""
    fetcher.PartitionRecords = TolerantRecords  # pyright: ignore[reportPrivateImportUsage]
    fetcher.MemoryRecords = FetchedBytes  # pyright: ignore[reportPrivateImportUsage]


def has_raw_names(headers: Iterable[tuple[str, bytes | None]]) -> bool:
    """Whether a name has bytes that are not UTF-8, so that only ``RawNamesBatch`` can send it."""
    return any("\udc80" <= letter <= "\udcff" for name, _ in headers for letter in name)


class FetchedBytes:
    """One partition's part of a fetch; its bytes are kept for a second attempt."""

    __slots__ = ("data", "has_next", "next_batch", "size_in_bytes")

    def __init__(self, data: bytes) -> None:
        records = MemoryRecords(data)
        self.data = data
        self.has_next = records.has_next
        self.next_batch = records.next_batch
        self.size_in_bytes = records.size_in_bytes


class TolerantRecords(PartitionRecords):
    """The records of one partition's part of a fetch, whatever their headers are called."""

    def __init__(self, tp: Any, records: FetchedBytes, *arguments: Any) -> None:
        super().__init__(tp, records, *arguments)
        self._data = records.data

    def _unpack_records(self) -> Generator[Any]:
        try:
            try:
                yield from super()._unpack_records()
            except UnicodeDecodeError:
                # On with the same batch; what of it was handed over is left out.
                self._records = _RawNamesFetch(self._data, self.next_fetch_offset)
                yield from super()._unpack_records()
        except (UnicodeDecodeError, CorruptRecordException) as error:
            raise self._corrupt(error) from error

    def _corrupt(self, error: Exception) -> CorruptRecord:
        tp = self._tp
        return CorruptRecord(
            f"{tp.topic} partition {tp.partition} offset {self.next_fetch_offset}: the record "
            f"cannot be decoded: {error}"
        )


class RawNamesBatch(BatchBuilder):
    """A batch of records to send whose header names may have bytes that are not UTF-8."""

    def __init__(self, size_bytes: int, compression: int, *, is_transactional: bool) -> None:
        super().__init__(size_bytes, compression, is_transactional=is_transactional)
        self._builder = _RawBuilder(
            _WITH_HEADERS,
            compression,
            is_transactional=is_transactional,
            producer_id=-1,
            producer_epoch=-1,
            base_sequence=0,
            batch_size=size_bytes,
        )

    def append(
        self, *, timestamp: int | None, key: Any, value: Any, headers: Sequence[Any] = ()
    ) -> Any:
        """As its parent's; None when the batch is full."""
        named = [(_RawName(name), content) for name, content in headers]
        return super().append(timestamp=timestamp, key=key, value=value, headers=named)

    def _set_producer_state(
        self, producer_id: int, producer_epoch: int, base_sequence: int
    ) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


class _RawName(str):
    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return super().encode(encoding, "surrogateescape")


class _RawText(bytearray):
    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "surrogateescape")


class _RawBytes(bytearray):
    """A buffer whose slices decode to text with lone surrogates for what is not UTF-8."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return _RawText(found) if isinstance(index, slice) else found


class _RawNamesBatchReader(_RawBatch):
    def _maybe_uncompress(self) -> None:
        if not self._decompressed:
            super()._maybe_uncompress()
            self._buffer = _RawBytes(self._buffer)


class _RawNamesFetch:
    """Cuts a fetch into batches that are decoded in Python, from the one that holds ``offset``."""

    def __init__(self, data: bytes, offset: int) -> None:
        self._data = data
        self._at = 0
        while (end := self._end()) and self._batch(end).next_offset <= offset:
            self._at = end

    def has_next(self) -> bool:
        return self._end() is not None

    def next_batch(self) -> Any:
        end = self._end() or len(self._data)
        batch = self._batch(end)
        self._at = end
        return batch

    def _batch(self, end: int) -> Any:
        piece = self._data[self._at : end]
        magic = piece[_MAGIC_OFFSET]
        if magic < _WITH_HEADERS:
            return legacy_records.LegacyRecordBatch(piece, magic)
        return _RawNamesBatchReader(piece)

    def _end(self) -> int | None:
        """Where the batch at hand ends; None when the fetch holds no whole one any more."""
        start = self._at + _LENGTH_OFFSET
        if start + _LENGTH.size > len(self._data):
            return None
        end = start + _LENGTH.size + _LENGTH.unpack_from(self._data, start)[0]
        return end if end <= len(self._data) else None
