"""Slices with the compiled library and without: the same rows, fates, ids and cells."""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import intake
from pipeline.core.book import builtin_book
from pipeline.core.dedupe import DedupeWindow
from pipeline.core.event_codec import TimeLimits
from pipeline.core.event_fields import (
    COUNTERS,
    FIELDS,
    FLAGS,
    MAX_COUNT,
    OPTIONAL_TEXTS,
    OUTPUT_PARTS,
)
from pipeline.core.events import PricedEvent
from pipeline.core.home import home_partition, partition_of
from pipeline.core.intake import Intake, Taken
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import PER_MILLION, PER_UNIT, RateLog
from pipeline.core.rows import Rows
from pipeline.core.tariffs import WHOLE
from pipeline.core.totals import SourceTotals
from pipeline.native import slice as native_slice
from pipeline.native.ids import id_search
from pipeline.native.slice import usual_reader
from producers.simulator import simulate
from tests.core.test_intake import Record

pytestmark = pytest.mark.usefixtures("compiled", "every_slice")

PARTITION, PARTITIONS = 1, 3
NOW_MS = 1_763_800_000_000
DAY_MS = 86_400_000
LIMITS = TimeLimits.of(7, 300)
HOME = [p for p in map("port-{}".format, range(40)) if home_partition(p, 3) == PARTITION]
AWAY = [p for p in map("port-{}".format, range(40)) if home_partition(p, 3) != PARTITION]
DAY_AGO = datetime.fromtimestamp(NOW_MS / 1000 - 86_400, UTC).isoformat()


@pytest.fixture
def every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "FEW_RECORDS", 0)


def rate(rate_id: str, **more: Any) -> bytes:
    entry = {"rate_id": rate_id, "effective_from": "2020-01-01T00:00:00Z", "backdated": True}
    return json.dumps(entry | more).encode()


def own(model: str, **prices: Any) -> bytes:
    """A rate for a model of its own, whose name it has."""
    return rate(model, provider="own", model=model, currency="USD", **prices)


def version(more: Sequence[bytes] = ()) -> PriceVersion:
    """Prices of every kind that a slice can meet, some of which change in the midst of it."""
    log = RateLog("USD")
    million = {"input_tokens": "0.333", "output_tokens": "0.7"}
    per = {"provider": "own", "currency": "USD", "per_million": million}
    for offset, value in enumerate(
        [
            rate("thirds", model="thirds", **per),
            rate("factor", provider="own", model="thirds", multiplier="0.333333333"),
            rate("later", model="later", **(per | {"effective_from": DAY_AGO})),
            rate("dear", provider="own", model="dear", currency="USD",
                 per_million={"input_tokens": "99999999999", "output_tokens": "1"}),
            rate("halves", provider="own", model="halves", currency="USD",
                 per_million={"input_tokens": "0.0005", "output_tokens": "0.0015"}),
            rate("part", provider="own", model="part", currency="USD",
                 per_million={"input_tokens": "1"}),
            rate("rich", provider="own", model="rich", currency="USD",
                 per_million={name: str(n + 1) for n, name in enumerate(COUNTERS[:-2])},
                 per_unit={"images": "0.5", "web_searches": "0.25"}),
            rate("call é", provider="own", model="call", currency="USD",
                 per_unit={"request": "0.01"}),
            *more,
        ]
    ):  # fmt: skip
        key = json.loads(value)["rate_id"].encode()
        assert log.feed(offset, key, value, NOW_MS - 30 * DAY_MS, 60) is None
    return PriceVersion(log.snapshot(), builtin_book())


class Watched(Intake):
    """Knows which of the accepted events had to be priced in Python."""

    def __init__(self, *memory: Any) -> None:
        super().__init__(PARTITION, PARTITIONS, *memory)
        self.left: list[int] = []

    def _accept(self, events: list[PricedEvent], prices: PriceVersion, taken: Taken) -> Rows:
        self.left += [event.source_offset for event in events]
        return super()._accept(events, prices, taken)


class Side:
    """An intake of one of the two ways, and all that it did."""

    def __init__(self, *, is_compiled: bool, rates: Sequence[bytes] = ()) -> None:
        self.totals, self.taken = SourceTotals(), Taken()
        usual = usual_reader(PARTITION, PARTITIONS) if is_compiled else None
        self.dedupe = DedupeWindow(9 * DAY_MS, id_search() if is_compiled else None)
        self.intake = Watched(self.totals, self.dedupe, usual)
        self.prices = version(rates)
        self.rows: list[tuple[int, bytes]] = []
        self.changed: list[set[tuple[str, int]]] = []

    def take(self, records: list[Record]) -> None:
        rows = self.intake.take(records, self.prices, LIMITS, self.taken)
        for number, offset in enumerate(rows.offsets.tolist()):
            self.rows.append((offset, bytes(rows.cut(number, number + 1))))
        self.changed.append({(cell.scope, cell.day) for cell in self.totals.take_changed()})

    def seen(self) -> dict[str, Any]:
        taken = self.taken
        return {
            "rows": self.rows,
            "rejected": sorted((r.record.offset, r.rejection) for r in taken.rejected),
            "forwarded": sorted((f.record.offset, f.home, f.headers) for f in taken.forwarded),
            "duplicates": sorted(taken.duplicates),
            "ids": bytes(taken.ids),
            "unpriced": taken.unpriced,
            "watermark": taken.watermark_ms,
            "cells": sorted(self.totals.cells()),
            "changed": self.changed,
            "unknown": self.intake.unknown_fields.count,
        }


def assert_same(slices: list[list[Record]], rates: Sequence[bytes] = ()) -> Side:
    """Both ways do the same with ``slices``; returns the compiled one."""
    plain = Side(is_compiled=False, rates=rates)
    compiled = Side(is_compiled=True, rates=rates)
    for records in slices:
        plain.take(records)
        compiled.take(records)
    expected, found = plain.seen(), compiled.seen()
    for name, what in expected.items():
        assert found[name] == what, name
    return compiled


def assert_taken(events: list[dict[str, Any]], rates: Sequence[bytes] = ()) -> list[bool]:
    """All are accepted, and the same both ways; returns which ones the library took."""
    records = [
        Record(n, json.dumps(body(event_id=str(n), **fields)).encode())
        for n, fields in enumerate(events)
    ]
    compiled = assert_same([records], rates)
    assert len(compiled.rows) == len(events)
    return [n not in compiled.intake.left for n in range(len(events))]


def body(**fields: Any) -> dict[str, Any]:
    at = datetime.fromtimestamp(NOW_MS / 1000 - 1, UTC).isoformat()
    usual = {"event_id": "e", "occurred_at": at, "port_id": HOME[0], "provider": "openai"}
    return usual | {"model": "gpt-5", "input_tokens": 1_000, "output_tokens": 30} | fields


TEXTS = st.one_of(
    st.sampled_from(["", "x", "a" * 128, "a" * 129, "b" * 256, "b" * 257, "é", "\x7f"]),
    st.sampled_from(['a"b', "a\\b", "a\nb"]),
    st.text(max_size=6),
)  # fmt: skip
COUNTS = st.one_of(
    st.integers(0, 5_000),
    st.sampled_from([MAX_COUNT, MAX_COUNT + 1, 10**11, 2**63, 2**64]),
    st.sampled_from([-1, -0.0, 1.0, 1e3, "7", True]),
)  # fmt: skip
TIMES = st.one_of(
    st.integers(NOW_MS - 8 * DAY_MS, NOW_MS + 400_000).map(
        lambda ms: datetime.fromtimestamp(ms / 1000, UTC).isoformat()
    ),
    st.sampled_from([
        "2025-11-22T08:26:40Z", "2025-11-22T08:26:40.123Z", "2025-11-22T08:26:40.123456Z",
        "2025-11-22T08:26:40.1Z", "2025-11-22T08:26:40.123456789Z", "2025-11-22t08:26:40z",
        "2025-11-22T08:26:40+00:00", "2025-11-22T08:26:40.5+00:00", "2025-11-22T09:26:40+01:00",
        "2025-11-22T08:26:60Z", "2025-11-22T24:00:00Z", "2025-11-31T00:00:00Z", "2025-11-22",
        "2025-11-22T08:26:40", "2025-11-22T08:26:40.Z", "2025-11-22 08:26:40Z", "",
        "2025-11-22T08:26:40-00:00", "0000-01-01T00:00:00Z", "2025-02-29T00:00:00Z",
        "２025-11-22T08:26:40Z", "2025-11-22T08:60:40Z", "2025-13-22T08:26:40Z",
    ]),
)  # fmt: skip
TAG_KEYS = st.one_of(st.sampled_from(["", "x", "a" * 32, "a" * 64, "a" * 65, "é"]), TEXTS)
FIELD_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "event_id": st.one_of(st.sampled_from("abcdefgh"), TEXTS),
    "occurred_at": TIMES,
    "port_id": st.one_of(st.sampled_from([*HOME[:3], AWAY[0]]), TEXTS),
    "provider": st.sampled_from(["openai", "own", "anthropic", "é"]),
    "model": st.sampled_from(
        [
            "gpt-5",
            "thirds",
            "later",
            "dear",
            "halves",
            "part",
            "call",
            "rich",
            "nobody",
            "gpt-4o",
            "claude-sonnet-4-5",
            "",
        ]
    ),
    **dict.fromkeys((*OPTIONAL_TEXTS, "feature"), TEXTS),
    "user_id": st.one_of(st.sampled_from(["u1", "u2", ""]), TEXTS),
    "kind": st.sampled_from(["llm", "stt", "image", "other", "", "LLM"]),
    "billing_scope": st.sampled_from(["org", "user", "team"]),
    **dict.fromkeys(COUNTERS, COUNTS),
    "input_tokens": st.one_of(st.integers(0, 10**6), st.integers(0, 9), COUNTS),
    "output_tokens": st.one_of(st.integers(0, 10**6), st.integers(0, 9), COUNTS),
    **dict.fromkeys(FLAGS, st.sampled_from([True, False, 0, "true"])),
    "audio_seconds": st.sampled_from([0, 1, 0.5, "1.25", -1]),
    "reported_cost": st.sampled_from(["0.01", "", "1e3"]),
    "tags": st.one_of(
        st.sampled_from([{"a": 1}, {"a": None}, {"a": {}}, ["a"], "a", 7]),
        st.dictionaries(TAG_KEYS, TEXTS, max_size=4),
        st.dictionaries(st.text("ab", max_size=4), st.sampled_from("xyz"), max_size=18),
    ),
    "colour": st.just("red"),
}
assert set(FIELDS) <= set(FIELD_VALUES)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """Mostly valid; a field or two replaced, null or missing, in another order, with spaces."""
    fields = body(
        event_id=draw(FIELD_VALUES["event_id"]),
        model=draw(FIELD_VALUES["model"]),
        user_id=draw(st.sampled_from(["u1", "u2", "u3", ""])),
        provider=draw(st.sampled_from(["openai", "own"])),
    )
    for name in draw(st.lists(st.sampled_from(sorted(FIELD_VALUES)), max_size=3)):
        fields[name] = draw(st.one_of(FIELD_VALUES[name], FIELD_VALUES[name], st.none()))
    if draw(st.integers(0, 9)) == 0:
        del fields[draw(st.sampled_from(sorted(fields)))]
    items = list(fields.items())
    if draw(st.booleans()):
        items = draw(st.permutations(items))
    text = json.dumps(dict(items), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        text = json.dumps(dict(items), separators=(",", ":"))
    if draw(st.integers(0, 19)) == 0:
        text = draw(st.sampled_from([" \n\t{}\r ", "{}x", "[{}]", "{},"])).replace("{}", text)
    if draw(st.integers(0, 19)) == 0:
        text = text[:-1] + ', "event_id": "again"}'
    return text.encode("utf-8", "surrogatepass")


def at_us(time_us: int) -> str:
    """With microseconds, which a float of seconds does not have."""
    second = datetime.fromtimestamp(time_us // 1_000_000, UTC)
    return f"{second:%Y-%m-%dT%H:%M:%S}.{time_us % 1_000_000:06}Z"


def ms_of(day: str) -> int:
    return int(datetime.fromisoformat(f"{day}T12:00:00+00:00").timestamp() * 1000)


def tags_of(count: int, key_length: int = 3, value_length: int = 1) -> dict[str, str]:
    """Not in the order of their keys."""
    return {f"{n:0{key_length}}"[::-1]: f"{n % 10}" * value_length for n in range(count)}


PLAIN_TAGS = [
    *(json.dumps(tags_of(count)) for count in (0, 1, 2, 15, 16)),
    *(json.dumps(tags_of(2, key_length=length)) for length in (1, 31, 32, 63, 64)),
    *(json.dumps(tags_of(2, value_length=length)) for length in (0, 31, 32, 255, 256)),
    json.dumps(tags_of(16, 64, 256), separators=(",", ":")),
    *('{"": ""}', '{"":"","b":""}', "{ }", ' { "b" : "x" ,\n"a":\t"y" } ', '{"a": "\x7f"}'),
    *('{"a": "1", "ab": "2", "b": "3"}', '{"a": ",", ",": ":", ":": "}", "}": "{"}'),
]
"""As JSON; each of these can be taken by the library."""
OTHER_TAGS = [
    *(json.dumps(tags_of(count)) for count in (17, 18, 40)),
    *(json.dumps(tags_of(2, key_length=length)) for length in (65, 257)),
    *(json.dumps(tags_of(2, value_length=length)) for length in (257, 258)),
    *('{"a": "1", "a": "2"}', '{"a": "1", "b": "2", "a": "3"}', '{"": "1", "": "1"}'),
    json.dumps(tags_of(15))[:-1] + ', "000": "again"}',
    json.dumps(tags_of(16))[:-1] + ', "000": "again"}',
    json.dumps({f"{n:064}": "x" for n in range(15)})[:-1] + f', "{14:064}": "y"}}',
    *('{"a": "é"}', '{"é": "a"}', '{"a": "\\n"}', '{"\\u0061": "b"}', '{"a": "\x1f"}'),
    *('{"a": 1}', '{"a": null}', '{"a": {}}', '{"a": ["b"]}', '{"a": true}', '{1: "a"}'),
    *("null", "[]", '["a"]', '"a"', "1", "{", "}", '{"a"', '{"a":', '{"a": "b"', '{"a": "b",'),
    *('{"a" "b"}', '{"a", "b"}', '{"a": "b",}', "{,}", '{"a": "b" "c": "d"}', '{"a": "b"}}'),
    *('{"a": "b"]', '{"a": "b": "c"}', '{"a": "b"} {}', "{'a': 'b'}", '{"a": "b', '{"a'),
]


def edges() -> Iterator[tuple[dict[str, Any] | str, int]]:
    """On both sides of each bound: the fields or the text of an event, and when it came."""
    for name in ("event_id", "port_id", "provider", "model", "feature"):
        yield from (({name: "a" * length}, NOW_MS) for length in (0, 1, 127, 128, 129))
    for name in OPTIONAL_TEXTS:
        yield from (({name: "a" * length}, NOW_MS) for length in (0, 31, 32, 255, 256, 257))
    for name in COUNTERS:
        wholes = {"input_tokens": MAX_COUNT, "output_tokens": MAX_COUNT, "model": "rich"}
        for count in (0, 1, 127, 128, 2**16, 2**32, MAX_COUNT, MAX_COUNT + 1, -1, 2**64):
            yield {**wholes, "provider": "own", name: count}, NOW_MS
            small = {"input_tokens": 9, "output_tokens": 9, "provider": "own", "model": "rich"}
            yield {**small, name: count}, NOW_MS
    for tokens in range(12):  # half a nano a token, and a third of 0.333
        for model in ("halves", "thirds", "part"):
            price = {"provider": "own", "model": model, "output_tokens": 0}
            yield {**price, "input_tokens": tokens}, NOW_MS
            yield {**price, "input_tokens": 0, "output_tokens": tokens}, NOW_MS
    now_us, day_ago_us = NOW_MS * 1000, NOW_MS * 1000 - 86_400_000_000
    for limit_us in (now_us - LIMITS.max_age_us, now_us + LIMITS.max_skew_us):
        for over_us in (-1, 0, 1):
            yield {"occurred_at": at_us(limit_us + over_us)}, NOW_MS
    for first, then in ((1, -1), (-1, 1)):  # what priced the first one does not price the other
        for over_us in (first, then, 0, first):
            later = {"provider": "own", "model": "later"}
            yield {**later, "occurred_at": at_us(day_ago_us + over_us)}, NOW_MS
    for day, came in (
        ("2024-02-29", "2024-03-01"), ("2023-02-29", "2023-03-01"), ("2100-02-29", "2100-03-01"),
        ("2000-02-29", "2000-03-01"), ("2024-02-30", "2024-03-01"), ("2025-04-31", "2025-05-01"),
        ("2025-12-31", "2026-01-01"), ("2025-00-10", "2025-01-11"), ("2025-13-01", "2026-01-02"),
        ("2025-01-00", "2025-01-01"), ("1970-01-01", "1970-01-02"), ("1969-12-31", "1970-01-02"),
    ):  # fmt: skip
        for clock in ("00:00:00", "23:59:59", "23:59:60", "24:00:00", "00:60:00", "12:00:60"):
            yield {"occurred_at": f"{day}T{clock}Z"}, ms_of(came)
            yield {"occurred_at": f"{day}T{clock}.999999+00:00"}, ms_of(came)
    plain = json.dumps(body(user_id="u"))[:-1]
    for more in (
        ', "input_tokens": 2}', ', "event_id": "x"}', ', "input_tokens": null}',
        ', "kind": "llm",}', ', "images": 007}', ', "images": 00}', ', "images": 0}',
        ', "images": -0}', ', "images": 1.0}',
        ', "images": 1e1}', ', "images": 10000000001}', ', "images": 1 }', ', "images": }', "} x",
        ', "session_id": "é"}', ', "session_id": "\x7f"}', ', "session_id": "a\\u0041"}',
        ', "cache_hit": true}', ', "cache_hit": false}', ', "cache_hit": 1}',
        ', "cache_hit": True}',
        ', "self_hosted": true}', ', "estimated": true}', ', "estimated": nul}', ', "tags": {}}',
        ', "audio_seconds": 0}', ', "reported_cost": "1"}', ', "billing_scope": "user"}', "", ",",
        ', "service_tier": "flex"}', ', "feature": ""}', ', "unknown": 1}', ', "KIND": "llm"}',
    ):  # fmt: skip
        yield plain + more, NOW_MS
    for tags in (*PLAIN_TAGS, *OTHER_TAGS):
        yield f'{plain}, "tags": {tags}}}', NOW_MS
        yield f'{{"tags":{tags},{plain[1:]}}}', NOW_MS
    yield plain + ', "tags": {"a": "b"}, "tags": {"a": "c"}}', NOW_MS
    yield plain + ', "tags": {}, "tags": {}}', NOW_MS
    yield json.dumps(body())[:-1] + ', "user_id": "é"}', NOW_MS
    yield json.dumps(body())[:-1] + ', "user_id": "\x1f"}', NOW_MS


def test_on_both_sides_of_every_bound() -> None:
    records: list[Record] = []
    for offset, (what, stamp_ms) in enumerate(edges()):
        if isinstance(what, dict):
            at = at_us(stamp_ms * 1000 - 7)
            what = json.dumps(body(**{"event_id": f"e{offset}", "occurred_at": at, **what}))
        value = what.replace('"event_id": "e"', f'"event_id": "e{offset}"')
        records.append(Record(offset, value.encode(), stamp_ms))
    assert len(records) > 500
    compiled = assert_same([records])
    assert len(compiled.rows) > 250
    assert len(compiled.taken.rejected) > 100
    assert_same([records[start : start + 7] for start in range(0, len(records), 7)])


def test_the_same_names_on_every_day() -> None:
    """In tables so small that names of different days often meet at one place."""
    half_day_us = 86_400_000_000 // 2
    slices = [
        [
            Record(n, json.dumps(body(
                event_id=str(n), user_id=f"u{n // 14}",
                occurred_at=at_us(NOW_MS * 1000 - n % 14 * half_day_us - 7),
            )).encode())
            for n in range(first, first + 14)
        ]
        for first in range(0, 14 * 60, 14)
    ]  # fmt: skip
    compiled = assert_same(slices)
    assert len(compiled.rows) == 14 * 60
    assert len(compiled.totals) > 60 * 7


def test_where_a_user_is_merged() -> None:
    """Names of every length, so that the hash ends in every way."""
    users = ["x" * length for length in range(1, 257)] + ["*", "a:b", "user:", "%7C|"]
    events = [body(event_id=str(n), user_id=user) for n, user in enumerate(users)]
    side = Side(is_compiled=True)
    side.intake.take(
        [Record(n, json.dumps(event).encode()) for n, event in enumerate(events)],
        side.prices,
        LIMITS,
        side.taken,
    )
    assert side.intake.left == []
    homes = {c.scope: c.home for c in side.totals.take_changed() if c.scope.startswith("user:")}
    assert homes == {f"user:{u}": partition_of(f"user:{u}".encode(), PARTITIONS) for u in users}


def test_sums_beyond_64_bits() -> None:
    dear = {"provider": "own", "model": "dear", "output_tokens": 0}
    records = [
        Record(n, json.dumps(body(event_id=str(n), input_tokens=4 * 10**4, **dear)).encode())
        for n in range(200)
    ]
    compiled = assert_same([records])
    assert max(totals[2] for _, _, totals in compiled.totals.cells()) > 2**63


LETTERS = list(b'"\\{}:,0919 \x00\x1f\x7f\x80\xff-.eEtfn')
VALUES = st.one_of(bodies(), bodies(), bodies(), st.none(), st.binary(max_size=12))
HEADERS = st.sampled_from(
    [[], [], [], [("trace", b"1")], [("forwarded-from", b"0/5/%d" % (NOW_MS - 2 * DAY_MS))],
     [("ce_specversion", b"1.0")]]
)  # fmt: skip
STAMPS = st.sampled_from([NOW_MS, NOW_MS, NOW_MS, NOW_MS + DAY_MS, NOW_MS - DAY_MS, -1, 0, 2**62])


@settings(max_examples=400)
@given(st.lists(st.tuples(VALUES, HEADERS, STAMPS), max_size=40), st.lists(st.integers(0, 40)))
def test_both_ways_do_the_same(
    stream: list[tuple[bytes | None, list[tuple[str, bytes]], int]], cuts: list[int]
) -> None:
    records = [
        Record(2 * offset, value, stamp_ms, headers=headers)
        for offset, (value, headers, stamp_ms) in enumerate(stream)
    ]
    bounds = sorted({0, len(records), *(min(cut, len(records)) for cut in cuts)})
    assert_same([records[start:end] for start, end in pairwise(bounds)])


@settings(max_examples=200)
@given(st.data())
def test_bytes_changed_at_random(data: st.DataObject) -> None:
    fields = body(event_id="a", user_id="u1", kind="llm", self_hosted=False, tags=tags_of(3))
    whole = json.dumps(fields | {"reasoning_tokens": 9}).encode()
    records = [Record(0, whole)]
    for offset in range(1, 20):
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.integers(0, len(changed) - 1))
            changed[at] = data.draw(
                st.sampled_from(list(b'"\\{}:,0919 \x00\x1f\x7f\x80\xff-.eEtfn'))
            )
        end = data.draw(st.sampled_from([len(changed), len(changed), len(changed) - 1, 1]))
        records.append(Record(offset, bytes(changed[:end])))
    assert_same([records])


@pytest.mark.parametrize("seed", range(6))
def test_traffic_of_every_kind(seed: int) -> None:
    """What the simulator sends: all fields, CloudEvents, malformed ones, duplicates."""
    random = Random(seed)
    end = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    records = [
        Record(offset, one.value, NOW_MS, one.key, list(one.headers))
        for offset, one in enumerate(simulate(seed, 1_500, end))
    ]
    slices, at = list[list[Record]](), 0
    while at < len(records):
        size = random.choice([1, 7, 40, 400])
        slices.append(records[at : at + size])
        at += size
    compiled = assert_same(slices)
    assert compiled.rows
    assert compiled.taken.rejected


def test_what_is_usual_is_taken_by_the_library() -> None:
    more = {"user_id": "u", "organization_id": "o", "group_id": "g", "feature": "chat"}
    records = [Record(n, json.dumps(body(event_id=str(n), **more)).encode()) for n in range(100)]
    side = Side(is_compiled=True)
    side.take(records)
    assert side.intake.left == []
    assert len(side.rows) == 100
    # The rows are what a struct is encoded as, and read as.
    events = [msgspec.msgpack.decode(row, type=PricedEvent) for _, row in side.rows]
    again = Rows.of(events)
    assert [row for _, row in side.rows] == [bytes(again.cut(n, n + 1)) for n in range(100)]
    assert {event.price_status for event in events} == {"priced"}


RICH = {"provider": "own", "model": "rich"}
CLAUDE = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
PARTS = tuple(name for name in COUNTERS if name in WHOLE)
WITHOUT_TOKENS = ("characters", "images", "web_searches")


def test_every_counter_is_priced_by_the_library() -> None:
    """One, all of its whole, and all counters at once; by a rate with a price for each, by the
    book, and by rates that know nothing but tokens in and out or calls."""
    counts: list[dict[str, int]] = [{}, {"input_tokens": 0, "output_tokens": 0}]
    counts += [{name: count} for name in (*PARTS, *WITHOUT_TOKENS) for count in (1, 7, 30)]
    counts.append(dict.fromkeys(COUNTERS, 1) | {"input_tokens": 5, "output_tokens": 2})
    counts.append({name: 3 + n for n, name in enumerate(COUNTERS)} | {"input_tokens": 40})
    counts[-1]["output_tokens"] = 50
    counts += [{"input_tokens": 0, "web_searches": 2}, {"output_tokens": 0, "images": 2}]
    models = [RICH, CLAUDE, {}, *({"provider": "own", "model": m} for m in ("thirds", "call"))]
    assert all(assert_taken([model | one for model in models for one in counts]))


def test_what_has_no_certain_price_here_is_left() -> None:
    none = {"input_tokens": 0, "output_tokens": 0}
    events = [
        *(model | none | {name: 1} for model in (RICH, CLAUDE, {}) for name in WITHOUT_TOKENS),
        *(RICH | {"reasoning_tokens": 3, flag: True} for flag in ("self_hosted", "cache_hit")),
        RICH | {"reasoning_tokens": 3, "audio_seconds": 1},
        {"provider": "own", "model": "part", "reasoning_tokens": 3},
        {"provider": "own", "model": "part", "input_tokens": 9, "cache_write_tokens": 3},
        # Priced by its length where it has no tokens.
        *({"model": "gpt-4o-mini-tts", "characters": n} | none for n in (0, 9)),
    ]
    assert not any(assert_taken(events))


def test_a_model_without_a_price_has_none_for_any_counter() -> None:
    nobody = {"provider": "own", "model": "nobody"}
    events = [nobody | {name: 1} for name in (*COUNTERS, "images")]
    assert all(assert_taken(events))


def test_more_input_than_a_price_is_for_is_left() -> None:
    writes = [{"cache_write_tokens": 5, "cache_write_1h_tokens": 2}, {}]
    events = [
        CLAUDE | more | {"input_tokens": tokens}
        for more in writes
        for tokens in (199_999, 200_000, 200_001)
    ]
    assert assert_taken(events) == [True, True, False] * 2


def test_costs_and_prices_on_both_sides_of_what_fits() -> None:
    """A cost of 2⁴⁹ nanos; a price of 2⁶² nanos for one, of which four do not fit 64 bits."""
    free = {"input_tokens": "0", "output_tokens": "0"}
    rates = [
        own("cost", per_million=free, per_unit={
            "images": "562949.953421311", "web_searches": "562949.953421312"}),
        own("price", per_million=free, per_unit={
            "images": "4611686018.427387904", "web_searches": "0"}),
        own("above", per_million=free, per_unit={
            "images": "4611686018.427387905", "web_searches": "0"}),
        own("both", per_million=free, per_unit={
            "images": "4611686018.427387904", "web_searches": "4611686018.427387904"}),
    ]  # fmt: skip
    for name, counts, is_here in (
        ("cost", {"images": 1}, True),
        ("cost", {"web_searches": 1}, False),
        ("price", {}, True),
        ("price", {"web_searches": MAX_COUNT}, True),
        *(("price", {"images": n}, False) for n in (1, 2, 3, 4, 8, 2**32, MAX_COUNT)),
        ("above", {}, False),
        ("above", {"images": 4}, False),
        *(("both", {"images": n, "web_searches": n}, False) for n in (1, 2, 4, 8, MAX_COUNT)),
    ):
        taken = assert_taken([{"provider": "own", "model": name, **counts}] * 2, rates)
        assert taken == [is_here] * 2, (name, counts)


AMOUNTS = st.one_of(
    st.sampled_from(["0", "0", "0.0005", "0.0015", "0.333", "1", "99999999999", "999999999999"]),
    st.integers(0, 10**6).map(lambda micros: f"{micros // 1000}.{micros % 1000:03}"),
)
SOME_PRICES = st.builds(
    lambda tokens, more, per_unit: {"per_million": tokens | more, "per_unit": per_unit},
    st.fixed_dictionaries({"input_tokens": AMOUNTS, "output_tokens": AMOUNTS}),
    st.dictionaries(st.sampled_from(PER_MILLION), AMOUNTS, max_size=6),
    st.dictionaries(st.sampled_from(PER_UNIT), AMOUNTS, max_size=2),
)
FEW = st.one_of(st.integers(0, 9), st.integers(0, 10**6), st.sampled_from([MAX_COUNT]))


@st.composite
def counted(draw: st.DrawFn) -> dict[str, Any]:
    """Counts that nearly always fit: each part takes of what is left of its whole."""
    counts = {"input_tokens": draw(FEW), "output_tokens": draw(FEW)}
    left = dict(counts)
    for name in draw(st.lists(st.sampled_from(PARTS), max_size=4, unique=True)):
        whole = "output_tokens" if name in OUTPUT_PARTS else "input_tokens"
        counts[name] = min(draw(FEW), left[whole])
        left[whole] -= counts[name]
        counts[name] += draw(st.sampled_from([0] * 19 + [1]))
    for name in draw(st.lists(st.sampled_from(WITHOUT_TOKENS), max_size=2)):
        counts[name] = draw(FEW)
    return counts


def test_plain_tags_are_taken_by_the_library() -> None:
    """All together, and each alone in its slice, where its row has the least room."""
    plain = json.dumps(body())[:-1]
    records = [
        Record(n, f'{plain}, "tags": {tags}}}'.replace('"e"', f'"e{n}"').encode())
        for n, tags in enumerate(PLAIN_TAGS)
    ]
    for slices in ([records], [[record] for record in records]):
        compiled = assert_same(slices)
        assert compiled.intake.left == []
        events = [msgspec.msgpack.decode(row, type=PricedEvent) for _, row in compiled.rows]
        assert [event.tags for event in events] == [json.loads(tags) for tags in PLAIN_TAGS]


def test_no_other_tags_are_taken_by_the_library() -> None:
    plain = json.dumps(body())[:-1]
    records = [
        Record(n, f'{plain}, "tags": {tags}}}'.replace('"e"', f'"e{n}"').encode())
        for n, tags in enumerate(OTHER_TAGS)
    ]
    compiled = assert_same([records])
    assert compiled.intake.left == [offset for offset, _ in compiled.rows]
    assert len(compiled.rows) + len(compiled.taken.rejected) == len(records)
    assert compiled.rows


def test_tags_beside_every_counter() -> None:
    events = [RICH | {"tags": tags_of(n), "reasoning_tokens": n, "images": n} for n in range(17)]
    assert all(assert_taken(events))


@settings(max_examples=300)
@given(
    st.lists(SOME_PRICES, min_size=1, max_size=3),
    st.sampled_from([None, None, "0.333333333", "1.5", "0", "0.000001"]),
    st.lists(st.tuples(st.integers(0, 2), counted()), min_size=1, max_size=30),
)
def test_prices_made_up(
    prices: list[dict[str, Any]], factor: str | None, events: list[tuple[int, dict[str, Any]]]
) -> None:
    rates = [own(f"made-{n}", **one) for n, one in enumerate(prices)]
    if factor:
        rates.append(rate("made", provider="own", model="made-*", multiplier=factor))
    records = [
        Record(n, json.dumps(body(
            event_id=str(n), provider="own", model=f"made-{model % len(prices)}", **counts
        )).encode())
        for n, (model, counts) in enumerate(events)
    ]  # fmt: skip
    assert_same([records], rates)


def test_a_slice_has_at_most_so_many_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_slice, "MAX_RECORDS", 3)
    side = Side(is_compiled=True)
    with pytest.raises(ValueError, match="at most 3"):
        side.take([Record(n, None) for n in range(4)])


def test_many_groups_and_models_in_one_slice() -> None:
    """As many as there are records, so that every table is as full as it gets."""
    records = [
        Record(n, json.dumps(body(
            event_id=f"e{n}", user_id=f"user-{n}", organization_id=f"org-{n}", model=f"model-{n}"
        )).encode())
        for n in range(native_slice.MAX_RECORDS)
    ]  # fmt: skip
    compiled = assert_same([records, records[:10]])
    assert len(compiled.rows) == len(records)
    assert len(compiled.taken.duplicates) == 10
