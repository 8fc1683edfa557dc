"""What a worker fetches: the records that aiokafka would hand over one by one, in runs."""

from typing import Any

import pytest
from aiokafka.consumer.fetcher import FetchResult
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream.transport import RUN_RECORDS, _PlainResults  # pyright: ignore
from tests.test_record_headers import ODD, TP, BatchBuilder, batch, decoded

Seen = tuple[int, bytes, list[tuple[str, bytes]]]


def in_runs(data: bytes, start: int = 0, aborted: Any = ()) -> Any:
    """The same fetch as the worker's consumer takes it."""
    records = decoded(data, start, aborted)
    results = _PlainResults()
    results[TP] = FetchResult(TP, assignment=None, partition_records=records, backoff=0)
    return records


def told(records: Any, *, runs: bool) -> tuple[list[Seen], int, str]:
    """Everything handed over, where the next fetch begins, and what went wrong."""
    found: list[Seen] = []
    error = ""
    try:
        for one in records:
            assert not runs or 0 < len(one) <= RUN_RECORDS
            found += [(r.offset, r.value, list(r.headers)) for r in (one if runs else [one])]
    except Exception as caught:
        error = repr(caught)
    return found, records.next_fetch_offset, error


def same(data: bytes, start: int = 0, aborted: Any = ()) -> tuple[list[Seen], int, str]:
    each = told(decoded(data, start, aborted), runs=False)
    assert told(in_runs(data, start, aborted), runs=True) == each
    return each


sizes = st.sampled_from([1, 2, RUN_RECORDS - 1, RUN_RECORDS, RUN_RECORDS + 1, 2 * RUN_RECORDS])
pieces = st.tuples(sizes, st.booleans(), st.sampled_from([None, 7, 8]), st.integers(0, 2))


@settings(deadline=None)
@given(st.lists(pieces, max_size=5), st.integers(0, 300), st.booleans(), st.data())
def test_runs_hold_what_the_records_are(
    parts: list[tuple[int, bool, int | None, int]], start: int, aborts: bool, drawn: Any
) -> None:
    data, offset = b"", 0
    for size, odd, producer_id, gap in parts:
        records: Any = [(b"%d" % n, [(ODD, b"x")] if odd and n % 60 == 50 else [("a", None)])
                        for n in range(size)]  # fmt: skip
        data += batch(records, offset + gap, producer_id=producer_id)
        offset += gap + size
    if data and drawn.draw(st.booleans()):  # what is damaged is found by its checksum
        at = drawn.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :] if at % 3 == 0 else data[:at]
    same(data, start, [(7, 0)] if aborts else [])


@pytest.mark.parametrize("at", [0, 1, RUN_RECORDS, RUN_RECORDS + 7])
def test_what_stands_before_an_odd_name_is_handed_over_once(at: int) -> None:
    records = [(b"%d" % n, [(ODD if n == at else "a", b"")]) for n in range(RUN_RECORDS + 9)]
    found, next_offset, error = same(batch(records, 40), 43)
    assert ([offset for offset, _, _ in found], error) == (list(range(43, 49 + RUN_RECORDS)), "")
    assert next_offset == 49 + RUN_RECORDS


def test_a_damaged_batch_hands_over_those_before_it() -> None:
    data = bytearray(batch([(b"0", [])], 0, BatchBuilder) + batch([(b"1", [])], 1, BatchBuilder))
    data[-1] ^= 0xFF
    found, next_offset, error = same(bytes(data))
    assert ([value for _, value, _ in found], next_offset) == ([b"0"], 1)
    assert "usage.events partition 3 offset 1: " in error
