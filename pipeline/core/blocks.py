"""Priced blocks: what the worker hands to the ledger sink on ``usage.priced``.

A block covers a run of source offsets ``[first_offset, next_offset)`` of one partition without
a hole; rejected, duplicate and forwarded records lie inside the range and have no row. Blocks of
one partition join end to end, so a reader notices a missing one.

A block of corrections is one of the log of resolved corrections: its rows are deltas, and each has
a mark with what further entries of an event have beside.
"""

from typing import Any

import msgspec

from pipeline.core.events import Event, PricedEvent
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version

BLOCK_VERSION = 1

EVENT_COLUMNS: tuple[str, ...] = Event.__struct_fields__
ROW_COLUMNS: tuple[str, ...] = PricedEvent.__struct_fields__

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

    They are tuples where a block was read; ``PricedEvent`` does as well where one is written.

    ``marks`` are those of the rows, in their order, in a block of corrections; else empty. There
    ``source_offset`` is the place of the correction, not one of ``[first_offset, next_offset)``.
    """

    version: int
    epoch: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    rows: list[tuple[Any, ...]]
    rejected: list[int]
    duplicates: list[int]
    forwarded: list[int]
    marks: list[Mark] = []


class HeldBlock(PricedBlock, array_like=True, gc=False):
    """A block with the bytes it was read from."""

    encoded: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(PricedBlock)


def encode_block(block: PricedBlock) -> bytes:
    """The block as MessagePack."""
    return _encoder.encode(block)


def decode_block(value: bytes) -> PricedBlock:
    """The block in ``value``; raises ``CorruptRecord`` when it is none this code can read."""
    try:
        block = _decoder.decode(value)
    except UNREADABLE as error:
        raise unreadable(value, "priced block", BLOCK_VERSION, error) from error
    if block.version != BLOCK_VERSION:
        raise wrong_version("priced block", block.version, BLOCK_VERSION)
    return block


def hold_block(value: bytes) -> HeldBlock:
    """``decode_block``, with the bytes kept."""
    block = decode_block(value)
    return HeldBlock(*(getattr(block, name) for name in block.__struct_fields__), encoded=value)
