"""The header that a restored record carries, and the time that counts for it."""

import pytest

from pipeline.core.rates import RateLog
from pipeline.core.restored import (
    RestoredFrom,
    first_timestamp_ms,
    parse_restored_from,
    restored_from_header,
)

RATE = (
    b'{"rate_id":"r","provider":"acme","model":"m","effective_from":"2026-12-01T00:00:00Z",'
    b'"per_million":{"input_tokens":"1"}}'
)
SET_MS = 1_795_000_000_000  # some days before
RESTORED_MS = 1_799_000_000_000  # some days after


def test_the_last_header_says_where_a_record_stood_first() -> None:
    first, last = restored_from_header(1, 2, 3), restored_from_header(4, 5, 6)
    assert parse_restored_from([first, ("a", b"b"), last]) == RestoredFrom(4, 5, 6)
    assert parse_restored_from([("a", b"b")]) is None


@pytest.mark.parametrize("value", [None, b"", b"1/2", b"1/2/3/4", b"1/2/x", b"99999999999/1/1"])
def test_an_unreadable_header_counts_as_none(value: bytes | None) -> None:
    headers = [("restored-from", value)]
    assert parse_restored_from(headers) is None
    assert first_timestamp_ms(headers, 7) == 7


def test_a_record_cannot_have_arrived_after_it_arrived() -> None:
    assert first_timestamp_ms([], 10) == 10
    assert first_timestamp_ms([restored_from_header(1, 0, 9)], 10) == 9
    assert first_timestamp_ms([restored_from_header(1, 0, 11)], 10) == 10


def test_a_restored_rate_is_in_time_as_it_was() -> None:
    headers = [restored_from_header(1, 0, SET_MS)]
    restored, late = RateLog(), RateLog()
    arrived_ms = first_timestamp_ms(headers, RESTORED_MS)
    assert restored.feed(0, b"r", RATE, arrived_ms, 60) is None
    ignored = late.feed(0, b"r", RATE, RESTORED_MS, 60)
    assert ignored is not None
    assert ignored.reason == "too-early"
