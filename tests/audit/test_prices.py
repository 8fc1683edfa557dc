"""The recount's prices: its agreement with the worker's, by the book and by rates."""

from datetime import UTC, datetime
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audit.recount.events import COUNTERS, INPUT_PARTS, OUTPUT_PARTS, read_event
from pipeline.audit.recount.prices import Prices
from pipeline.audit.recount.rates import RateRecord, used_rates
from pipeline.core.book import builtin_book
from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from producers.malformed import encode
from producers.simulator import simulate

END = datetime(2026, 11, 22, 12, tzinfo=UTC)
END_MS = int(END.timestamp() * 1000)
BODY: dict[str, Any] = {
    "event_id": "e1",
    "occurred_at": "2026-11-22T11:00:00Z",
    "port_id": "harbor-7",
    "provider": "openai",
    "model": "gpt-5",
    "input_tokens": 1_000,
    "output_tokens": 100,
}

# -- prices ----------------------------------------------------------------------------------------

MODELS = [
    ("openai", "gpt-5"),
    ("openai", "gpt-5-mini-2025-08-07"),
    ("openai", "gpt-4o-transcribe"),
    ("openai", "gpt-4o-mini-tts"),
    ("openai", "gpt-realtime"),
    ("openai", "gpt-image-1"),
    ("openai", "text-embedding-3-small"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-flash"),
    ("google", "gemini-2.5-pro"),
    ("groq", "whisper-large-v3"),
    ("perplexity", "sonar-deep-research"),
    ("deepseek", "deepseek-chat"),
    ("azure", "gpt-4o"),
    ("azure", "gpt-4o-transcribe"),
    ("openrouter", "openai/gpt-5"),
    ("litellm", "anthropic/claude-haiku-4-5"),
    ("piper", "x"),
    ("acme", "unknown"),
]
counts = st.sampled_from([0, 0, 1, 7, 1_000, 200_001, 10**10])


@st.composite
def priced_events(draw: st.DrawFn) -> dict[str, Any]:
    provider, model = draw(st.sampled_from(MODELS))
    body: dict[str, Any] = {**BODY, "provider": provider, "model": model}
    for whole, parts in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        taken = 0
        for part in parts:
            body[part] = draw(st.sampled_from([0, 0, 0, 3, 999]))
            taken += body[part]
        body[whole] = min(10**10, taken + draw(counts))
    for name in COUNTERS[-3:]:
        body[name] = draw(st.sampled_from([0, 0, 1, 12_345]))
    body["audio_seconds"] = draw(st.sampled_from([0, 0, "0.000000001", 4.5, 3600]))
    body["service_tier"] = draw(st.sampled_from(["", "", "flex", "priority", "batch", "fast"]))
    body["occurred_at"] = draw(
        st.sampled_from(["2024-01-01T00:00:00Z", "2025-09-05T17:00:00Z", "2026-11-22T03:00:00Z"])
    )
    return body


def assert_same_price(value: bytes, version: PriceVersion, prices: Prices) -> None:
    decoded = decode_event(value)
    assert isinstance(decoded, Event)
    price = version.price(decoded)
    mine = prices.price(read_event(value))
    assert (mine.cost_nano, mine.status) == (price.cost_nano, price.status), value
    assert mine.estimated == price.estimated
    assert mine.rate_id == price.rate_id


@given(priced_events())
@settings(max_examples=300, deadline=None)
def test_both_price_by_the_book_alike(body: dict[str, Any]) -> None:
    version = PriceVersion(RateLog("USD").snapshot(), builtin_book())
    assert_same_price(encode(body), version, Prices([], "USD"))


patterns = st.sampled_from(["*", "openai", "open*", "gpt-5", "gpt-?", "gpt*", "*-5", "acme", "x"])
instants = st.sampled_from(
    ["2024-06-01T00:00:00Z", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00.5Z", "soon"]
)
amounts = st.sampled_from(["0", "0.5", "1.25", "3", ".1", "1e3", "-1", "0.000000000000000001"])


@st.composite
def rate_records(draw: st.DrawFn) -> dict[str, Any]:
    rate_id = draw(st.sampled_from(["r1", "r2", "r3", "r4", "a*b", "book:x"]))
    body: dict[str, Any] = {"rate_id": rate_id, "effective_from": draw(instants)}
    body["backdated"] = draw(st.sampled_from([True, True, True, False, None, 1]))
    kind = draw(
        st.sampled_from(["price", "price", "price", "multiplier", "withdraws", "fx", "two"])
    )
    if kind in ("price", "multiplier", "two"):
        body |= {"provider": draw(patterns), "model": draw(patterns)}
    if kind in ("price", "two"):
        body["currency"] = draw(st.sampled_from([None, "USD", "EUR", "eur"]))
        body["per_million"] = draw(
            st.dictionaries(st.sampled_from(["input_tokens", "output_tokens", "reasoning_tokens",
                                             "cache_write_tokens", "tokens"]), amounts)
        )  # fmt: skip
        body["per_unit"] = draw(st.dictionaries(st.sampled_from(["request", "images"]), amounts))
        body["per_second"] = draw(st.dictionaries(st.just("audio_seconds"), amounts))
    if kind in ("multiplier", "two"):
        body["multiplier"] = draw(amounts)
    if kind == "withdraws":
        body["withdraws"] = draw(st.sampled_from(["r1", "r2", "r3", "r9"]))
    if kind == "fx":
        body |= {"fx": draw(st.sampled_from(["EUR", "USD", "GBP"])), "rate": draw(amounts)}
    return body


@given(
    st.lists(rate_records(), min_size=1, max_size=6),
    priced_events(),
    st.sampled_from(["USD", "USD", "EUR"]),
)
@settings(max_examples=400, deadline=None)
def test_both_use_the_same_rates(
    bodies: list[dict[str, Any]], body: dict[str, Any], currency: str
) -> None:
    log = RateLog(currency)
    records: list[RateRecord] = []
    for offset, rate in enumerate(bodies):
        key, value = rate["rate_id"].encode(), encode(rate)
        log.feed(offset, key, value, END_MS, 60)
        records.append(RateRecord(offset, END_MS, key, value))
    snapshot = log.snapshot()
    used = used_rates(records, currency, 60)
    assert [r.offset for r in used] == [r.offset for r in snapshot.used]
    version = PriceVersion(snapshot, builtin_book())
    assert_same_price(encode(body), version, Prices(used, currency))


def test_both_price_the_simulators_day_alike() -> None:
    version = PriceVersion(RateLog("USD").snapshot(), builtin_book())
    prices = Prices([], "USD")
    for one in simulate(events=3_000, end=END):
        if one.headers == () and not one.label.startswith("rejected:"):
            assert_same_price(one.value or b"", version, prices)
