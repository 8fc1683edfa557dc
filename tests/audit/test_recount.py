"""The oracle: its rules on their own, and its agreement with the worker's core."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audit.pricing import Prices, RateRecord, used_rates
from pipeline.audit.reading import (
    COUNTERS,
    INPUT_PARTS,
    OUTPUT_PARTS,
    Headers,
    Reading,
    Unreadable,
    parse_time,
    read_event,
)
from pipeline.audit.recount import LogRecord, Recount, Rules, home_of
from pipeline.core.book import builtin_book
from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.core.rejections import Rejection
from producers.malformed import encode
from producers.simulator import expectations, simulate

END = datetime(2026, 11, 22, 12, tzinfo=UTC)
END_MS = int(END.timestamp() * 1000)
RULES = Rules(0, 0, "", 7, 9, 300, 60, "USD")
BODY: dict[str, Any] = {
    "event_id": "e1",
    "occurred_at": "2026-11-22T11:00:00Z",
    "port_id": "harbor-7",
    "provider": "openai",
    "model": "gpt-5",
    "input_tokens": 1_000,
    "output_tokens": 100,
}


def event(**changes: Any) -> bytes:
    return encode({**BODY, **changes})


def recount_of(records: Sequence[LogRecord], partitions: int = 1, **kwargs: Any) -> Recount:
    rules = {p: [RULES] for p in range(partitions)}
    recount = Recount(partitions, rules, (), **kwargs)
    recount.feed(records)
    return recount


def record(offset: int, value: bytes | None, at_ms: int = END_MS, **kwargs: Any) -> LogRecord:
    return LogRecord(kwargs.get("partition", 0), offset, at_ms, b"k", value, kwargs.get("h", ()))


# -- its own rules -------------------------------------------------------------------------------


def test_a_simulated_day_ends_as_its_labels_say() -> None:
    sent = simulate(events=3_000, end=END, partitions=4)
    expected = expectations(sent, END)
    logs: list[list[LogRecord]] = [[] for _ in range(4)]

    def append(partition: int, at_ms: int, value: bytes | None, headers: Headers) -> None:
        log = logs[partition]
        log.append(LogRecord(partition, len(log), at_ms, None, value, headers))

    for one in sent:
        home = home_of(one.key or b"", 4)
        partition = home if one.partition is None else one.partition
        at = len(logs[partition])
        append(partition, END_MS, one.value, one.headers)
        if one.label == "misrouted":
            whence = f"{partition}/{at}/{END_MS}".encode()
            append(home, END_MS + 5, one.value, (*one.headers, ("forwarded-from", whence)))
    recount = recount_of([r for log in logs for r in log], 4)
    fates = [count.fates_below(count.next_offset) for count in recount.counts.values()]
    assert sum(f["accepted"] for f in fates) == expected.accepted
    assert sum(f["duplicates"] for f in fates) == expected.duplicates
    assert sum(f["forwarded"] for f in fates) == expected.forwarded
    reasons = [o.note for c in recount.counts.values() for o in c.rejected.values()]
    assert {r: reasons.count(r) for r in set(reasons)} == expected.rejected
    cells = [c.cells_below(c.next_offset) for c in recount.counts.values()]
    month = [c for cell in cells for (scope, _), c in cell.items() if scope == "all"]
    assert sum(c[0] for c in month) == expected.accepted


def test_cost_and_cells_of_one_event() -> None:
    value = event(user_id="u", organization_id="o", group_id="g", billing_scope="user")
    count = recount_of([record(0, value)]).counts[0]
    # gpt-5: 1.25 and 10 USD per million, so 1000 · 1250 + 100 · 10,000 nano.
    assert count.rows[0].cost_nano == 2_250_000
    day = (datetime(2026, 11, 22, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days
    totals = (1, 1_100, 2_250_000, 0, 0, 0)
    assert count.cells_below(1) == {
        (scope, day): totals for scope in ("all", "port:harbor-7", "org:o", "group:g", "user:u")
    }


def test_the_first_accepted_wins_within_the_horizon_and_not_beyond() -> None:
    day_ms = 86_400_000
    at_ms = [END_MS, END_MS + 9 * day_ms, END_MS + 18 * day_ms + 1]
    later = (END + timedelta(days=18)).isoformat()
    values = [event(), event(model="gpt-4o"), event(occurred_at=later)]
    # The second is exactly 9 days younger: a duplicate, whatever its age. The age is judged
    # first, so it must be young itself.
    values[1] = event(occurred_at=(END + timedelta(days=9)).isoformat())
    count = recount_of([record(i, v, at_ms[i]) for i, v in enumerate(values)]).counts[0]
    assert [row.offset for row in count.rows] == [0, 2]
    assert count.duplicates == [1]


def test_a_forwarded_record_is_judged_by_its_first_time() -> None:
    old = (END - timedelta(days=7)).isoformat()
    value = event(occurred_at=old)
    late = END_MS + 60_000
    first = f"1/5/{END_MS}".encode()
    records = [
        record(0, value, late),
        record(1, value, late, h=(("forwarded-from", first),)),
        record(2, event(event_id="e2", occurred_at=old), late, h=(("forwarded-from", b"x"),)),
    ]
    count = recount_of(records).counts[0]
    assert {offset: o.note for offset, o in count.rejected.items()} == {0: "too-old", 2: "too-old"}
    assert [row.offset for row in count.rows] == [1]
    assert (1, 5) in count.taken_over


def test_a_forwarded_record_is_not_younger_than_its_arrival() -> None:
    ahead = (END + timedelta(seconds=301)).isoformat()
    claimed = f"1/5/{END_MS + 60_000}".encode()
    count = recount_of([record(0, event(occurred_at=ahead), h=(("forwarded-from", claimed),))])
    assert count.counts[0].rejected[0].note == "in-the-future"


def test_rules_change_at_an_offset() -> None:
    young, old = RULES, RULES._replace(from_offset=1, max_event_age_days=3)
    five_days = (END - timedelta(days=5)).isoformat()
    recount = Recount(1, {0: [young, old]}, ())
    recount.feed([record(i, event(event_id=f"e{i}", occurred_at=five_days)) for i in range(2)])
    assert [row.offset for row in recount.counts[0].rows] == [0]
    assert recount.counts[0].rejected[1].note == "too-old"


def test_records_without_rules_are_counted_as_such() -> None:
    recount = Recount(1, {0: [RULES._replace(from_offset=3)]}, ())
    recount.feed([record(0, event())])
    assert recount.counts[0].without_rules == 1


def test_a_cut_off_log_counts_one_horizon_after_its_start() -> None:
    day_ms = 86_400_000
    times = [END_MS, END_MS + 9 * day_ms, END_MS + 9 * day_ms + 1]
    values = [
        event(event_id=f"e{i}", occurred_at=datetime.fromtimestamp(t / 1000, UTC).isoformat())
        for i, t in enumerate(times)
    ]
    records = [record(10 + i, v, times[i]) for i, v in enumerate(values)]
    count = recount_of(records, log_starts={0: 10}).counts[0]
    assert [row.offset for row in count.rows] == [12]
    assert count.counts_from == 12


def test_offsets_must_grow() -> None:
    with pytest.raises(ValueError, match="offset 0"):
        recount_of([record(0, event()), record(0, event())])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t01:00:00.0000019+01:00", 1),
        ("1969-12-31T23:59:59.999999z", -1),
        ("2016-12-31T23:59:60Z", 1_483_228_799_999_999),
        ("2017-01-01T00:59:60.5+01:00", 1_483_228_799_999_999),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert parse_time(text) == expected


@pytest.mark.parametrize("text", ["2026-11-22T10:00:60Z", "2026-11-22 10:00:00Z", "2026-11-22"])
def test_bad_times(text: str) -> None:
    with pytest.raises(Unreadable, match="bad-timestamp"):
        parse_time(text)


# -- against the worker's core ---------------------------------------------------------------------


def reading_or_reason(value: bytes | None, headers: Headers) -> Reading | str:
    try:
        return read_event(value, headers)
    except Unreadable as unreadable:
        return unreadable.reason


def assert_same_reading(value: bytes | None, headers: Headers = ()) -> None:
    decoded = decode_event(value, headers)
    reading = reading_or_reason(value, headers)
    if isinstance(reading, str):
        assert isinstance(decoded, Rejection), (reading, decoded, value)
        assert decoded.reason == reading, value
        return
    assert isinstance(decoded, Event), (decoded, value)
    for name in ("event_id", "occurred_at_us", "port_id", "provider", "model", "kind", "feature"):
        assert getattr(decoded, name) == getattr(reading, name)
    for name, count in reading.counts.items():
        assert getattr(decoded, name) == count
    for name, text in reading.texts.items():
        assert getattr(decoded, name) == text
    assert decoded.tags == reading.tags
    free_by = "self-hosted" if decoded.self_hosted else "cache-hit" if decoded.cache_hit else ""
    assert free_by == reading.free_by
    reported = None if decoded.reported_cost == "" else Decimal(decoded.reported_cost)
    assert reported == reading.reported_cost


odd_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 3),
    st.sampled_from([10**10, 10**10 + 1, 10**7, 1e-9, 1e-10, 0.1, 1e7, 1.0, -0.0, 1e400]),
    st.sampled_from(["", "0", "-0", "1.", ".5", "+3", "1e3", "1.0000000001", "-1", "9" * 21]),
    st.sampled_from(["2026-11-22T10:00:00Z", "2026-02-29T10:00:00Z", "0000-01-01T00:00:00Z"]),
    st.sampled_from(["llm", "org", "user", "x" * 128, "x" * 129, "x" * 257, "\ud83d\ude00 é"]),
    st.sampled_from([{}, {"a": "b"}, {"a": 1}, {"k" * 65: ""}, [], ["a"]]),
)
names = st.sampled_from([*Event.__struct_fields__, "occurred_at", "audio_seconds", "data", "id"])
bodies = st.dictionaries(names, odd_values, max_size=6).map(lambda changes: {**BODY, **changes})
content_types = st.sampled_from(
    [
        (),
        (("content-type", b"application/json"),),
        (("Content-Type", b"application/cloudevents+json"),),
        (("content-type", b"application/cloudevents-batch+json"),),
        (("ce_specversion", b"1.0"), ("ce_id", b"from-header")),
        (("ce_specversion", b"0.3"),),
        (("ce_subject", b"\xff"),),
    ]
)


@given(bodies, content_types)
@settings(max_examples=400, deadline=None)
def test_both_readers_give_the_same_answer(body: dict[str, Any], headers: Headers) -> None:
    assert_same_reading(json.dumps(body).encode(), headers)
    envelope = {"specversion": "1.0", "id": "outer", "time": "2026-11-22T09:00:00Z", **body}
    assert_same_reading(json.dumps({**envelope, "data": body}).encode(), headers)


@given(st.binary(max_size=40), st.integers(0, 200), content_types)
@settings(max_examples=300, deadline=None)
def test_both_readers_agree_on_damaged_bytes(junk: bytes, at: int, headers: Headers) -> None:
    whole = event(tags={"a": "\u00e9"}, note="\\ud83d\\ude00")
    assert_same_reading(junk, headers)
    assert_same_reading(whole[:at] + junk + whole[at:], headers)
    assert_same_reading(whole[:at] + whole[at + len(junk) :], headers)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"\xef\xbb\xbf{}",
        b"[" * 300 + b"]" * 300,
        b'{"a":' * 256 + b"1" + b"}" * 256,
        b'{"a":' * 257 + b"1" + b"}" * 257,
        b'{"event_id":"\\ud800"}',
        b'{"event_id":"\\ud83d\\ude00"}',
        b'{"\\udc00":1}',
        b'{"a":"\\\\ud800"}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":' + b"9" * 5_000 + b"}",
        event(reported_cost=""),
        event(audio_seconds=""),
    ],
)
def test_both_readers_agree_on_edges(value: bytes | None) -> None:
    assert_same_reading(value)


def test_both_readers_agree_on_the_simulators_day() -> None:
    for one in simulate(events=4_000, end=END):
        assert_same_reading(one.value, one.headers)


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
    body = {**BODY, "provider": provider, "model": model}
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
    if mine.set_rate:
        assert mine.set_rate == price.rate_id


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
