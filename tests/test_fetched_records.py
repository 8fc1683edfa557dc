"""What consumers read of compressed batches, small and large, against aiokafka's own decoder."""

import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import fetched_records
from pipeline.careful_records import (
    CUT_FROM,
    KEPT_KEY_BYTES,
    KEPT_VALUE_BYTES,
    MAX_HEADERS,
    MAX_RECORD_BYTES,
    CarefulRecords,
)
from pipeline.core.corrections import MAX_CORRECTION_BYTES
from pipeline.core.event_codec import MAX_EVENT_BYTES
from pipeline.fetched_records import MAX_TURN_BYTES, MAX_WHOLE_BYTES, BoundedResult
from tests.compressed_batches import Blanks, Given, zstd_batch
from tests.native.test_batches import RECORDS, encoded
from tests.test_record_headers import TP, decoded

MIB = 1024 * 1024
SMALL = Given(b"k", b"small", ((b"h", b"x"),))


def parts(record: Any) -> tuple[Any, ...]:
    return (
        record.offset, record.timestamp, record.timestamp_type, record.key, record.value,
        list(record.headers),
    )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(RECORDS, st.sampled_from([0, 1, 2, 3, 4]), st.sampled_from([-1, 5]), st.booleans())
def test_careful_reading_finds_what_aiokafka_reads(
    records: Any, compression: int, append_time: int, cuts: bool
) -> None:
    data = encoded(records, compression=compression, append_time=append_time)
    expected = [*map(parts, DefaultRecordBatch(data))]
    careful = CarefulRecords(data, cuts=cuts)
    assert [*map(parts, careful)] == expected
    assert next(careful, None) is None


@settings(max_examples=100, deadline=None)
@given(RECORDS, st.sampled_from([1, 2, 3, 4]), st.integers(0, 100))
def test_a_batch_is_read_alike_whole_and_one_by_one(
    records: Any, compression: int, whole_bytes: int
) -> None:
    data = encoded(records, compression=compression)
    expected = [*map(parts, DefaultRecordBatch(data))]
    with mock.patch.object(fetched_records, "MAX_WHOLE_BYTES", whole_bytes):
        records = decoded(data)
        assert [parts(record) for record in records] == expected


@settings(max_examples=200, deadline=None)
@given(RECORDS, st.data())
def test_what_breaks_the_format_is_corrupt_or_another_record(records: Any, drawn: Any) -> None:
    """Never another error, and no memory for what a length claims."""
    data = bytearray(encoded(records))
    data[drawn.draw(st.integers(61, len(data) - 1))] ^= drawn.draw(st.integers(1, 255))
    try:
        found = [*map(parts, CarefulRecords(bytes(data), cuts=drawn.draw(st.booleans())))]
    except CorruptRecordException:
        return
    assert len(found) == len(records)


@pytest.mark.parametrize(
    "large",
    [
        Given(b"key", Blanks(MAX_RECORD_BYTES)),
        Given(Blanks(MAX_RECORD_BYTES), b"value"),
        Given(Blanks(MAX_RECORD_BYTES), None),
        Given(b"key", b"value", ((b"a", b"b"), (b"h", Blanks(MAX_RECORD_BYTES)))),
        Given(b"key", b"value", ((b"", None),) * (MAX_HEADERS + 1)),
        Given(Blanks(MAX_RECORD_BYTES // 2), Blanks(MAX_RECORD_BYTES // 2)),
    ],
    ids=["value", "key", "key-alone", "header", "headers", "together"],
)
def test_a_record_too_large_for_anybody_is_cut(large: Given) -> None:
    # The last one makes the batch large, also where it is the headers' number that is too high.
    given_ = [SMALL, large, SMALL, Given(b"k", Blanks(MAX_WHOLE_BYTES))]
    first, cut, second, last = decoded(zstd_batch(given_, 1_000))
    assert parts(first) == (0, 1_000, 0, b"k", b"small", [("h", b"x")])
    assert parts(second) == (2, 1_000, 0, b"k", b"small", [("h", b"x")])
    assert last.value == b" " * MAX_WHOLE_BYTES
    assert (cut.offset, cut.timestamp) == (1, 1_000)
    assert cut.key == (b"key" if large.key == b"key" else b" " * KEPT_KEY_BYTES)
    assert len(cut.value) == KEPT_VALUE_BYTES
    assert cut.value.strip() == (b"value" if large.value == b"value" else b"")
    [(name, size)] = cut.headers
    assert name == CUT_FROM
    assert int(size) > (MAX_HEADERS * 2 if large.value == b"value" and large.headers else 0)


def test_what_is_cut_is_too_large_for_everybody() -> None:
    assert max(MAX_EVENT_BYTES, MAX_CORRECTION_BYTES) < KEPT_VALUE_BYTES


def test_the_largest_record_is_whole() -> None:
    room = Given(b"k", Blanks(MAX_RECORD_BYTES - 100))
    [found] = decoded(zstd_batch([room], 1_000))
    assert found.value == b" " * (MAX_RECORD_BYTES - 100)


READ = """
import os, sys
from tests.processes import peak_kib
from tests.test_record_headers import decoded

data, before_kib = sys.stdin.buffer.read(), peak_kib(os.getpid())
print(*(record.headers[0][0] for record in decoded(data)), peak_kib(os.getpid()) - before_kib)
"""


def test_gigabytes_take_no_memory() -> None:
    """A batch of a hundred KB that comes to four gigabytes, read by a process of its own."""
    data = zstd_batch([SMALL, *[Given(b"k", Blanks(1 << 30))] * 4, SMALL], 1_000)
    assert len(data) < MIB
    read = subprocess.run(
        [sys.executable, "-c", READ], input=data, capture_output=True, timeout=120, check=False
    )
    assert read.returncode == 0, read.stderr.decode()
    *names, grown_kib = read.stdout.decode().split()
    assert names == ["h", *[CUT_FROM] * 4, "h"]
    assert int(grown_kib) < 64 * 1024


class Fetched:
    """As much of a consumer's assignment as handing over a fetch needs."""

    active = True

    def __init__(self) -> None:
        self.position = 0
        self.paused = False

    def state_value(self, _: Any) -> "Fetched":
        return self

    def consumed_to(self, offset: int) -> None:
        self.position = offset


def turns(result: FetchResult, most: int | None = None) -> list[list[int]]:
    found: list[list[int]] = []
    while result.has_more():
        found.append([record.offset for record in result.getall(most)])
    return found


def test_a_turn_ends_with_its_bytes() -> None:
    half = Given(b"k", Blanks(MAX_TURN_BYTES // 2))
    data = zstd_batch([half] * 9, 1_000)
    result = BoundedResult(TP, assignment=Fetched(), partition_records=decoded(data), backoff=0)
    # What was uncompressed in vain, to see whether the whole is small, counts as well.
    assert turns(result) == [[0], [1, 2], [3, 4], [5, 6], [7, 8], []]
    result = BoundedResult(TP, assignment=Fetched(), partition_records=decoded(data), backoff=0)
    assert turns(result, 1) == [[n] for n in range(9)] + [[]]


def test_small_batches_come_in_turns_as_well() -> None:
    data = b""
    for number in range(9):
        batch = zstd_batch([Given(b"k", Blanks(MAX_WHOLE_BYTES - 100))], 1_000)
        data += number.to_bytes(8, "big") + batch[8:]
    result = BoundedResult(TP, assignment=Fetched(), partition_records=decoded(data), backoff=0)
    found = turns(result)
    assert [offset for turn in found for offset in turn] == list(range(9))
    assert max(map(len, found)) <= 3
