"""Priced blocks as Arrow columns: names, types, values."""

import random
from datetime import UTC, date, datetime
from typing import Any

import pytest

from pipeline.core.blocks import ROW_COLUMNS, PricedBlock, encode_block, hold_block
from pipeline.core.errors import CorruptRecord
from pipeline.ledger import columns
from pipeline.ledger.columns import LEDGER_COLUMNS, by_month, days_of, entries_table
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


AWKWARD: list[dict[str, Any]] = [
    {"event_id": "é" * 128, "session_id": "s" * 31, "request_id": "r" * 32, "endpoint": "x" * 256},
    {"input_tokens": 2**63 - 1, "output_tokens": 0, "cost_nano": -(2**63), "audio_nano": 10**16},
    {"input_tokens": 127, "output_tokens": 128, "characters": 255, "images": 256},
    {"input_tokens": 65_535, "output_tokens": 65_536, "characters": 2**32 - 1, "images": 2**32},
    {"cost_nano": -1, "audio_nano": -33, "web_searches": -(2**31) - 1, "source_offset": -200},
    {"cost_nano": None, "price_status": "unpriced", "self_hosted": True, "price_estimated": True},
    {"tags": {str(n): "v" * n for n in range(15)}},
    {"tags": {"k" * 64: "é" * 256, "": ""}, "user_id": "Ü" * 20_000},
]


def held(blocks: list[PricedBlock]) -> list[PricedBlock]:
    return [hold_block(encode_block(one)) for one in blocks]


def test_columns_from_the_bytes_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(**values) for values in AWKWARD]
    blocks = [*chain(5, 40), block([], 0, 9), block(rows, 0, 20), block(rows[:1], 0, 20)]
    expected = entries_table(blocks, "USD")

    def unused(rows: object) -> None:
        raise AssertionError("the rows were taken one by one")

    monkeypatch.setattr(columns, "_row_columns", unused)
    found = entries_table(held(blocks), "USD")
    assert found.schema == expected.schema
    assert found.to_pylist() == expected.to_pylist()


@pytest.mark.parametrize(
    "values",
    [
        # The bytes of a row's beginning, in the middle of a number.
        {"source_offset": int.from_bytes(b"\xdc\x00" + bytes([len(ROW_COLUMNS)]) + b"\x00")},
        {"tags": {str(n): "" for n in range(16)}},
        {"user_id": "u" * 70_000},
    ],
    ids=["looks like two rows", "sixteen tags", "long text"],
)
def test_bytes_that_are_not_understood_are_taken_row_by_row(values: dict[str, Any]) -> None:
    blocks = [block([row(), row(**values), row()], 0, 9)]
    assert entries_table(held(blocks), "USD").equals(entries_table(blocks, "USD"))


def test_days_are_the_same_from_bytes_and_from_rows() -> None:
    early = row(occurred_at_us=-1)
    many_tags = row(tags={str(n): "" for n in range(16)})
    for blocks in ([*chain(1, 20)], [block([early, row()], 0, 2)], [block([many_tags], 0, 1)]):
        assert days_of(held(blocks)) == days_of(blocks) != ()
    assert days_of(held([block([early], 0, 1)])) == (date(1969, 12, 31),)
    assert days_of([]) == days_of([block([], 0, 4)]) == days_of(held([block([], 0, 4)])) == ()


def test_a_row_without_a_time_is_corrupt() -> None:
    for blocks in ([block([row(occurred_at_us=None)], 0, 1)], [block([("e1",)], 0, 1)]):
        for given in (blocks, held(blocks)):
            with pytest.raises(CorruptRecord, match="have no time"):
                days_of(given)
    for given in (far := [block([row(occurred_at_us=2**62)], 0, 1)], held(far)):
        with pytest.raises(CorruptRecord, match="of no day"):
            days_of(given)


@pytest.mark.parametrize("seed", range(60))
def test_spoilt_bytes_never_give_other_rows(seed: int) -> None:
    rng = random.Random(seed)
    blocks = chain(seed, 3)
    spoilt = bytearray(encode_block(blocks[1]))
    for _ in range(rng.randrange(1, 4)):
        spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    try:
        found = hold_block(bytes(spoilt))
    except CorruptRecord:
        return
    plain = PricedBlock(*(getattr(found, name) for name in PricedBlock.__struct_fields__))
    tables: list[Any] = []
    for one in (plain, found):
        try:
            tables.append(entries_table([one], "USD").to_pylist())
        except CorruptRecord:
            tables.append(None)
    assert tables[0] == tables[1]
