"""Priced blocks: what the worker hands to the ledger sink on ``usage.priced``.

A block covers a run of source offsets ``[first_offset, next_offset)`` of one partition without
a hole; rejected, duplicate and forwarded records lie inside the range and have no row. Blocks of
one partition join end to end, so a reader notices a missing one.

A block of corrections is one of the log of resolved corrections: its rows are deltas, and each has
a mark with what further entries of an event have beside.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.core.events import Event, PricedEvent
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version

BLOCK_VERSION = 1

EVENT_COLUMNS: tuple[str, ...] = Event.__struct_fields__
ROW_COLUMNS: tuple[str, ...] = PricedEvent.__struct_fields__

Row = tuple[Any, ...]
"""The values of ``ROW_COLUMNS``."""
Mark = tuple[int, int, int, str, str, str, int]
"""The values of ``MARK_COLUMNS``."""
MARK_COLUMNS: tuple[str, ...] = (
    "entry_no",
    "requests",
    "unpriced_requests",
    "correction_id",
    "correction_reason",
    "source_topic",
    "source_partition",
)


class PricedBlock(msgspec.Struct, array_like=True, gc=False):
    """``rows`` hold the values of ``ROW_COLUMNS`` in that order; ``cost_nano`` may be None.

    They are tuples where a block was read; ``PricedEvent`` does as well where one is written, and
    so do rows that are encoded already (``packed_rows``).

    ``marks`` are those of the rows, in their order, in a block of corrections; else empty. There
    ``source_offset`` is the place of the correction, not one of ``[first_offset, next_offset)``.
    """

    version: int
    epoch: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    rows: Sequence[Row]
    rejected: list[int]
    duplicates: list[int]
    forwarded: list[int]
    marks: list[Mark] = []


class HeldRows(Sequence[Row]):
    """The rows of a block as the bytes they came in; they become values only if asked for.

    Then ``CorruptRecord`` is raised when they are no rows.
    """

    __slots__ = ("_count", "_rows", "packed")

    def __init__(self, encoded: memoryview) -> None:
        self._count, header_bytes = _array_header(encoded)
        self._rows: list[Row] | None = None
        self.packed = encoded[header_bytes:]
        """One row after the other, each a MessagePack array."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self._decoded()[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._decoded())

    def _decoded(self) -> list[Row]:
        if self._rows is None:
            header = b"\xdd" + self._count.to_bytes(4)
            try:
                self._rows = _rows_decoder.decode(header + self.packed)
            except UNREADABLE as error:
                raise CorruptRecord(f"a priced block's rows are not readable: {error}") from error
        return self._rows


class _RawBlock(PricedBlock, array_like=True, gc=False):
    rows: msgspec.Raw  # pyright: ignore[reportIncompatibleVariableOverride]


Block = TypeVar("Block", bound=PricedBlock)

_ROWS_FIELD = PricedBlock.__struct_fields__.index("rows")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PricedBlock)
_raw_decoder = msgspec.msgpack.Decoder(_RawBlock)
_rows_decoder = msgspec.msgpack.Decoder(list[Row])


def encode_block(block: PricedBlock) -> bytes:
    """The block as MessagePack."""
    return _encoder.encode(block)


def packed_rows(count: int, packed: bytes | memoryview) -> Any:
    """``rows`` of a block that is written, made of ``count`` rows that are MessagePack already."""
    return msgspec.Raw(b"".join((b"\xdd", count.to_bytes(4), packed)))


def decode_block(value: bytes) -> PricedBlock:
    """The block in ``value``; raises ``CorruptRecord`` when it is none this code can read."""
    return _decoded(_decoder, value)


def hold_block(value: bytes) -> PricedBlock:
    """The block in ``value`` with ``HeldRows``; raises ``CorruptRecord`` when the rest is none."""
    block = _decoded(_raw_decoder, value)
    values: list[Any] = [getattr(block, name) for name in block.__struct_fields__]
    values[_ROWS_FIELD] = HeldRows(memoryview(block.rows))
    return PricedBlock(*values)


def _decoded(decoder: "msgspec.msgpack.Decoder[Block]", value: bytes) -> Block:
    try:
        block = decoder.decode(value)
    except UNREADABLE as error:
        raise unreadable(value, "priced block", BLOCK_VERSION, error) from error
    if block.version != BLOCK_VERSION:
        raise wrong_version("priced block", block.version, BLOCK_VERSION)
    return block


def _array_header(encoded: memoryview) -> tuple[int, int]:
    """How many elements a MessagePack array has, and in how many bytes it says so."""
    kind = encoded[0]
    if kind & 0xF0 == 0x90:
        return kind & 0x0F, 1
    if kind in (0xDC, 0xDD):
        end = 3 if kind == 0xDC else 5
        return int.from_bytes(encoded[1:end]), end
    raise CorruptRecord("not a priced block: its rows are no array")
