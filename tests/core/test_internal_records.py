"""Internal records: whatever the bytes, they are read or refused, with the version they state."""

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.blocks import (
    BLOCK_VERSION,
    PricedBlock,
    decode_block,
    encode_block,
    hold_block,
)
from pipeline.core.errors import CorruptRecord
from pipeline.core.partials import PARTIAL_VERSION, Partial, decode_partial, encode_partial

BLOCK = encode_block(PricedBlock(BLOCK_VERSION, 1, "t", 0, 5, 9, [("é", 1, None)], [7], [], [8]))
PARTIAL = encode_partial(
    Partial(PARTIAL_VERSION, 1, 2, 3, 0, True, 9, 5, [("port:é", 20_000, (1, 2, 3, 4, 5, 6))])
)
WIDE = encode_partial(
    Partial(PARTIAL_VERSION, 1, 2, 3, 0, True, 9, 5, [("all", 1, (1, 2, 2**70, 4, 5, 6))])
)


def held_rows(value: bytes) -> list[Any]:
    return list(hold_block(value).rows)


KINDS: list[tuple[Any, bytes]] = [
    (decode_block, BLOCK),
    (held_rows, BLOCK),
    (decode_partial, PARTIAL),
    (decode_partial, WIDE),
]
DEEP = b"\x91" * 100_000


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_record_is_read_or_refused(kind: tuple[Any, bytes], data: st.DataObject) -> None:
    decode, whole = kind
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for value in (bytes(damaged), bytes(damaged[:cut])):
        with contextlib.suppress(CorruptRecord):
            decode(value)


@pytest.mark.parametrize("decode", [decode_block, hold_block, decode_partial])
@pytest.mark.parametrize("value", [b"", b"\xc1", DEEP, msgspec.msgpack.encode([1]), b"\xa1\xff"])
def test_what_is_no_record_is_refused(decode: Any, value: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode(value)


@pytest.mark.parametrize(("decode", "whole"), KINDS[:3])
@pytest.mark.parametrize("length", [2, 99])
def test_another_version_is_named_however_the_rest_looks(
    decode: Any, whole: bytes, length: int
) -> None:
    fields = msgspec.msgpack.decode(whole)
    fields[0] = 7
    value = msgspec.msgpack.encode((fields * 20)[:length])
    with pytest.raises(CorruptRecord, match="of version 7; this release reads 1"):
        decode(value)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_held_rows_are_the_rows(count: int) -> None:
    rows = [("é", number, None) for number in range(count)]
    held = hold_block(encode_block(PricedBlock(BLOCK_VERSION, 1, "t", 0, 5, 9, rows, [7], [], [8])))
    assert len(held.rows) == count
    assert list(held.rows) == rows
    assert held.rows[:2] == rows[:2]
    assert (held.next_offset, held.rejected, held.forwarded) == (9, [7], [8])


@pytest.mark.parametrize("rows", [7, "no", {"a": 1}, None])
def test_rows_that_are_no_array_are_refused_at_once(rows: Any) -> None:
    value = msgspec.msgpack.encode([BLOCK_VERSION, 1, "t", 0, 5, 9, rows, [], [], []])
    with pytest.raises(CorruptRecord, match="rows are no array"):
        hold_block(value)
