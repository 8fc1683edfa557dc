"""Columns straight from the bytes of priced blocks, many rows at a time.

A block's rows are MessagePack arrays of the same fields. All of them are read field by field: one
step of numpy for what is otherwise a step of the interpreter for each value. Whatever is not
exactly as expected ends it, and the rows are then taken one by one: nothing is guessed here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Ints = np.ndarray[Any, np.dtype[np.int64]]

_NIL, _FALSE, _TRUE = 0xC0, 0xC2, 0xC3
_STR8, _STR16 = 0xD9, 0xDA
_ARRAY16 = 0xDC
# Integers behind a type byte: how many bytes, and whether signed.
_INTEGERS = {
    0xCC: (1, False), 0xCD: (2, False), 0xCE: (4, False), 0xCF: (8, False),
    0xD0: (1, True), 0xD1: (2, True), 0xD2: (4, True), 0xD3: (8, True),
}  # fmt: skip
_US_PER_DAY = 86_400_000_000
_PADDING = bytes(16)
"""So that the last header can be read like every other one."""
MAX_BYTES = 2**31 - 2**16
"""Offsets of Arrow's strings have 31 bits."""


class Unexpected(Exception):
    """The bytes are not what these columns can be read from."""


class Packed(NamedTuple):
    """The bytes of one block, and how many rows are in it."""

    value: bytes | memoryview
    rows: int


class PackedRows:
    """Reads one field after the other of all rows of some blocks, in the order of the fields."""

    def __init__(self, blocks: Sequence[Packed], fields: int) -> None:
        """Finds the rows. Raises ``Unexpected`` unless there are as many as the blocks say."""
        if sum(len(block.value) for block in blocks) > MAX_BYTES or not 16 <= fields < 256:
            raise Unexpected("too much at once")
        self._data: Bytes = np.frombuffer(
            b"".join([*(block.value for block in blocks), _PADDING]), np.uint8
        )
        data = self._data
        self._buffer = pa.py_buffer(data)
        maybe = np.flatnonzero(data[:-2] == _ARRAY16)
        begins = (data[maybe + 1] == 0) & (data[maybe + 2] == fields)
        self._starts: Ints = maybe[begins].astype(np.int64)
        wanted = np.array([block.rows for block in blocks], np.int64)
        edges = np.cumsum([0, *(len(block.value) for block in blocks)])
        if not np.array_equal(np.diff(np.searchsorted(self._starts, edges)), wanted):
            raise Unexpected("another number of rows")
        # Whether the next row follows in the same block.
        self._inner = np.ones(len(self._starts), bool)
        ends = np.cumsum(wanted)[wanted > 0] - 1
        self._inner[ends] = False
        self._at = self._starts + 3

    def finish(self) -> None:
        """Raises ``Unexpected`` unless each row ended where the next one began."""
        inner = np.flatnonzero(self._inner)
        if not np.array_equal(self._at[inner], self._starts[inner + 1]):
            raise Unexpected("rows do not join end to end")

    def integers(self) -> tuple[Ints, np.ndarray[Any, np.dtype[np.bool_]]]:
        """The values of an integer field (0 where there is none), and where there is none."""
        kinds = self._data[self._at]
        values = kinds.astype(np.int64)
        self._at += 1
        counts = np.bincount(kinds, minlength=256)
        nulls = kinds == _NIL
        plain = int(counts[:0x80].sum() + counts[0xE0:].sum() + counts[_NIL])
        if counts[0xE0:].any():
            values[kinds >= 0xE0] -= 256
        for kind, (width, signed) in _INTEGERS.items():
            if counts[kind]:
                rows = np.flatnonzero(kinds == kind)
                values[rows] = self._big_endian(self._at[rows], width, signed)
                self._at[rows] += width
                plain += int(counts[kind])
        if plain != len(values):
            raise Unexpected("no integer")
        values[nulls] = 0
        return values, nulls

    def booleans(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The values of a boolean field."""
        kinds = self._data[self._at]
        self._at += 1
        values = kinds == _TRUE
        if not np.all(values | (kinds == _FALSE)):
            raise Unexpected("no boolean")
        return values

    def strings(self) -> pa.Array:
        """The values of a text field."""
        starts, lengths = self.skip_strings()
        return self._gathered(starts, lengths)

    def skip_strings(self) -> tuple[Ints, Ints]:
        """Passes over a text field: where its values begin, and how long they are."""
        starts, lengths, self._at = self._texts(self._at)
        return starts, lengths

    def maps(self) -> tuple[Ints, pa.Array, pa.Array]:
        """Of a field of texts by text: how many each row has, all keys, and all values."""
        kinds = self._data[self._at]
        sizes = (kinds & 0x0F).astype(np.int64)
        if np.any((kinds & 0xF0) != 0x80):
            raise Unexpected("no small map")
        self._at += 1
        rounds: list[tuple[Ints, Ints, Ints, Ints, Ints]] = []
        for turn in range(int(sizes.max(initial=0))):
            rows = np.flatnonzero(sizes > turn)
            keys, key_lengths, at = self._texts(self._at[rows])
            values, value_lengths, self._at[rows] = self._texts(at)
            rounds.append((rows, keys, key_lengths, values, value_lengths))
        if not rounds:
            empty = pa.array([], pa.string())
            return sizes, empty, empty
        rows, *columns = (np.concatenate(parts) for parts in zip(*rounds, strict=True))
        order = np.argsort(rows, kind="stable")
        keys, key_lengths, values, value_lengths = (column[order] for column in columns)
        return sizes, self._gathered(keys, key_lengths), self._gathered(values, value_lengths)

    def _texts(self, at: Ints) -> tuple[Ints, Ints, Ints]:
        """Where the texts at some places begin, how long they are, and what is behind them."""
        kinds = self._data[at]
        lengths = (kinds & 0x1F).astype(np.int64)
        starts = at + 1
        short = (kinds & 0xE0) == 0xA0
        known = int(short.sum())
        for kind, width in ((_STR8, 1), (_STR16, 2)):
            rows = np.flatnonzero(kinds == kind) if known < len(kinds) else np.array([], np.int64)
            if len(rows):
                lengths[rows] = self._big_endian(starts[rows], width, signed=False)
                starts[rows] += width
                known += len(rows)
        if known != len(kinds):
            raise Unexpected("no text")
        return starts, lengths, starts + lengths

    def _gathered(self, starts: Ints, lengths: Ints) -> pa.Array:
        """The texts as one array; ``pa.ArrowInvalid`` when one is not UTF-8."""
        if not lengths.any():
            return pa.nulls(len(lengths), pa.string()).fill_null("")
        # As one array of the texts and of what is between them, whose every second value is taken.
        edges = np.empty(2 * len(lengths), np.int32)
        edges[0::2], edges[1::2] = starts, starts + lengths
        if edges.max() > len(self._data):
            raise Unexpected("a text that goes beyond the end")
        buffers = [None, pa.py_buffer(edges), self._buffer]
        both = pa.Array.from_buffers(pa.string(), 2 * len(lengths) - 1, buffers)
        found = both.take(pa.array(2 * np.arange(len(lengths))))
        found.validate(full=True)
        return found

    def _big_endian(self, at: Ints, width: int, signed: bool) -> Ints:
        values = np.zeros(len(at), np.uint64)
        for byte in range(width):
            values = (values << np.uint64(8)) | self._data[at + byte].astype(np.uint64)
        if signed:
            shift = 64 - 8 * width
            return (values << np.uint64(shift)).view(np.int64) >> np.int64(shift)
        if width == 8 and np.any(values >> np.uint64(63)):
            raise Unexpected("an integer of 64 bits without sign")
        return values.view(np.int64)


def packed_days(blocks: Sequence[Packed], fields: Sequence[str]) -> set[int]:
    """The days since 1970-01-01, UTC, of ``occurred_at_us``, the second of ``fields``.

    Raises what ``packed_columns`` raises.
    """
    rows = PackedRows(blocks, len(fields))
    rows.skip_strings()
    times_us, nulls = rows.integers()
    if nulls.any():
        raise Unexpected("no time")
    return set(np.unique(times_us // _US_PER_DAY).tolist())


def packed_columns(
    blocks: Sequence[Packed],
    fields: Sequence[str],
    kind_of: Callable[[str], pa.DataType],
    nullable: frozenset[str],
) -> dict[str, pa.Array]:
    """The columns of all rows by the names of ``fields``, of the types that ``kind_of`` gives.

    Raises ``Unexpected``, ``IndexError`` or ``pa.ArrowInvalid`` when the rows are not of these
    fields.
    """
    rows = PackedRows(blocks, len(fields))
    found: dict[str, pa.Array] = {}
    for name in fields:
        kind = kind_of(name)
        if pa.types.is_map(kind):
            sizes, keys, values = rows.maps()
            offsets = np.zeros(len(sizes) + 1, np.int32)
            offsets[1:] = np.cumsum(sizes)
            found[name] = pa.MapArray.from_arrays(pa.array(offsets), keys, values)
        elif pa.types.is_string(kind):
            found[name] = rows.strings()
        elif pa.types.is_boolean(kind):
            found[name] = pa.array(rows.booleans())
        else:
            numbers, nulls = rows.integers()
            if name not in nullable and nulls.any():
                raise Unexpected(f"{name} is missing")
            mask = nulls if name in nullable else None
            found[name] = pa.array(numbers, pa.int64(), mask=mask).cast(kind)
    rows.finish()
    return found
