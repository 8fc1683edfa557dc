"""Record batches read as columns, and batches of large values, against aiokafka's own codec."""

import struct
from typing import Any

import pytest
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.careful_records import CarefulRecords
from pipeline.core.record_columns import RecordColumns, joined
from pipeline.fetched_records import Uncompressed
from pipeline.native.batches import BatchReader, batch_reader, checksum
from pipeline.native.library import library
from pipeline.stream.large_batch import LARGE_BYTES, LargeValueBatch, is_large
from pipeline.stream.raw_batches import RawBatches, is_raw

pytestmark = pytest.mark.usefixtures("compiled")

HEADER_BYTES = 61
Parts = tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]

NULLABLE = st.one_of(st.none(), st.binary(max_size=5), st.integers(60, 70).map(bytes))
HEADERS = st.lists(st.tuples(st.text(max_size=4), NULLABLE), max_size=3)
RECORDS = st.lists(st.tuples(NULLABLE, NULLABLE, HEADERS), min_size=1, max_size=20)


def reader() -> BatchReader:
    found = batch_reader()
    assert found is not None
    return found


def encoded(records: Any, *, base: int = 0, compression: int = 0, append_time: int = -1) -> bytes:
    """A batch at offset ``base``; with ``append_time`` as the broker stamps it."""
    builder = DefaultRecordBatchBuilder(2, compression, 0, -1, -1, 0, 1 << 20)
    for number, (key, value, headers) in enumerate(records):
        builder.append(number, 1_700_000_000_000 + number, key, value, headers)
    batch = bytearray(builder.build())
    struct.pack_into(">q", batch, 0, base)
    if append_time >= 0:
        attributes = struct.unpack_from(">h", batch, 21)[0] | 0x08
        struct.pack_into(">h", batch, 21, attributes)
        struct.pack_into(">q", batch, 35, append_time)
        struct.pack_into(">I", batch, 17, calc_crc32c(bytes(batch[21:])))
    return bytes(batch)


def parts(record: Any) -> Parts:
    return record.offset, record.timestamp, record.key, record.value, list(record.headers)


def read(data: bytes) -> list[RecordColumns]:
    batches, found = RawBatches(data, reader(), Uncompressed()), list[RecordColumns]()
    while batches.has_next():
        batch = batches.next_batch()
        assert batch.validate_crc()
        found += [run.records for run in batch]
    return found


@settings(max_examples=200)
@given(
    st.lists(RECORDS, min_size=1, max_size=4), st.sampled_from([0, 1, 2, 3, 4]), st.booleans(),
    st.integers(0, 9),
)  # fmt: skip
def test_columns_hold_what_aiokafka_reads(
    batches: list[Any], compression: int, append_time: bool, cut: int
) -> None:
    data, base = b"", 7
    for records in batches:
        stamp = base * 1_000 if append_time else -1
        data += encoded(records, base=base, compression=compression, append_time=stamp)
        base += len(records) + 3
    memory, expected = MemoryRecords(data), list[Parts]()
    while memory.has_next():
        expected += map(parts, memory.next_batch() or ())
    assert is_raw(data)
    found = read(data + data[:cut])  # the last batch of a fetch may be cut off
    together = joined(found)
    assert [parts(record) for record in together] == expected
    assert [parts(together[n]) for n in range(len(together))] == expected
    assert together.offsets.tolist() == [offset for offset, *_ in expected]
    some = together[1:3]
    assert [parts(record) for record in some] == expected[1:3]
    middle = expected[len(expected) // 2][0]
    assert [parts(r) for r in together.from_offset(middle)] == [
        e for e in expected if e[0] >= middle
    ]
    sizes = [len(key or b"") + len(value or b"") for _, _, key, value, _ in expected]
    assert all(a <= b for a, b in zip(sizes, together.sizes_bytes.tolist(), strict=True))


@settings(max_examples=400)
@given(RECORDS, st.data())
def test_what_is_malformed_is_said_to_be_and_nothing_else_is_read(
    records: Any, data: st.DataObject
) -> None:
    batch = bytearray(encoded(records))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(57, len(batch) - 1))  # the count, and the records
        batch[at] = data.draw(st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xFF, batch[at] ^ 1]))
    payload = bytes(batch[HEADER_BYTES:])
    found = reader().read(bytes(batch), payload)
    if found is None:
        return  # it may refuse more: it never reads beyond a record, and takes no wrong lengths
    # Not aiokafka's: it takes the attributes of a record for a number of one byte or several.
    assert [parts(record) for record in found] == [
        parts(record) for record in CarefulRecords(bytes(batch), cuts=False)
    ]


@pytest.mark.parametrize("attributes", [0x00, 0x7F, 0x80, 0xFF])
def test_the_attributes_of_a_record_are_one_byte(attributes: int) -> None:
    batch = bytearray(encoded([(b"key", b"value", [("h", None)])]))
    batch[HEADER_BYTES + 1] = attributes
    expected = [(0, 1_700_000_000_000, b"key", b"value", [("h", None)])]
    found = reader().read(bytes(batch), bytes(batch[HEADER_BYTES:]))
    assert found is not None
    assert [parts(record) for record in found] == expected
    assert [parts(record) for record in CarefulRecords(bytes(batch), cuts=False)] == expected


def test_a_count_is_not_trusted() -> None:
    batch = bytearray(encoded([(b"k", b"v", [])]))
    for count in (2, 2**31 - 1, -1):
        struct.pack_into(">i", batch, 57, count)
        assert reader().read(bytes(batch), bytes(batch[HEADER_BYTES:])) is None
    batches = RawBatches(bytes(batch), reader(), Uncompressed())
    batches.next_batch()
    assert not batches.has_next()
    with pytest.raises(CorruptRecordException, match="no batch left"):
        batches.next_batch()


def test_sums_are_compared_and_formats_told() -> None:
    data = bytearray(encoded([(b"k", b"value", [("h", None)])]))
    assert RawBatches(bytes(data), reader(), Uncompressed()).next_batch().validate_crc()
    data[-1] ^= 1
    assert not RawBatches(bytes(data), reader(), Uncompressed()).next_batch().validate_crc()
    data[16] = 1
    assert not is_raw(bytes(data))
    unknown = bytearray(encoded([(b"k", b"v", [])]))
    unknown[22] |= 7
    with pytest.raises(UnsupportedCodecError):
        list(RawBatches(bytes(unknown), reader(), Uncompressed()).next_batch())


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 63, 1_000])
def test_the_sum_is_crc32c(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(range(256)) * 4
    for start in (0, 3):
        expected = calc_crc32c(data[start : start + length])
        assert checksum(data[: start + length], start) == expected
        with monkeypatch.context() as without:
            without.setattr("pipeline.native.batches.library", lambda: None)
            assert checksum(bytearray(data[: start + length]), start) == expected
    assert library() is not None


def test_records_that_are_objects_are_not_joined() -> None:
    [piece] = read(encoded([(b"k", b"v", [])]))
    given = RecordColumns.of(list(piece))
    assert [parts(record) for record in given] == [parts(record) for record in piece]
    with pytest.raises(ValueError, match="not joined"):
        joined([piece, given])


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.binary(max_size=3), st.sampled_from([0, 1, 63, 64, 65, 8_191, 8_192, 20_000])),
        min_size=1, max_size=8,
    ),
    st.booleans(),
)  # fmt: skip
def test_a_batch_of_large_values_is_what_aiokafka_reads(
    records: list[tuple[bytes, int]], is_transactional: bool
) -> None:
    batch = LargeValueBatch(1 << 20, is_transactional=is_transactional)
    for number, (key, size) in enumerate(records):
        value = bytes([number]) * size
        assert batch.append(timestamp=None, key=key, value=value) is not None
    batch.close()
    assert batch.append(timestamp=None, key=b"k", value=b"v") is None
    size_bytes = batch.size()
    batch._set_producer_state(77, 3, 5)
    data = bytes(batch._build())
    assert (len(data), batch.size(), batch.record_count()) == (
        size_bytes, size_bytes, len(records)
    )  # fmt: skip
    assert batch._build() == data
    found = DefaultRecordBatch(data)
    assert found.validate_crc()
    assert (found.is_transactional, found.producer_id) == (is_transactional, 77)
    assert (found.producer_epoch, found.base_sequence) == (3, 5)
    assert [(r.offset, r.key, r.value, r.headers) for r in found] == [
        (n, key, bytes([n]) * size, []) for n, (key, size) in enumerate(records)
    ]


def test_a_batch_of_large_values_is_full_and_takes_nothing_else() -> None:
    def batch() -> LargeValueBatch:
        return LargeValueBatch(1_000, is_transactional=False)

    first = batch()
    assert first.append(timestamp=None, key=b"k", value=bytes(5_000)) is not None
    assert first.append(timestamp=None, key=b"k", value=b"v") is None
    for other in (
        {"timestamp": 5, "key": b"k", "value": b"v"},
        {"timestamp": None, "key": None, "value": b"v"},
        {"timestamp": None, "key": b"k", "value": None},
        {"timestamp": None, "key": b"k", "value": b"v", "headers": [("a", b"b")]},
    ):
        assert batch().append(**other) is None
    assert is_large(b"k", bytes(LARGE_BYTES), ())
    assert not is_large(b"k", bytes(LARGE_BYTES - 1), ())
    assert not is_large(b"k", bytes(LARGE_BYTES), [("a", b"b")])
    assert not is_large(None, bytes(LARGE_BYTES), ())
    assert not is_large(b"k", None, ())
