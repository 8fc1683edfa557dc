"""What a worker fetches: the records that aiokafka would hand over one by one, in runs."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import fetched_records
from pipeline.core.record_columns import RecordColumns
from pipeline.stream import transport
from pipeline.stream.raw_batches import RUN_RECORDS
from pipeline.stream.transport import _PlainResults  # pyright: ignore
from tests.test_record_headers import ODD, TP, BatchBuilder, batch, decoded

Seen = tuple[int, bytes, list[tuple[str, bytes]]]


pytestmark = pytest.mark.usefixtures("compiled", "columns_of_any_size")


@pytest.fixture
def columns_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "COLUMNS_FROM_BYTES", 0)


def in_runs(data: bytes, start: int, aborted: Any, columns: str) -> Any:
    """The same fetch as the worker's consumer takes it, as columns of topic ``columns``."""
    records = decoded(data, start, aborted)
    results = _PlainResults(columns)
    results[TP] = FetchResult(TP, assignment=None, partition_records=records, backoff=0)
    return records


def told(records: Any, *, runs: bool) -> tuple[list[Seen], int, str]:
    """Everything handed over, where the next fetch begins, and what went wrong."""
    found: list[Seen] = []
    error = ""
    try:
        for one in records:
            assert not runs or 0 < len(one) <= RUN_RECORDS or isinstance(one, RecordColumns)
            found += [(r.offset, r.value, list(r.headers)) for r in (one if runs else [one])]
    except Exception as caught:
        error = repr(caught)
    return found, records.next_fetch_offset, error


def same(
    data: bytes, start: int = 0, aborted: Any = (), topics: Sequence[str] = ("another", TP.topic)
) -> tuple[list[Seen], int, str]:
    each = told(decoded(data, start, aborted), runs=False)
    for columns in topics:
        assert told(in_runs(data, start, aborted, columns), runs=True) == each
    return each


sizes = st.sampled_from([1, 2, RUN_RECORDS - 1, RUN_RECORDS, RUN_RECORDS + 1, 2 * RUN_RECORDS])
codecs = st.sampled_from([0, 0, 1, 2, 3, 4])
pieces = st.tuples(sizes, st.booleans(), st.sampled_from([None, 7, 8]), st.integers(0, 2), codecs)


@settings(deadline=None)
@given(
    st.lists(pieces, max_size=5), st.integers(0, 300), st.booleans(),
    st.sampled_from([100, 1_000, fetched_records.MAX_WHOLE_BYTES]), st.data(),
)  # fmt: skip
def test_runs_hold_what_the_records_are(
    parts: list[tuple[int, bool, int | None, int, int]], start: int, aborts: bool, whole_bytes: int,
    drawn: Any,
) -> None:  # fmt: skip
    with mock.patch.object(fetched_records, "MAX_WHOLE_BYTES", whole_bytes):
        hold_what_the_records_are(parts, start, aborts, drawn)


def hold_what_the_records_are(
    parts: list[tuple[int, bool, int | None, int, int]], start: int, aborts: bool, drawn: Any
) -> None:
    data, offset = b"", 0
    for size, odd, producer_id, gap, codec in parts:
        records: Any = [(b"%d" % n, [(ODD, b"x")] if odd and n % 60 == 50 else [("a", None)])
                        for n in range(size)]  # fmt: skip
        data += batch(records, offset + gap, compression=codec, producer_id=producer_id)
        offset += gap + size
    # A fetch brings no batch that ends before where it begins.
    start = min(start, parts[0][0] + parts[0][3] - 1) if parts else 0
    if data and drawn.draw(st.booleans()):  # what is damaged is found by its checksum
        at = drawn.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] if at % 3 == 0 else data[:at]
        if at % 3 == 0 and any(odd for _, odd, *_ in parts):
            # Where the checksum does not cover it, an odd name has aiokafka begin anew.
            same(data, start, [(7, 0)] if aborts else [], ["another"])
            return
    same(data, start, [(7, 0)] if aborts else [])


@pytest.mark.parametrize("at", [0, 1, RUN_RECORDS, RUN_RECORDS + 7])
def test_what_stands_before_an_odd_name_is_handed_over_once(at: int) -> None:
    records = [(b"%d" % n, [(ODD if n == at else "a", b"")]) for n in range(RUN_RECORDS + 9)]
    found, next_offset, error = same(batch(records, 40), 43)
    assert ([offset for offset, _, _ in found], error) == (list(range(43, 49 + RUN_RECORDS)), "")
    assert next_offset == 49 + RUN_RECORDS


@pytest.mark.parametrize("length", [-(2**31), -13, -12, -1, 0, 4, 48])
def test_a_batch_too_short_for_its_header(length: int) -> None:
    data = bytearray(batch([(b"0", [])], 0, BatchBuilder) + batch([(b"1", [])], 1, BatchBuilder))
    data[8:12] = length.to_bytes(4, "big", signed=True)
    same(bytes(data))


def test_usual_batches_come_as_columns() -> None:
    data = batch([(b"0", []), (b"1", [("a", None)])], 0)
    [columns] = list(in_runs(data, 0, (), TP.topic))
    assert isinstance(columns, RecordColumns)
    [records] = list(in_runs(data, 0, (), "another"))
    assert [r.value for r in columns] == [r.value for r in records]


def test_few_records_come_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch([(b"0", []), (b"1", [("a", None)])], 0)
    for limit_bytes, is_columns in ((len(data), True), (len(data) + 1, False)):
        monkeypatch.setattr(transport, "COLUMNS_FROM_BYTES", limit_bytes)
        [records] = list(in_runs(data, 0, (), TP.topic))
        assert isinstance(records, RecordColumns) == is_columns


def test_a_malformed_batch_hands_over_what_stands_before_the_fault() -> None:
    data = bytearray(batch([(b"0", []), (b"1", [])], 40, BatchBuilder))
    data[-1] = 2  # it has a header, where the batch ends
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    found, next_offset, error = same(bytes(data))
    assert ([value for _, value, _ in found], next_offset) == ([b"0"], 41)
    assert "usage.events partition 3 offset 41: " in error


def test_a_damaged_batch_hands_over_those_before_it() -> None:
    data = bytearray(batch([(b"0", [])], 0, BatchBuilder) + batch([(b"1", [])], 1, BatchBuilder))
    data[-1] ^= 0xFF
    found, next_offset, error = same(bytes(data))
    assert ([value for _, value, _ in found], next_offset) == ([b"0"], 1)
    assert "usage.events partition 3 offset 1: " in error


def test_offsets_that_do_not_rise_come_as_records() -> None:
    """Brokers take such batches. Columns rely on the order; all there is comes, once."""
    data = bytearray(batch([(b"0", []), (b"1", []), (b"2", [])], 40, BatchBuilder))
    at = data.index(b"\x02k\x02" + b"2") - 1
    data[at] = 0  # the third one has the first one's offset
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    found = told(in_runs(bytes(data), 0, (), TP.topic), runs=True)
    assert found == told(in_runs(bytes(data), 0, (), "another"), runs=True)
    assert [value for _, value, _ in found[0]] == [b"0", b"1", b"2"]
