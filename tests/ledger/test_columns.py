"""Priced blocks as Arrow columns: names, types, values."""

from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.core.errors import CorruptRecord
from pipeline.ledger.columns import LEDGER_COLUMNS, by_month, entries_table
from tests.ledger.priced_blocks import START_US, block, chain, dicts, row


def test_every_value_lands_in_its_column() -> None:
    values: dict[str, Any] = {
        "event_id": "e1",
        "occurred_at_us": START_US + 1,
        "port_id": "p",
        "provider": "openai",
        "model": "m",
        "input_tokens": 7,
        "output_tokens": 5,
        "audio_nano": 10**16,
        "self_hosted": True,
        "tags": {"k": "v", "é": ""},
        "source_offset": 41,
        "recorded_at_ms": 1_795_000_000_123,
        "cost_nano": 2**63 - 1,
    }
    table = entries_table([block([row(**values)], 41, 42, epoch=3, partition=2)], "EUR")
    entry = table.to_pylist()[0]
    assert tuple(entry) == LEDGER_COLUMNS
    expected = {
        **{name: values[name] for name in values if name in LEDGER_COLUMNS},
        "occurred_at": datetime(2026, 11, 29, 0, 0, 0, 1, tzinfo=UTC),
        "recorded_at": datetime(2026, 11, 18, 11, 6, 40, 123_000, tzinfo=UTC),
        "tags": [("k", "v"), ("é", "")],
        "entry_no": 0,
        "requests": 1,
        "unpriced_requests": 0,
        "total_tokens": 12,
        "currency": "EUR",
        "estimated": False,
        "correction_id": "",
        "epoch": 3,
        "source_topic": "usage.events",
        "source_partition": 2,
    }
    assert {name: entry[name] for name in expected} == expected


def test_unpriced_is_null_and_counted_and_estimates_are_of_either_kind() -> None:
    rows = [
        row(cost_nano=None, price_status="unpriced"),
        row(price_estimated=True),
        row(estimated=True),
        row(cost_nano=0, price_status="free"),
    ]
    table = entries_table([block(rows, 0, 4)], "USD")
    assert table["cost_nano"].to_pylist() == [None, 0, 0, 0]
    assert table["unpriced_requests"].to_pylist() == [1, 0, 0, 0]
    assert table["estimated"].to_pylist() == [False, True, True, False]


def test_blocks_are_joined_in_order_with_their_own_source() -> None:
    blocks = [*chain(1, 5), *chain(1, 5, partition=1), block([], 0, 0)]
    table = entries_table(blocks, "USD")
    expected = [(b.partition, r["source_offset"]) for b in blocks for r in dicts([b])]
    found = zip(
        table["source_partition"].to_pylist(), table["source_offset"].to_pylist(), strict=True
    )
    assert list(found) == expected


def test_months_are_apart_and_nothing_is_lost() -> None:
    table = entries_table(chain(2, 20), "USD")
    months = list(by_month(table))
    assert [len({t.strftime("%Y-%m") for t in m["occurred_at"].to_pylist()}) for m in months] == [
        1,
        1,
    ]
    ids = [event_id for month in months for event_id in month["event_id"].to_pylist()]
    assert sorted(ids) == sorted(table["event_id"].to_pylist())


def test_no_rows_give_an_empty_table() -> None:
    assert entries_table([block([], 0, 4)], "USD").num_rows == 0
    assert entries_table([], "USD").num_rows == 0


@pytest.mark.parametrize(
    "bad",
    [row()[:-1], row(input_tokens="7"), row(cost_nano=2**63), row(event_id=5), row(tags=None)],
    ids=["short", "text for a number", "too big", "number for a text", "no tags"],
)
def test_a_row_that_does_not_fit_is_corrupt(bad: tuple[Any, ...]) -> None:
    with pytest.raises(CorruptRecord, match="do not fit the ledger"):
        entries_table([block([row(), bad], 0, 2)], "USD")
