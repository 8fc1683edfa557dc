"""Corrections: what makes one valid, and that any sequence adds up to what was said last."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.recount.corrections import read_correction
from pipeline.core.book import builtin_book
from pipeline.core.corrections import (
    AMOUNTS,
    Correction,
    Entry,
    Standing,
    added_up,
    decode_correction,
    resolve,
)
from pipeline.core.events import Event, PricedEvent
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.core.rejections import (
    ALREADY_VOID,
    INCONSISTENT_TOKENS,
    MALFORMED_JSON,
    MISSING_FIELD,
    NOT_AN_OBJECT,
    OUT_OF_RANGE,
    TOO_LARGE,
    UNKNOWN_RATE,
    WRONG_CURRENCY,
    WRONG_TYPE,
    Rejection,
)
from pipeline.core.resolved import decode_resolved, encode_resolved, resolved_of
from pipeline.core.totals import SourceTotals

DAY_US = 86_400_000_000
VALID: dict[str, Any] = {
    "correction_id": "c1",
    "port_id": "p",
    "event_id": "e",
    "kind": "void",
    "reason": "sent twice",
}
AMEND = {**VALID, "kind": "amend", "counts": {"input_tokens": 5}}
REPRICE = {**VALID, "kind": "reprice", "rate_id": "plain"}


def rate(rate_id: str, **fields: Any) -> dict[str, Any]:
    common = {"effective_from": "2020-01-01T00:00:00Z", "published_at": "2020-01-01T00:00:00Z"}
    names = {"provider": "acme", "model": "m", "backdated": True}
    return {"rate_id": rate_id, **names, **common, **fields}


RATES = [
    rate("plain", per_million={"input_tokens": "1", "output_tokens": "2"}),
    rate("dear", provider="other", per_million={"input_tokens": "30", "characters": "7"}),
    rate("half", provider="other", multiplier="0.5"),
    rate("euro", provider="other", currency="EUR", per_million={"input_tokens": "1"}),
    {**rate("rising"), "provider": "acme", "effective_from": "2030-01-01T00:00:00Z",
     "per_million": {"input_tokens": "4"}},
]  # fmt: skip


def version(rates: list[dict[str, Any]] = RATES, currency: str = "USD") -> PriceVersion:
    log = RateLog(currency)
    for offset, one in enumerate(rates):
        log.feed(offset, one["rate_id"].encode(), json.dumps(one).encode(), 1_700_000_000_000, 0)
    return PriceVersion(log.snapshot(), builtin_book())


PRICES = version()


def first(event: Event, prices: PriceVersion = PRICES) -> Standing:
    price = prices.price(event)
    return Standing(
        event, 0, 1, price.cost_nano, price.rate_id, price.status, prices.currency, event.estimated
    )


def an_event(**fields: Any) -> Event:
    known: dict[str, Any] = {"event_id": "e", "occurred_at_us": 20_000 * DAY_US, "port_id": "p"}
    known |= {"provider": "acme", "model": "m", "input_tokens": 10}
    return Event(**(known | fields))


def correction(**fields: Any) -> Correction:
    known: dict[str, Any] = {"correction_id": "c", "port_id": "p", "event_id": "e", "reason": "r"}
    return Correction(**known, **fields)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, MALFORMED_JSON),
        (b"{", MALFORMED_JSON),
        (b"[]", NOT_AN_OBJECT),
        (b" " * 65_537, TOO_LARGE),
        *((({**VALID, name: None}), MISSING_FIELD) for name in VALID),
        ({**AMEND, "counts": None}, MISSING_FIELD),
        ({**REPRICE, "rate_id": None}, MISSING_FIELD),
        ({**VALID, "reason": 5}, WRONG_TYPE),
        ({**REPRICE, "rate_id": 5}, WRONG_TYPE),
        ({**AMEND, "counts": []}, WRONG_TYPE),
        ({**AMEND, "counts": {"input_tokens": "5"}}, WRONG_TYPE),
        ({**AMEND, "counts": {"input_tokens": True}}, WRONG_TYPE),
        ({**AMEND, "counts": {"audio_seconds": "x"}}, WRONG_TYPE),
        ({**VALID, "correction_id": ""}, OUT_OF_RANGE),
        ({**VALID, "correction_id": "x" * 129}, OUT_OF_RANGE),
        ({**VALID, "kind": "undo"}, OUT_OF_RANGE),
        ({**VALID, "reason": ""}, OUT_OF_RANGE),
        ({**AMEND, "counts": {}}, OUT_OF_RANGE),
        ({**AMEND, "counts": {"input_tokens": None}}, OUT_OF_RANGE),
        ({**AMEND, "counts": {"input_tokens": -1}}, OUT_OF_RANGE),
        ({**AMEND, "counts": {"input_tokens": 10**10 + 1}}, OUT_OF_RANGE),
        ({**AMEND, "counts": {"inputs": 1}}, OUT_OF_RANGE),
        ({**AMEND, "counts": {"audio_seconds": "0.0000000001"}}, OUT_OF_RANGE),
    ],
)
def test_what_breaks_a_rule_is_refused(value: Any, reason: str) -> None:
    encoded = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    found = decode_correction(encoded)
    assert isinstance(found, Rejection)
    assert found.reason == reason, found.detail


def test_a_valid_one_is_read_whole() -> None:
    body = {**AMEND, "counts": {"input_tokens": 5, "audio_seconds": 1.5}, "more": 1,
            "occurred_at": "2026-11-22T23:30:00-01:00"}  # fmt: skip
    found = decode_correction(json.dumps(body).encode())
    assert found == Correction(
        "c1", "p", "e", "amend", "sent twice",
        {"input_tokens": 5, "audio_nano": 1_500_000_000}, day="2026-11-23",
    )  # fmt: skip


@pytest.mark.parametrize(
    "occurred_at",
    ["0001-01-01T00:00:00+01:00", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00",
     "1969-12-31T23:59:59Z", "2106-01-01T00:00:00Z", "yesterday", 5],
)  # fmt: skip
def test_a_day_that_no_event_can_have_is_left_out(occurred_at: object) -> None:
    found = decode_correction(json.dumps({**VALID, "occurred_at": occurred_at}).encode())
    assert isinstance(found, Correction)
    assert found.day == ""
    assert read_correction(json.dumps({**VALID, "occurred_at": occurred_at}).encode()).day is None


def test_a_rate_counts_in_a_reprice_only() -> None:
    value = json.dumps({**VALID, "rate_id": ""}).encode()
    found = decode_correction(value)
    assert isinstance(found, Correction)
    assert found.rate_id == read_correction(value).rate_id == ""


@pytest.mark.parametrize(
    ("given_", "reason"),
    [
        (correction(kind="reprice", rate_id="none"), UNKNOWN_RATE),
        (correction(kind="reprice", rate_id="half"), UNKNOWN_RATE),
        (correction(kind="reprice", rate_id="plain*none"), UNKNOWN_RATE),
        (correction(kind="reprice", rate_id="book:openai/gpt-5"), UNKNOWN_RATE),
        (correction(kind="reprice", rate_id="self-hosted"), UNKNOWN_RATE),
        (correction(kind="reprice", rate_id="euro"), WRONG_CURRENCY),
        (correction(kind="void", currency="EUR"), WRONG_CURRENCY),
        (correction(kind="amend", counts={"cached_input_tokens": 11}), INCONSISTENT_TOKENS),
    ],
)
def test_what_does_not_fit_the_event_is_refused(given_: Correction, reason: str) -> None:
    found = resolve(given_, first(an_event()), PRICES)
    assert isinstance(found, Rejection)
    assert found.reason == reason, found.detail


def test_an_event_in_another_currency_than_now_is_left_alone() -> None:
    found = resolve(correction(kind="void"), first(an_event()), version([], "EUR"))
    assert isinstance(found, Rejection)
    assert found.reason == WRONG_CURRENCY


def test_void_is_final() -> None:
    _, after = accepted(correction(kind="void"), first(an_event()))
    for one in ("void", "amend", "reprice"):
        found = resolve(
            correction(kind=one, counts={"input_tokens": 1}, rate_id="plain"), after, PRICES
        )
        assert isinstance(found, Rejection)
        assert found.reason == ALREADY_VOID
    found = resolve(correction(kind="reprice", rate_id="none"), after, PRICES)
    assert isinstance(found, Rejection)
    assert found.reason == UNKNOWN_RATE, "the first reason of the contract's order"


def test_a_later_rate_prices_what_was_unpriced() -> None:
    unpriced = first(an_event(provider="nobody"))
    assert unpriced.cost_nano is None
    entry, after = accepted(correction(kind="reprice", rate_id="rising"), unpriced)
    assert (entry.cost_nano, entry.unpriced_requests, entry.status) == (40_000, -1, "priced")
    assert after.cost_nano == 40_000


def test_an_amend_of_an_unpriced_event_leaves_it_unpriced() -> None:
    unpriced = first(an_event(provider="nobody"))
    entry, after = accepted(correction(kind="amend", counts={"input_tokens": 3}), unpriced)
    assert (entry.event.input_tokens, entry.cost_nano, entry.unpriced_requests) == (-7, None, 0)
    assert (after.cost_nano, after.status) == (None, "unpriced")


def test_an_amend_to_what_the_rate_does_not_price_makes_it_unpriced() -> None:
    counts = {"input_tokens": 0, "output_tokens": 0, "images": 3}
    entry, after = accepted(correction(kind="amend", counts=counts), first(an_event()))
    assert (entry.cost_nano, entry.unpriced_requests) == (-10_000, 1)
    assert after.cost_nano is None
    entry, after = accepted(
        correction(kind="amend", counts={"input_tokens": 10, "images": 0}), after
    )
    assert (entry.cost_nano, entry.unpriced_requests) == (10_000, -1)


def test_what_is_hosted_by_oneself_costs_nothing_at_any_rate() -> None:
    hosted = first(an_event(self_hosted=True))
    entry, _ = accepted(correction(kind="reprice", rate_id="dear"), hosted)
    assert (entry.cost_nano, entry.rate_id) == (0, "self-hosted")
    entry, _ = accepted(correction(kind="amend", counts={"input_tokens": 99}), hosted)
    assert (entry.cost_nano, entry.event.input_tokens) == (0, 89)


def test_a_price_of_the_book_is_found_by_its_name() -> None:
    listed = first(an_event(provider="openai", model="gpt-4o", input_tokens=1_000), version([]))
    assert listed.rate_id.startswith("book:")
    entry, after = accepted(
        correction(kind="amend", counts={"input_tokens": 2_000}), listed, version([])
    )
    assert entry.cost_nano == listed.cost_nano
    assert after.rate_id == listed.rate_id


def test_the_rate_that_began_first_after_an_event_prices_it() -> None:
    later = [
        rate(f"from-{year}", provider="new*", effective_from=f"{year}-01-01T00:00:00Z",
             per_million={"input_tokens": "1"})
        for year in (2032, 2031, 2033)
    ]  # fmt: skip
    assert version(later).later_rate(an_event(provider="newer")) == "from-2031"
    assert version(later).later_rate(an_event(provider="old")) is None


counts = st.dictionaries(
    st.sampled_from(["input_tokens", "output_tokens", "cached_input_tokens", "images",
                     "characters", "audio_nano"]),
    st.integers(0, 50), min_size=1,
)  # fmt: skip
some_corrections = st.lists(
    st.one_of(
        st.builds(correction, kind=st.just("amend"), counts=counts),
        st.builds(
            correction,
            kind=st.just("reprice"),
            rate_id=st.sampled_from(["plain", "dear", "plain*half", "dear*half", "none", "euro"]),
        ),
        st.builds(correction, kind=st.just("void")),
    ),
    max_size=8,
)


@given(some_corrections, st.sampled_from(["acme", "nobody"]), st.sampled_from(["org", "user"]))
def test_any_sequence_adds_up_to_what_was_said_last(
    given_: list[Correction], provider: str, billing_scope: str
) -> None:
    start = first(an_event(provider=provider, user_id="u", billing_scope=billing_scope))
    totals, standing, entries = SourceTotals(), start, list[Entry]()
    fields = msgspec.structs.asdict(start.event)
    totals.add([PricedEvent(**fields, cost_nano=start.cost_nano)])
    wanted = {name: getattr(start.event, name) for name in AMOUNTS}
    for one in given_:
        found = resolve(one, standing, PRICES)
        if isinstance(found, Rejection):
            continue
        entry, standing = found
        entries.append(entry)
        totals.adjust(entry.event, entry.requests, entry.cost_nano or 0, entry.unpriced_requests)
        wanted |= one.counts if one.kind == "amend" else {}
        if one.kind == "void":
            wanted = dict.fromkeys(AMOUNTS, 0)
    assert {name: getattr(standing.event, name) for name in AMOUNTS} == wanted
    assert [entry.entry_no for entry in entries] == list(range(1, len(entries) + 1))
    assert added_up(start, entries) == standing
    if not standing.is_void and standing.rate_id:
        price = PRICES.price_by(standing.rate_id, standing.event)
        assert not isinstance(price, str)
        assert price.cost_nano == standing.cost_nano
    cost, unpriced = standing.cost_nano or 0, int(standing.cost_nano is None)
    is_org = billing_scope == "org"
    tokens = wanted["input_tokens"] + wanted["output_tokens"]
    cell = (standing.requests, tokens, cost, cost * is_org, unpriced, unpriced * is_org)
    assert {scope: amounts for scope, _, amounts in totals.cells()} == dict.fromkeys(
        ["all", "port:p", "user:u"], cell
    )


def test_a_resolved_correction_survives_the_wire() -> None:
    entry, _ = accepted(
        correction(kind="void"), first(an_event(tags={"a": "b"}, reported_cost="0.5"))
    )
    sent = resolved_of(
        correction(kind="void"), entry, ("t", 3, 17, 99), 5, (8, "digest", "USD", 60)
    )
    found = decode_resolved(encode_resolved(sent))
    assert found.entry == msgspec.structs.replace(entry, estimated=False)
    assert (found.number, found.recorded_at_ms, found.correction_id) == (5, 99, "c")
    assert (found.event.reported_cost, found.event.tags) == ("-0.5", {"a": "b"})


def accepted(
    one: Correction, standing: Standing, prices: PriceVersion = PRICES
) -> tuple[Entry, Standing]:
    found = resolve(one, standing, prices)
    assert not isinstance(found, Rejection), found
    return found
