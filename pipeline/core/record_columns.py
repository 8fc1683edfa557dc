"""Records of one partition as columns over the bytes they came in, instead of an object for each.

A record that somebody wants to see by itself is made then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

RECORD: Final = np.dtype(
    [
        (name, "<i8")
        for name in (
            "offset", "timestamp", "key_at", "key_length", "value_at", "value_length",
            "headers_at", "headers", "end",
        )
    ]
)  # fmt: skip
"""Where a record's parts stand among the bytes, in this order and one record behind the other; a
length of -1 is null, ``headers`` a count. Offsets rise."""
_PLACES: Final = ("key_at", "value_at", "headers_at", "end")


@dataclass(slots=True)
class KafkaRecord:
    """A record as a consumer hands it over; ``timestamp`` in ms. Bytes of a header's name that are
    no UTF-8 are lone surrogates."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class RecordColumns(Sequence[Any]):
    """``data`` are the bytes that ``table``, an array of ``RECORD``, points into."""

    __slots__ = ("_given", "data", "table")

    def __init__(
        self, data: bytes, table: npt.NDArray[Any], given: Sequence[Any] | None = None
    ) -> None:
        self.data = data
        self.table = table
        self._given = given

    @classmethod
    def of(cls, records: Sequence[Any]) -> "RecordColumns":
        """Columns of records that are objects already; these are handed out again."""
        values = [record.value for record in records]
        sizes = [0 if value is None else len(value) for value in values]
        table = np.zeros(len(records), RECORD)
        table["offset"] = [record.offset for record in records]
        table["timestamp"] = [record.timestamp for record in records]
        table["key_length"] = -1
        table["value_at"] = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        table["value_length"] = [-1 if value is None else len(value) for value in values]
        table["headers"] = [len(record.headers) for record in records]
        data = b"".join([value for value in values if value is not None])
        return cls(data, table, records)

    @property
    def is_given(self) -> bool:
        """Whether the records are objects, of which these are not all."""
        return self._given is not None

    @property
    def offsets(self) -> Ints:
        return self.table["offset"]

    @property
    def stamps_ms(self) -> Ints:
        return self.table["timestamp"]

    @property
    def sizes_bytes(self) -> Ints:
        """How many bytes each value, key and the headers have, about."""
        return self.table["end"] - self.table["key_at"]

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordColumns": ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            given = None if self._given is None else self._given[index]
            return RecordColumns(self.data, self.table[index], given)
        if self._given is not None:
            return self._given[index]
        return self._record(*self.table[index].item())

    def __iter__(self) -> Iterator[Any]:
        if self._given is not None:
            return iter(self._given)
        return (self._record(*row) for row in self.table.tolist())

    def at(self, places: Sequence[int]) -> list[Any]:
        """The records at these places."""
        if self._given is not None:
            return [self._given[place] for place in places]
        return [self._record(*row) for row in self.table[places].tolist()]

    def from_offset(self, first: int) -> "RecordColumns":
        """Those at ``first`` or behind it."""
        return self[int(np.searchsorted(self.offsets, first)) :]

    def _record(self, offset: int, timestamp: int, *places: int) -> KafkaRecord:
        key_at, key_length, value_at, value_length, headers_at, headers, _ = places
        data = self.data
        key = None if key_length < 0 else data[key_at : key_at + key_length]
        value = None if value_length < 0 else data[value_at : value_at + value_length]
        return KafkaRecord(
            offset, timestamp, key, value, _headers(data, headers_at, headers) if headers else []
        )


def joined(pieces: Sequence[RecordColumns]) -> RecordColumns:
    """The records of ``pieces``, one behind the other, with no bytes but theirs."""
    pieces = [piece for piece in pieces if len(piece)]
    if len(pieces) == 1:
        return pieces[0]
    if any(piece.is_given for piece in pieces):
        raise ValueError("columns of records that are objects are not joined")
    tables, parts = list[npt.NDArray[Any]](), list[memoryview]()
    reached = 0
    for piece in pieces:
        # A piece may be a few records out of many that stand in the same bytes.
        begin, end = int(piece.table["key_at"][0]), int(piece.table["end"][-1])
        table = piece.table.copy()
        for name in _PLACES:
            table[name] += reached - begin
        tables.append(table)
        parts.append(memoryview(piece.data)[begin:end])
        reached += end - begin
    table = np.concatenate(tables) if tables else np.empty(0, RECORD)
    return RecordColumns(b"".join(parts), table)


def _headers(data: bytes, at: int, count: int) -> list[tuple[str, bytes | None]]:
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        length, at = _varint(data, at)
        name = data[at : at + length].decode("utf-8", "surrogateescape")
        length, at = _varint(data, at + length)
        content = None if length < 0 else data[at : at + length]
        at += max(length, 0)
        headers.append((name, content))
    return headers


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint of Kafka's record format, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value >> 1 ^ -(value & 1), at
        shift += 7
