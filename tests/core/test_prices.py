"""Which price applies, and what comes out of it, to the nano."""

import json
from fractions import Fraction
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.book import (
    Book,
    BookContent,
    BookModel,
    BookPrice,
    BookProvider,
    Season,
    SeasonPrices,
    builtin_book,
)
from pipeline.core.event_fields import COUNTERS
from pipeline.core.events import Event, PricedEvent
from pipeline.core.explain import dearest_token_nano, explain
from pipeline.core.prices import (
    CACHE_HIT,
    MAX_PLANS,
    SELF_HOSTED,
    UNPRICED,
    Price,
    PriceVersion,
    Status,
)
from pipeline.core.rates import RateLog, parse_instant
from pipeline.core.selection import matches

DAY0 = "2026-11-01T00:00:00Z"
DAY1 = "2026-11-02T00:00:00Z"
DAY2 = "2026-11-03T00:00:00Z"


def at(text: str) -> int:
    return parse_instant(text, "at")


def small_book() -> Book:
    """One provider: ``listed`` at 1 in and 2 out per million; ``nightly`` half price at night."""
    day = (BookPrice("input_tokens", 1_000_000, "1"), BookPrice("output_tokens", 1_000_000, "2"))
    night = (BookPrice("input_tokens", 1_000_000, "0.5"),)
    hour_us = 3_600_000_000
    models = (
        BookModel("listed", ("equals", "listed"), (SeasonPrices(Season(), day),)),
        BookModel(
            "nightly",
            ("equals", "nightly"),
            (
                SeasonPrices(Season(), day),
                SeasonPrices(Season(window_us=(22 * hour_us, 6 * hour_us)), night),
            ),
        ),
    )
    return Book(BookContent("test", (BookProvider("acme", models),), ("freebie",)))


BOOK = small_book()


def rate(rate_id: str, provider: str = "acme", model: str = "m", **fields: Any) -> dict[str, Any]:
    prices = {"per_million": {"input_tokens": "1"}}
    kinds = ("per_million", "per_second", "per_unit", "multiplier", "withdraws", "fx")
    if any(kind in fields for kind in kinds):
        prices = {}
    record = {"rate_id": rate_id, "provider": provider, "model": model, "effective_from": DAY0}
    return {**record, "backdated": True, **prices, **fields}


def version(*records: dict[str, Any], currency: str = "USD", book: Book = BOOK) -> PriceVersion:
    log = RateLog(currency)
    for offset, record in enumerate(records):
        ignored = log.feed(
            offset, record["rate_id"].encode(), json.dumps(record).encode(), at(DAY0) // 1000, 60
        )
        assert ignored is None, ignored
    return PriceVersion(log.snapshot(), book)


def event(provider: str = "acme", model: str = "m", when: str = DAY2, **fields: Any) -> Event:
    counts = fields or {"input_tokens": 1_000_000}
    return Event("e", at(when), "p", provider, model, **counts)


def chosen(prices: PriceVersion, **fields: Any) -> str:
    return prices.price(event(**fields)).rate_id


# -- the choice ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        (rate("win"), rate("lose", model="*")),
        (rate("win"), rate("lose", provider="*")),
        (rate("win", provider="*"), rate("lose", model="m*")),  # the model goes first
        (rate("win", model="gpt-5-*"), rate("lose", model="gpt-*")),
        (rate("win", model="gpt-5-*", provider="*"), rate("lose", model="gpt-*")),
        (rate("win", model="gpt*", provider="ac*"), rate("lose", model="gpt*", provider="a*")),
        (rate("win", model="gpt*"), rate("lose", model="gpt*", provider="acm*")),
        (rate("win", effective_from=DAY1), rate("lose")),
        (rate("win", model="*", provider="acme"), rate("lose", model="*", provider="*")),
    ],
)
def test_the_order_of_preference(winner: dict[str, Any], loser: dict[str, Any]) -> None:
    model = "m" if "gpt" not in winner["model"] else "gpt-5-nano"
    for records in ((winner, loser), (loser, winner)):
        assert chosen(version(*records), model=model) == "win"
        explanation = explain(version(*records), "acme", model, at(DAY2))
        assert explanation.rate_id == "win"
        assert [lost.rate_id for lost in explanation.lost] == ["lose"]


def test_of_two_alike_the_later_record_applies() -> None:
    assert chosen(version(rate("a"), rate("b"))) == "b"
    assert chosen(version(rate("b"), rate("a"))) == "a"


def test_a_rate_applies_from_its_time_on() -> None:
    prices = version(rate("a"), rate("b", effective_from=DAY1, model="*"), rate("c", provider="x"))
    assert chosen(prices, when="2026-10-31T23:59:59.999999Z") == ""
    assert chosen(prices, when=DAY0) == "a"
    later = version(rate("a"), rate("b", effective_from=DAY1))
    assert chosen(later, when="2026-11-01T23:59:59.999999Z") == "a"
    assert chosen(later, when=DAY1) == "b"


def test_names_match_case_and_all() -> None:
    prices = version(rate("a"))
    assert chosen(prices, model="M") == ""
    assert chosen(prices, provider="Acme") == ""


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "", True),
        ("*", "anything\nat all", True),
        ("gpt-*", "gpt-", True),
        ("gpt-*", "xgpt-5", False),
        ("*-mini", "gpt-mini", True),
        ("*-mini", "gpt-mini-2", False),
        ("a*b*c", "a-b-b-c", True),
        ("a*b*c", "acb", False),
        ("a*b*b*c", "abc", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a**b", "ab", True),
        ("gpt-?", "gpt-5", True),
        ("gpt-?", "gpt-55", False),
        ("claude[1m]", "claude[1m]", True),
        ("claude[1m]*", "claude1", False),
        ("claude[1m]*", "claude[1m]-x", True),
        ("a.b*", "axb", False),
        ("*a*a*a*a*a*a*a*a*a*a*a*a*b", "a" * 128, False),
    ],
)
def test_globs(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=10))
def test_globs_by_definition(pattern: str, name: str) -> None:
    def fits(p: str, n: str) -> bool:
        if not p:
            return not n
        if p[0] == "*":
            return any(fits(p[1:], n[cut:]) for cut in range(len(n) + 1))
        return bool(n) and p[0] in ("?", n[0]) and fits(p[1:], n[1:])

    assert matches(pattern, name) is fits(pattern, name)


# -- set rates, the book, the last resort ----------------------------------------------------------


def test_a_set_rate_beats_the_book_and_the_last_resort_comes_after_it() -> None:
    last = rate("last", provider="*", model="*", per_million={"input_tokens": "9"})
    prices = version(last, rate("glob", model="lis*"))
    assert prices.price(event(model="listed")) == Price(1_000_000_000, "glob", "priced")
    only_last = version(last)
    assert chosen(only_last, model="listed") == "book:acme/listed@base"
    unknown = only_last.price(event(model="unknown"))
    assert unknown == Price(9_000_000_000, "last", "priced", estimated=True)
    assert only_last.price(event(provider="freebie")).status == "free"
    assert only_last.price(event(model="unknown", when="2026-10-01T00:00:00Z")) == UNPRICED


def test_a_listed_model_does_not_fall_through_to_the_last_resort() -> None:
    last = rate("last", provider="*", model="*", per_unit={"images": "9"})
    assert version(last).price(event(model="listed", images=3)) == UNPRICED


def test_what_is_served_by_ourselves_or_from_cache_costs_nothing() -> None:
    prices = version(rate("a"))
    assert prices.price(event(self_hosted=True, input_tokens=5)) == SELF_HOSTED
    assert prices.price(event(cache_hit=True, input_tokens=5)) == CACHE_HIT
    assert prices.price(event(cache_hit=True, self_hosted=True)) == SELF_HOSTED
    assert (SELF_HOSTED.cost_nano, SELF_HOSTED.status) == (0, "free")


def test_times_of_day_go_on_around_set_rates() -> None:
    noon_rate = rate("noon", model="nightly", effective_from="2026-11-02T12:00:00Z")
    prices = version(noon_rate, rate("w", withdraws="noon", effective_from="2026-11-03T23:30:00Z"))
    expected = [
        ("2026-11-02T05:59:59.999999Z", "book:acme/nightly@22:00-06:00"),
        ("2026-11-02T06:00:00Z", "book:acme/nightly@base"),
        ("2026-11-02T12:00:00Z", "noon"),
        ("2026-11-03T23:00:00Z", "noon"),
        ("2026-11-03T23:30:00Z", "book:acme/nightly@22:00-06:00"),
        ("2026-11-04T07:00:00Z", "book:acme/nightly@base"),
        ("1969-12-31T23:00:00Z", "book:acme/nightly@22:00-06:00"),
    ]
    for when, rate_id in expected:
        assert chosen(prices, model="nightly", when=when) == rate_id, when
        assert explain(prices, "acme", "nightly", at(when)).rate_id == rate_id, when


# -- withdrawals and multipliers -------------------------------------------------------------------


def test_a_withdrawn_rate_applies_up_to_that_time() -> None:
    prices = version(
        rate("general", model="*"),
        rate("special"),
        rate("w1", withdraws="special", effective_from=DAY2),
        rate("w2", withdraws="special", effective_from=DAY1),
    )
    assert chosen(prices, when="2026-11-01T23:59:59.999999Z") == "special"
    assert chosen(prices, when=DAY1) == "general"
    [lost] = explain(prices, "acme", "m", at(DAY1)).lost
    assert lost.reason == f"withdrawn by w2 from {DAY1}"


def test_a_withdrawn_rate_gives_way_to_the_book() -> None:
    prices = version(rate("a", model="listed"), rate("w", withdraws="a", effective_from=DAY1))
    assert chosen(prices, model="listed", when=DAY2) == "book:acme/listed@base"


def test_one_multiplier_applies_to_whatever_prices() -> None:
    prices = version(
        rate("last", provider="*", model="*", per_million={"input_tokens": "4"}),
        rate("set", per_million={"input_tokens": "10"}),
        rate("all", provider="*", model="*", multiplier="0.5"),
        rate("acme", model="*", multiplier="0.88"),
        rate("exact", multiplier="2", effective_from=DAY2),
    )
    assert prices.price(event(when=DAY1)) == Price(8_800_000_000, "set*acme", "priced")
    assert prices.price(event(when=DAY2)) == Price(20_000_000_000, "set*exact", "priced")
    listed = prices.price(event(model="listed"))
    assert listed == Price(880_000_000, "book:acme/listed@base*acme", "priced")
    estimated = prices.price(event(provider="other"))
    assert estimated == Price(2_000_000_000, "last*all", "priced", estimated=True)
    assert prices.price(event(provider="freebie")).rate_id == "book:freebie"


def test_a_multiplier_alone_prices_nothing_and_zero_is_a_multiplier() -> None:
    prices = version(rate("none", provider="*", model="*", multiplier="0"))
    assert prices.price(event()) == UNPRICED
    assert prices.price(event(model="listed")).cost_nano == 0


def test_a_multiplier_can_be_withdrawn() -> None:
    prices = version(
        rate("set"),
        rate("m", multiplier="0.5"),
        rate("w", withdraws="m", effective_from=DAY1),
    )
    assert chosen(prices, when=DAY0) == "set*m"
    assert chosen(prices, when=DAY1) == "set"


# -- the sum ---------------------------------------------------------------------------------------

FULL = {
    "input_tokens": "10",
    "cached_input_tokens": "1",
    "cache_write_tokens": "12",
    "cache_write_1h_tokens": "20",
    "input_audio_tokens": "40",
    "input_image_tokens": "5",
    "output_tokens": "30",
    "reasoning_tokens": "25",
    "output_audio_tokens": "80",
    "characters": "15",
}
COUNTS = {
    "input_tokens": 1000,
    "cached_input_tokens": 100,
    "cache_write_tokens": 50,
    "cache_write_1h_tokens": 20,
    "input_audio_tokens": 30,
    "input_image_tokens": 10,
    "output_tokens": 500,
    "reasoning_tokens": 60,
    "output_audio_tokens": 40,
}


def cost(counts: dict[str, int], **prices: Any) -> int | None:
    return version(rate("a", **prices)).price(event(**counts)).cost_nano


def test_every_part_at_its_own_price() -> None:
    # 790·10 + 100·1 + 50·12 + 20·20 + 30·40 + 10·5 + 400·30 + 60·25 + 40·80 = 26950 micro
    assert cost(COUNTS, per_million=FULL) == 26_950_000


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("cached_input_tokens", "input_tokens"),
        ("cache_write_tokens", "input_tokens"),
        ("cache_write_1h_tokens", "cache_write_tokens"),
        ("input_audio_tokens", "input_tokens"),
        ("input_image_tokens", "input_tokens"),
        ("reasoning_tokens", "output_tokens"),
        ("output_audio_tokens", "output_tokens"),
    ],
)
def test_a_part_without_a_price_costs_what_its_whole_costs(part: str, whole: str) -> None:
    without = {name: price for name, price in FULL.items() if name != part}
    assert cost(COUNTS, per_million=without) == cost(
        COUNTS, per_million={**FULL, part: FULL[whole]}
    )


def test_hour_long_writes_fall_back_to_input_in_two_steps() -> None:
    only = {"input_tokens": "10", "output_tokens": "0"}
    assert cost({"input_tokens": 7, "cache_write_1h_tokens": 7}, per_million=only) == 70_000


def test_seconds_units_and_requests() -> None:
    prices = {
        "per_second": {"audio_seconds": "0.0001"},
        "per_unit": {"request": "0.003", "images": "0.04", "web_searches": "0.01"},
    }
    counts = {"audio_nano": 1_500_000_000, "images": 2, "web_searches": 3}
    assert cost(counts, **prices) == 150_000 + 3_000_000 + 80_000_000 + 30_000_000


def test_the_exact_sum_is_rounded_once_half_to_even() -> None:
    tiny = {"per_million": {"input_tokens": "0.0005", "output_tokens": "0.0005"}}  # half a nano
    assert [cost({"input_tokens": n}, **tiny) for n in (1, 2, 3, 5)] == [0, 1, 2, 2]
    assert cost({"input_tokens": 1, "output_tokens": 1}, **tiny) == 1
    hair = {"per_million": {"input_tokens": "0.000500000000000001"}}
    assert cost({"input_tokens": 1}, **hair) == 1


@given(
    st.dictionaries(st.sampled_from(sorted(FULL)), st.integers(0, 10**12), min_size=1),
    st.integers(0, 10**10),
    st.integers(0, 10**10),
    st.lists(st.integers(0, 10**10), min_size=7, max_size=7),
    st.integers(0, 3_000),
)
def test_the_cost_is_the_contracts_sum(
    micro: dict[str, int], inputs: int, outputs: int, parts: list[int], per_mille: int
) -> None:
    names = list(COUNTS)
    counts = {"input_tokens": inputs, "output_tokens": outputs}
    for whole, members in (("input_tokens", names[1:6]), ("output_tokens", names[7:])):
        left = counts[whole]
        for name in members:
            counts[name] = min(parts[names.index(name) % 7], left // 2)
            left -= counts[name]
    prices = {name: f"{m // 10**6}.{m % 10**6:06d}" for name, m in micro.items()}
    prices_version = version(
        rate("a", per_million=prices),
        rate("x", multiplier=f"{per_mille // 1000}.{per_mille % 1000:03d}"),
    )
    found = prices_version.price(Event("e", at(DAY2), "p", "acme", "m", **counts))

    present = [name for name, count in counts.items() if count]
    wholes = {"cached_input_tokens": "input_tokens", "cache_write_tokens": "input_tokens",
              "cache_write_1h_tokens": "cache_write_tokens", "input_audio_tokens": "input_tokens",
              "input_image_tokens": "input_tokens", "reasoning_tokens": "output_tokens",
              "output_audio_tokens": "output_tokens"}  # fmt: skip

    def price_of(name: str | None) -> Fraction | None:
        if name is None:
            return None
        return Fraction(prices[name]) if name in prices else price_of(wholes.get(name))

    total = Fraction(0)
    for name, count in counts.items():
        own = count
        if name in ("input_tokens", "output_tokens"):
            own -= sum(counts[p] for p in (names[1:6] if name[0] == "i" else names[7:]))
        total += own * (price_of(name) or 0) * 1000 * Fraction(per_mille, 1000)
    if (present and all(price_of(name) is None for name in present)) or round(total) > 2**63 - 1:
        assert found == UNPRICED
    else:
        assert (found.cost_nano, found.status) == (round(total), "priced")


BOTH = {"per_million": {"input_tokens": "0.0005", "cached_input_tokens": "0.0001",
                        "output_tokens": "0.0015"}}  # fmt: skip
DEAR = {"per_million": {"input_tokens": "9" * 12, "output_tokens": "1"}}
MANY = version(
    rate("a", **BOTH),
    rate("later", effective_from=DAY1, per_million={"input_tokens": "1", "output_tokens": "2"}),
    rate("x", multiplier="0.3333333333333333", effective_from=DAY2),
    rate("dear", model="dear", **DEAR),
    rate("inputs", model="inputs"),
    rate("heard", model="heard", per_second={"audio_seconds": "1"}),
    rate("gone", model="gone", **BOTH),
    rate("w", withdraws="gone", effective_from=DAY1),
    rate("last", provider="other", model="*", **BOTH),
    rate("guess", provider="*", model="*", **BOTH),
)
BUILT_IN = PriceVersion(RateLog("USD").snapshot(), builtin_book())
REFERENCES = st.sampled_from(
    [("acme", name) for name in ("m", "dear", "inputs", "heard", "gone", "nightly", "listed")]
    + [("other", "m"), ("freebie", "m"), ("openai", "gpt-5"), ("google", "gemini-2.5-pro"),
       ("anthropic", "claude-sonnet-4-5"), ("openai", "whisper-1"), ("deepseek", "deepseek-chat")]
)  # fmt: skip
SOME_COUNTS = st.dictionaries(
    st.sampled_from([*COUNTERS, "audio_nano"]),
    st.one_of(st.integers(0, 9), st.integers(0, 10**10)),
)


@st.composite
def usual_events(draw: st.DrawFn) -> PricedEvent:
    provider, model = draw(REFERENCES)
    at_us = at(draw(st.sampled_from([DAY0, DAY1, DAY2]))) + draw(
        st.one_of(st.integers(-2, 1), st.integers(-(10**11), 10**11))
    )
    counts = draw(SOME_COUNTS)
    counts["cached_input_tokens"] = min(
        counts.get("cached_input_tokens", 0), counts.get("input_tokens", 0)
    )
    flags = draw(st.sampled_from([{}, {}, {}, {"self_hosted": True}, {"cache_hit": True}]))
    tier = draw(st.sampled_from(["", "", "priority"]))
    return PricedEvent("e", at_us, "p", provider, model, service_tier=tier, **counts, **flags)


@settings(max_examples=400, deadline=None)
@given(st.lists(usual_events(), max_size=12), st.sampled_from([MANY, BUILT_IN]))
def test_many_events_cost_what_each_of_them_does(
    events: list[PricedEvent], prices: PriceVersion
) -> None:
    unpriced = prices.price_all(events)
    found = [
        Price(e.cost_nano, e.rate_id, cast(Status, e.price_status), e.price_estimated)
        for e in events
    ]
    assert found == [prices.price(event) for event in events]
    assert unpriced == sum(event.cost_nano is None for event in events)


# -- unpriced is never 0 ---------------------------------------------------------------------------


def test_nothing_present_has_a_price() -> None:
    prices = {"per_million": {"output_tokens": "1"}}
    assert cost({"input_tokens": 5}, **prices) is None
    assert cost({"input_tokens": 5, "cached_input_tokens": 5}, **prices) is None
    assert cost({"images": 1}, **prices) is None
    assert cost({"input_tokens": 5, "output_tokens": 1}, **prices) == 1_000
    assert cost({"output_tokens": 5, "reasoning_tokens": 5}, **prices) == 5_000
    assert cost({"audio_nano": 1, "web_searches": 4}, **prices) is None


def test_a_part_with_a_price_where_its_whole_has_none() -> None:
    prices = {"per_million": {"cached_input_tokens": "1"}}
    assert cost({"input_tokens": 100, "cached_input_tokens": 40}, **prices) == 40_000
    assert cost({"input_tokens": 100}, **prices) is None


def test_a_price_of_zero_is_a_price_and_so_is_one_per_request() -> None:
    assert cost({"input_tokens": 5}, per_million={"input_tokens": "0"}) == 0
    assert cost({"input_tokens": 5}, per_unit={"request": "0"}) == 0
    assert cost({"input_tokens": 5}, per_unit={"request": "0.01"}) == 10_000_000


def test_an_event_that_counts_nothing() -> None:
    empty = Event("e", at(DAY2), "p", "acme", "m")
    assert version(rate("a")).price(empty) == Price(0, "a", "priced")
    assert version(rate("a", per_unit={"request": "2"})).price(empty).cost_nano == 2_000_000_000
    assert version().price(empty) == UNPRICED


def test_beyond_64_bits_is_unpriced() -> None:
    prices = {"per_million": {"input_tokens": "922337203.6854775807"}}
    assert cost({"input_tokens": 10_000_000}, **prices) == 9_223_372_036_854_775_807
    assert cost({"input_tokens": 10_000_001}, **prices) is None
    dear = {"per_million": {"input_tokens": "9" * 12}}
    assert version(rate("a", **dear)).price(event(input_tokens=10**10)) == UNPRICED


# -- another currency ------------------------------------------------------------------------------


def test_usd_needs_an_exchange_rate_elsewhere() -> None:
    fx = rate("fx1", fx="USD", rate="0.9", effective_from=DAY1)
    prices = version(
        fx,
        rate("fx2", fx="USD", rate="0.8", effective_from=DAY2),
        rate("eur", model="e"),
        rate("usd", model="u", currency="USD"),
        currency="EUR",
    )
    assert prices.price(event(model="e", when=DAY0)).cost_nano == 1_000_000_000
    for model in ("u", "listed"):
        assert prices.price(event(model=model, when=DAY0)) == UNPRICED
        assert prices.price(event(model=model, when=DAY1)).cost_nano == 900_000_000
        assert prices.price(event(model=model, when=DAY2)).cost_nano == 800_000_000
    explanation = explain(prices, "acme", "u", at(DAY0))
    assert explanation.status == "unpriced"
    assert "no fx rate converts USD to EUR" in explanation.why


def test_without_conversion_no_other_rate_steps_in() -> None:
    prices = version(rate("wide", model="*"), rate("exact", currency="USD"), currency="EUR")
    assert prices.price(event()) == UNPRICED


def test_an_exchange_rate_can_be_withdrawn_and_is_exact() -> None:
    prices = version(
        rate("fx", fx="USD", rate="0.333333333333333333"),
        rate("m", model="listed", multiplier="3"),
        rate("w", withdraws="fx", effective_from=DAY2),
        currency="EUR",
    )
    assert prices.price(event(model="listed", when=DAY1)).cost_nano == 1_000_000_000
    assert prices.price(event(model="listed", when=DAY2)) == UNPRICED


# -- versions --------------------------------------------------------------------------------------


def test_a_version_is_known_by_its_place_and_its_book() -> None:
    assert version().key == (0, BOOK.digest)
    assert version(rate("a"), rate("b")).key == (2, BOOK.digest)


def test_a_version_does_not_change_with_its_log() -> None:
    log = RateLog()
    before = PriceVersion(log.snapshot(), BOOK)
    record = rate("a")
    log.feed(0, b"a", json.dumps(record).encode(), 0, 60)
    assert before.price(event()) == UNPRICED
    assert PriceVersion(log.snapshot(), BOOK).price(event()).rate_id == "a"


def test_made_up_models_take_bounded_memory() -> None:
    prices = version(rate("last", provider="*", model="*"))
    for number in range(MAX_PLANS + 10):
        made_up = PricedEvent("e", at(DAY2), "p", "acme", f"m{number}", input_tokens=1)
        assert prices.price_all([made_up]) == 0
        assert made_up.rate_id == prices.price(made_up).rate_id == "last"
    assert len(prices._plans) <= MAX_PLANS  # pyright: ignore[reportPrivateUsage]
    assert len(prices._usual) <= MAX_PLANS  # pyright: ignore[reportPrivateUsage]


# -- explanations ----------------------------------------------------------------------------------


def test_an_explanation_says_what_lost_and_why() -> None:
    prices = version(
        rate("wide", model="l*"),
        rate("old", model="listed"),
        rate("now", model="listed", effective_from=DAY1),
        rate("soon", model="listed", effective_from="2026-12-01T00:00:00Z"),
        rate("last", provider="*", model="*"),
        rate("half", model="*", multiplier="0.5"),
        rate("all", provider="*", model="*", multiplier="0.1"),
    )
    found = explain(prices, "acme", "listed", at(DAY2))
    assert (found.status, found.source, found.rate_id) == ("priced", "set rate", "now*half")
    assert {lost.rate_id: lost.reason for lost in found.lost} == {
        "wide": "now names the model exactly, this one by a glob",
        "old": "now is effective from a later time",
        "soon": "begins later, at 2026-12-01T00:00:00Z",
        "last": "a rate for every provider and model applies only where nothing else does",
        "book:acme/listed@base": "a set rate beats the built-in book",
        "all": "half names the provider exactly, this one by a glob",
    }
    by_counter = {price.counter: price for price in found.prices}
    assert by_counter["input_tokens"].amount == "0.5"
    assert by_counter["cached_input_tokens"].like == "input_tokens"
    assert "output_tokens" not in by_counter


def test_an_explanation_shows_ignored_records() -> None:
    log = RateLog()
    record = {**rate("late"), "backdated": False}
    log.feed(0, b"late", json.dumps(record).encode(), at(DAY2) // 1000, 60)
    found = explain(PriceVersion(log.snapshot(), BOOK), "acme", "m", at(DAY2))
    assert (found.status, found.source, found.rate_id) == ("unpriced", "none", "")
    assert found.lost[0].rate_id == "late"
    assert found.lost[0].reason.startswith("not used (too-early)")


def test_the_dearest_token() -> None:
    prices = version(rate("a", per_million=FULL), rate("c", model="c", per_unit={"request": "1"}))
    assert dearest_token_nano(prices, "acme", "m", at(DAY2)) == 80_000
    assert dearest_token_nano(prices, "acme", "listed", at(DAY2)) == 2_000
    assert dearest_token_nano(prices, "acme", "c", at(DAY2)) == 0
    assert dearest_token_nano(prices, "nobody", "x", at(DAY2)) == 0
