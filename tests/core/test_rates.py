"""Rates as records: reading, writing, and which of them are used."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InvalidField
from pipeline.core.price_import import InvalidPriceList, import_prices
from pipeline.core.rates import (
    REASONS,
    FxRate,
    IgnoredRecord,
    Multiplier,
    PriceRate,
    RateLog,
    Withdrawal,
    encode_rate,
    parse_rate,
    rate_record,
)

T0_MS = 1_795_000_000_000
LEAD_S = 60
LATER = "2026-12-01T00:00:00Z"
PRICE: dict[str, Any] = {
    "rate_id": "r1",
    "provider": "openai",
    "model": "gpt-5-nano",
    "effective_from": LATER,
    "published_at": "2026-11-20T00:00:00Z",
    "currency": "USD",
    "per_million": {"input_tokens": "0.05", "output_tokens": "0.40"},
    "per_second": {"audio_seconds": "0.0001"},
    "per_unit": {"request": "0", "images": "0.04"},
}
MULTIPLIER = {
    "rate_id": "m1",
    "provider": "openai",
    "model": "*",
    "effective_from": LATER,
    "multiplier": "0.880",
}
WITHDRAWAL = {"rate_id": "w1", "withdraws": "r1", "effective_from": LATER}
FX = {"rate_id": "f1", "fx": "USD", "rate": "0.92", "effective_from": LATER}


def without(record: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != field}


def feed(
    log: RateLog,
    record: dict[str, Any] | bytes,
    offset: int,
    key: str | None = None,
    ms: int = T0_MS,
) -> str | None:
    """Feeds one record; the reason it is ignored for."""
    value = record if isinstance(record, bytes) else json.dumps(record).encode()
    if key is None and isinstance(record, dict):
        key = str(record.get("rate_id", ""))
    ignored = log.feed(offset, (key or "").encode(), value, ms, LEAD_S)
    assert ignored is None or ignored.reason in REASONS
    return None if ignored is None else ignored.reason


def test_the_kinds_of_record() -> None:
    price = parse_rate(json.dumps(PRICE).encode())
    assert isinstance(price, PriceRate)
    assert [name for name, _ in price.per_million] == ["input_tokens", "output_tokens"]
    assert price.effective_from_us == 1_796_083_200_000_000
    assert isinstance(parse_rate(MULTIPLIER), Multiplier)
    assert isinstance(parse_rate(WITHDRAWAL), Withdrawal)
    assert isinstance(parse_rate(FX), FxRate)


def test_the_canonical_form_is_read_back_the_same() -> None:
    for record in (PRICE, MULTIPLIER, WITHDRAWAL, FX, {**PRICE, "backdated": True}):
        rate = parse_rate(record)
        assert parse_rate(encode_rate(rate)) == rate
        assert encode_rate(parse_rate(encode_rate(rate))) == encode_rate(rate)
    assert rate_record(parse_rate(MULTIPLIER))["multiplier"] == "0.88"
    assert rate_record(parse_rate(PRICE))["per_million"]["output_tokens"] == "0.4"


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (without(PRICE, "rate_id"), "rate_id"),
        ({**PRICE, "rate_id": ""}, "rate_id"),
        ({**PRICE, "rate_id": "a*b"}, "rate_id"),
        ({**PRICE, "rate_id": "book:x"}, "rate_id"),
        ({**PRICE, "rate_id": 7}, "rate_id"),
        (without(PRICE, "provider"), "provider"),
        ({**PRICE, "model": "m" * 129}, "model"),
        (without(PRICE, "effective_from"), "effective_from"),
        ({**PRICE, "effective_from": "2026-12-01"}, "effective_from"),
        ({**PRICE, "effective_from": "0000-12-01T00:00:00Z"}, "effective_from"),
        ({**PRICE, "currency": "usd"}, "currency"),
        ({**PRICE, "backdated": "yes"}, "backdated"),
        ({**PRICE, "per_million": {"input_tokens": 0.05}}, "per_million.input_tokens"),
        ({**PRICE, "per_million": {"input_tokens": "-1"}}, "per_million.input_tokens"),
        ({**PRICE, "per_million": {"input_tokens": "1e3"}}, "per_million.input_tokens"),
        ({**PRICE, "per_million": {"images": "1"}}, "per_million.images"),
        ({**PRICE, "per_second": {"input_tokens": "1"}}, "per_second.input_tokens"),
        ({**PRICE, "per_unit": ["request"]}, "per_unit"),
        ({**PRICE, "multiplier": "2"}, "multiplier"),
        ({**MULTIPLIER, "withdraws": "r1"}, "withdraws"),
        ({**MULTIPLIER, "multiplier": "-1"}, "multiplier"),
        (without(MULTIPLIER, "multiplier"), "per_million"),
        ({**FX, "rate": "0"}, "rate"),
        (without(FX, "rate"), "rate"),
        ({**FX, "fx": "dollar"}, "fx"),
        ({**PRICE, "per_unit": {"images": "1" * 13}}, "per_unit.images"),
        ({**PRICE, "per_unit": {"images": "0." + "0" * 18 + "1"}}, "per_unit.images"),
    ],
)
def test_a_broken_rule_is_named_with_its_field(record: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_rate(record)
    assert caught.value.field == field
    assert feed(RateLog(), record, 0) == "malformed"


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000, b" " * 70_000, b'"text"']
)
def test_what_is_no_json_object_is_malformed(value: bytes) -> None:
    assert feed(RateLog(), value, 0, "r1") == "malformed"
    assert RateLog().feed(0, None, None, T0_MS, LEAD_S) is not None


@given(st.binary(max_size=60), st.binary(max_size=5))
def test_no_record_stops_the_log(value: bytes, key: bytes) -> None:
    log = RateLog()
    assert log.feed(0, key, value, T0_MS, LEAD_S) is not None
    assert log.snapshot().next_offset == 1


def test_the_key_is_the_rate_id() -> None:
    log = RateLog()
    assert feed(log, PRICE, 0, "r2") == "key-mismatch"
    assert log.feed(1, None, json.dumps(PRICE).encode(), T0_MS, LEAD_S) is not None
    assert feed(log, PRICE, 2) is None


def test_the_same_id_again() -> None:
    log = RateLog()
    assert feed(log, PRICE, 0) is None
    assert feed(log, {**PRICE, "published_at": LATER}, 1) is None
    assert feed(log, {**PRICE, "per_unit": {"request": "0.0", "images": "0.040"}}, 2) is None
    assert feed(log, {**PRICE, "model": "other"}, 3) == "other-content"
    found = log.snapshot()
    assert [used.offset for used in found.used] == [0]
    assert [ignored.offset for ignored in found.ignored] == [3]
    assert found.next_offset == 4


def test_the_lead_time() -> None:
    early = {**PRICE, "effective_from": "2026-11-18T11:07:39.999999Z"}  # T0 + 60 s - 1 us
    on_time = {**PRICE, "effective_from": "2026-11-18T11:07:40Z"}
    log = RateLog()
    assert T0_MS == 1_795_000_000_000
    start = parse_rate(on_time).effective_from_us // 1000 - LEAD_S * 1000
    assert feed(log, early, 0, ms=start) == "too-early"
    assert feed(log, on_time, 1, ms=start) is None
    assert feed(log, {**early, "rate_id": "r2", "backdated": True}, 2, ms=start) is None
    assert feed(log, {**early, "rate_id": "r3", "backdated": False}, 3, ms=start) == "too-early"


def test_what_was_ignored_does_not_claim_its_id() -> None:
    log = RateLog()
    late = {**PRICE, "effective_from": "2020-01-01T00:00:00Z"}
    assert feed(log, late, 0) == "too-early"
    assert feed(log, {**late, "backdated": True}, 1) is None


def test_withdrawing_needs_a_rate_in_use() -> None:
    log = RateLog()
    assert feed(log, WITHDRAWAL, 0) == "unknown-rate"
    assert feed(log, PRICE, 1) is None
    assert feed(log, {**WITHDRAWAL, "effective_from": "2020-01-01T00:00:00Z"}, 2) == "too-early"
    assert feed(log, WITHDRAWAL, 3) is None
    assert feed(log, {**WITHDRAWAL, "rate_id": "w2", "withdraws": "w1"}, 4) == "unknown-rate"


def test_currencies() -> None:
    log = RateLog("EUR")
    assert feed(log, PRICE, 0) is None  # USD waits for an fx rate
    gbp = {**PRICE, "rate_id": "gbp", "currency": "GBP"}
    assert feed(log, gbp, 1) == "wrong-currency"
    assert feed(log, {**FX, "fx": "EUR"}, 2) == "wrong-currency"
    assert feed(log, {**FX, "fx": "GBP"}, 3) is None
    assert feed(log, gbp, 4) is None
    assert feed(RateLog("USD"), {**PRICE, "currency": "EUR"}, 0) == "wrong-currency"


def test_a_replayed_offset_changes_nothing() -> None:
    log = RateLog()
    feed(log, PRICE, 5)
    before = log.snapshot()
    assert feed(log, {**PRICE, "rate_id": "r9"}, 5) is None
    assert feed(log, b"{", 3, "x") is None
    assert log.snapshot() == before


def test_an_ignored_record_says_what_to_do() -> None:
    log = RateLog()
    feed(log, {**PRICE, "effective_from": "2020-01-01T00:00:00Z"}, 0)
    [ignored] = log.snapshot().ignored
    assert isinstance(ignored, IgnoredRecord)
    assert ignored.rate_id == "r1"
    assert "effective_from must be at least 60 s after" in ignored.detail


# -- price lists ---------------------------------------------------------------------------------

CSV = """\
provider,model,effective_from,input_micro_per_million,output_per_million,cached_input,request

openai,gpt-5,2026-12-01T00:00:00Z,1250000,10,0.125,
openai,"gpt-5-*",2026-12-01T00:00:00Z,50000.5,,,0.001
"""


def test_a_csv_price_list() -> None:
    first, second = import_prices("\ufeff" + CSV.replace("\n", "\r\n"), "csv")
    assert rate_record(first)["per_million"] == {
        "input_tokens": "1.25",
        "cached_input_tokens": "0.125",
        "output_tokens": "10",
    }
    assert rate_record(second)["per_million"] == {"input_tokens": "0.0500005"}
    assert rate_record(second)["per_unit"] == {"request": "0.001"}
    assert [rate.rate_id for rate in (first, second)] == [
        rate.rate_id for rate in import_prices(CSV, "csv")
    ]
    assert "*" not in second.rate_id


def test_a_changed_row_is_another_rate() -> None:
    before = import_prices(CSV, "csv")
    after = import_prices(CSV.replace("1250000", "1250001"), "csv")
    assert before[0].rate_id != after[0].rate_id
    assert before[1] == after[1]


def test_defaults_fill_what_a_row_leaves_out() -> None:
    [rate] = import_prices(
        "provider,model,multiplier\nopenai,*,0.9\n",
        "csv",
        {"effective_from": LATER, "backdated": True},
    )
    assert isinstance(rate, Multiplier)
    assert rate.backdated


def test_a_json_price_list() -> None:
    flat = (
        '{"provider": "a", "model": "b", "effective_from": "2026-12-01T00:00:00Z",'
        ' "input_micro_per_million": 1250000, "output": 0.1, "audio_per_second": "0.0001"}'
    )
    text = f"[\n{flat},\n{json.dumps(PRICE)}\n]"
    first, second = import_prices(text, "json")
    assert rate_record(first)["per_million"] == {"input_tokens": "1.25", "output_tokens": "0.1"}
    assert rate_record(first)["per_second"] == {"audio_seconds": "0.0001"}
    assert second == parse_rate(PRICE)
    assert import_prices(f'{{"rates": {text}}}', "json") == [first, second]


@pytest.mark.parametrize(
    ("text", "list_format", "problems"),
    [
        (CSV.replace("1250000", "x").replace("0.125", "1e5"), "csv",
         [(3, "input_micro_per_million"), (3, "cached_input")]),
        (CSV.replace("gpt-5,2026-12-01T00:00:00Z", ",never"), "csv",
         [(3, "effective_from"), (3, "model")]),
        (CSV.replace("request", "reqest"), "csv", [(1, "reqest")]),
        (CSV.replace("cached_input", "cached_input_per_second"), "csv",
         [(1, "cached_input_per_second")]),
        (CSV.replace("output_per_million", "input"), "csv", [(3, "input")]),
        (CSV.replace("request", "provider"), "csv", [(1, "provider")]),
        (CSV + "openai,gpt\n", "csv", [(5, "row")]),
        (CSV + '"open', "csv", [(5, "row")]),
        (CSV + CSV.split("\n")[2], "csv", [(5, "rate_id")]),
        (CSV.replace("1250000", "-1"), "csv", [(3, "input_micro_per_million")]),
        ("", "csv", [(1, "file")]),
        ("provider,model\n", "csv", [(1, "file")]),
        ("[\n{},\n5]", "json", [(2, "rate_id"), (3, "rate")]),
        ('[\n\n{"provider":"a","model":7,"effective_from":"2026-12-01T00:00:00Z","input":1e5}]',
         "json", [(3, "input"), (3, "model")]),
        ("[1", "json", [(1, "rate"), (1, "file")]),
        ("[] x", "json", [(1, "file")]),
        ("{}", "json", [(1, "file")]),
        ("[" * 100_000, "json", [(1, "file")]),
    ],
)  # fmt: skip
def test_every_mistake_has_its_line_and_field(
    text: str, list_format: Any, problems: list[tuple[int, str]]
) -> None:
    with pytest.raises(InvalidPriceList) as caught:
        import_prices(text, list_format)
    found = [(problem.line, problem.field) for problem in caught.value.problems]
    if text.startswith("[\n{}"):
        assert (3, "rate") in found
        assert {line for line, _ in found} == {2, 3}
    else:
        assert found == problems
    assert f"line {problems[0][0]}, " in str(caught.value)
