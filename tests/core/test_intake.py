"""The fate of every record: exactly one, the same in any cut of the stream."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core import intake
from pipeline.core.book import builtin_book
from pipeline.core.dedupe import ENTRY_BYTES, KEY_BYTES, DedupeWindow, event_key
from pipeline.core.event_codec import TimeLimits
from pipeline.core.events import PricedEvent
from pipeline.core.home import home_partition
from pipeline.core.intake import Intake, Taken
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.core.totals import SourceTotals
from pipeline.native.ids import id_search
from pipeline.native.slice import usual_reader

PARTITION, PARTITIONS = 1, 3
NOW_MS = 1_763_800_000_000
DAY_MS = 86_400_000
SKEW_MS = 300_000
LIMITS = TimeLimits.of(7, 300)
TODAY_MS = NOW_MS - NOW_MS % DAY_MS
KNOWN_UNTIL_MS = TODAY_MS + 9 * DAY_MS - SKEW_MS
"""So long every id of today's events is remembered at least."""
HOME_PORTS = [p for p in map("port-{}".format, range(30)) if home_partition(p, 3) == PARTITION]
OTHER_PORTS = [p for p in map("port-{}".format, range(30)) if home_partition(p, 3) != PARTITION]
PRICES = PriceVersion(RateLog("USD").snapshot(), builtin_book())


@dataclass
class Record:
    offset: int
    value: bytes | None
    timestamp: int = NOW_MS
    key: bytes | None = b"key"
    headers: Sequence[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])


def body(event_id: str, port_id: str = HOME_PORTS[0], age_ms: int = 0, **more: Any) -> bytes:
    from datetime import UTC, datetime

    at = datetime.fromtimestamp((NOW_MS - age_ms) / 1000, UTC).isoformat()
    fields = {"event_id": event_id, "port_id": port_id, "occurred_at": at}
    model = {"provider": "openai", "model": "gpt-5", "input_tokens": 10}
    return json.dumps(fields | model | more).encode()


_read_row = msgspec.msgpack.Decoder(PricedEvent).decode


@pytest.fixture(autouse=True, params=["in Python", "compiled"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test with every record taken by itself, and with usual ones taken by the library."""
    if request.param == "compiled":
        request.getfixturevalue("compiled")
        monkeypatch.setattr(intake, "FEW_RECORDS", 0)
    monkeypatch.setattr(Partition, "is_compiled", request.param == "compiled")


class Partition:
    """An intake with its memory; ``taken`` and ``rows`` add up."""

    is_compiled = False

    def __init__(self) -> None:
        self.totals, self.taken = SourceTotals(), Taken()
        usual = usual_reader(PARTITION, PARTITIONS) if self.is_compiled else None
        self.dedupe = DedupeWindow(9 * DAY_MS, id_search() if self.is_compiled else None)
        self.intake = Intake(PARTITION, PARTITIONS, self.totals, self.dedupe, usual)
        self.rows: list[PricedEvent] = []

    def take(self, *records: Record) -> Taken:
        rows = self.intake.take(records, PRICES, LIMITS, self.taken)
        found = [_read_row(rows.cut(n, n + 1)) for n in range(len(rows))]
        assert [row.source_offset for row in found] == rows.offsets.tolist()
        self.rows += found
        return self.taken

    def ids(self) -> list[tuple[bytes, int]]:
        """The ids to remember, and the time of each."""
        packed = bytes(self.taken.ids)
        entries = [packed[at : at + ENTRY_BYTES] for at in range(0, len(packed), ENTRY_BYTES)]
        return [(one[:KEY_BYTES], int.from_bytes(one[KEY_BYTES:], "little")) for one in entries]

    def fates(self) -> dict[int, str]:
        """By offset; fails when a record has two."""
        taken = self.taken
        named = (
            ("row", [row.source_offset for row in self.rows]),
            ("rejected", [one.record.offset for one in taken.rejected]),
            ("duplicate", taken.duplicates),
            ("forwarded", [one.record.offset for one in taken.forwarded]),
        )
        found: dict[int, str] = {}
        for name, offsets in named:
            for offset in offsets:
                assert offset not in found
                found[offset] = name
        return found


values = st.one_of(
    st.none(),
    st.binary(max_size=8),
    st.builds(
        body,
        event_id=st.sampled_from("abcdef"),
        port_id=st.sampled_from(HOME_PORTS[:2] + OTHER_PORTS[:2]),
        age_ms=st.sampled_from([-400_000, 0, 3 * DAY_MS, 8 * DAY_MS]),
        model=st.sampled_from(["gpt-5", "nobody-knows"]),
    ),
)


@settings(deadline=None)
@given(st.lists(values, max_size=30), st.lists(st.integers(0, 30)))
def test_one_fate_each_in_any_cut(stream: list[bytes | None], cuts: list[int]) -> None:
    records = [Record(offset, value) for offset, value in enumerate(stream)]
    whole, parts = Partition(), Partition()
    whole.take(*records)
    bounds = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for start, end in pairwise(bounds):
        parts.take(*records[start:end])
    assert sorted(whole.fates()) == list(range(len(stream)))
    assert whole.fates() == parts.fates()
    assert whole.rows == parts.rows
    assert whole.taken.unpriced == sum(row.cost_nano is None for row in whole.rows)
    accepted = [(row.event_id, row.port_id) for row in whole.rows]
    assert whole.ids() == [
        (event_key(row.port_id, row.event_id), row.recorded_at_ms) for row in whole.rows
    ]
    assert len(set(accepted)) == len(accepted)
    assert {(s, d): amounts for s, d, amounts in whole.totals.cells()} == {
        (s, d): amounts for s, d, amounts in parts.totals.cells()
    }


def test_more_ports_than_are_known_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "MAX_PORTS", 2)
    partition, ports = Partition(), [*HOME_PORTS[:4], OTHER_PORTS[0], *HOME_PORTS[2:5]]
    partition.take(*(Record(n, body(f"é{n}", port)) for n, port in enumerate(ports)))
    keys = [event_key(row.port_id, row.event_id) for row in partition.rows]
    assert [key for key, _ in partition.ids()] == keys
    assert partition.fates() == {n: "forwarded" if n == 4 else "row" for n in range(8)}
    assert len(partition.intake._ports) <= 2


def test_the_first_wins_whatever_the_others_say() -> None:
    partition = Partition()
    partition.take(
        Record(0, body("a", input_tokens=1)),
        Record(1, body("a", input_tokens=2, age_ms=DAY_MS), timestamp=NOW_MS + DAY_MS),
        Record(2, body("a", HOME_PORTS[1])),
    )
    assert partition.fates() == {0: "row", 1: "duplicate", 2: "row"}


def test_a_rejected_event_does_not_use_up_its_id() -> None:
    partition = Partition()
    partition.take(Record(0, body("a", age_ms=8 * DAY_MS)), Record(1, body("a")))
    assert partition.fates() == {0: "rejected", 1: "row"}


def test_an_event_of_another_partition_is_forwarded_and_not_judged_here() -> None:
    headers = [("trace", b"\xff"), ("trace", b"")]
    old = body("a", OTHER_PORTS[0], age_ms=100 * DAY_MS)
    partition = Partition()
    taken = partition.take(Record(7, old, headers=headers), Record(8, old))
    assert partition.fates() == {7: "forwarded", 8: "forwarded"}
    first = taken.forwarded[0]
    assert first.home == home_partition(OTHER_PORTS[0], PARTITIONS)
    assert first.headers == [*headers, ("forwarded-from", f"1/7/{NOW_MS}".encode())]
    assert (first.record.key, first.record.value) == (b"key", old)
    assert len(partition.totals) == 0


@pytest.mark.parametrize(("more", "fate"), [(0, "forwarded"), (1, "rejected")])
def test_what_is_too_large_to_be_forwarded_is_rejected(more: int, fate: str) -> None:
    """512 KiB of the key (``key``), and of each header its name, value and 16 bytes."""
    value = b"x" * (512 * 1024 - len("key") - 2 * (16 + len("trace")) - len(b"y") + more)
    headers = [("trace", value), ("trace", b"y")]
    partition = Partition()
    taken = partition.take(
        Record(7, body("a", OTHER_PORTS[0]), headers=headers), Record(8, body("b"), headers=headers)
    )
    assert partition.fates() == {7: fate, 8: "row"}
    assert [one.rejection.reason for one in taken.rejected] == ["too-large"] * more


@pytest.mark.parametrize(
    ("whence", "age_ms", "fate", "recorded_at_ms"),
    [
        (b"0/5/%d" % (NOW_MS - 2 * DAY_MS), 8 * DAY_MS, "row", NOW_MS - 2 * DAY_MS),
        (b"0/5/%d" % (NOW_MS - 10**6), 7 * DAY_MS + 10**6 + 1, "rejected", None),
        (b"0/5/%d" % (NOW_MS - 10 * DAY_MS), 0, "rejected", None),
        (b"0/5/%d" % (NOW_MS + 10 * DAY_MS), 0, "row", NOW_MS),
        (b"0/5/%d" % (NOW_MS + 10 * DAY_MS), -10 * DAY_MS, "rejected", None),
        (b"no such thing", 0, "row", NOW_MS),
        (b"0/5/99999999999999999999", 0, "row", NOW_MS),
        (b"", 8 * DAY_MS, "rejected", None),
    ],
)
def test_the_first_arrival_judges_the_age(
    whence: bytes, age_ms: int, fate: str, recorded_at_ms: int | None
) -> None:
    partition = Partition()
    partition.take(Record(3, body("a", age_ms=age_ms), headers=[("forwarded-from", whence)]))
    assert partition.fates() == {3: fate}
    assert [row.recorded_at_ms for row in partition.rows] == (
        [] if recorded_at_ms is None else [recorded_at_ms]
    )


@pytest.mark.parametrize("into_ms", [0, DAY_MS - 1])
@pytest.mark.parametrize(("over_ms", "fate"), [(0, "row"), (1, "rejected"), (DAY_MS, "rejected")])
def test_what_comes_home_after_its_id_may_be_forgotten_is_too_old(
    into_ms: int, over_ms: int, fate: str
) -> None:
    came = b"0/5/%d" % (TODAY_MS + 6 * DAY_MS)
    value, home_ms = body("a", age_ms=NOW_MS - TODAY_MS - into_ms), KNOWN_UNTIL_MS + over_ms
    partition = Partition()
    taken = partition.take(Record(3, value, home_ms, headers=[("forwarded-from", came)]))
    assert partition.fates() == {3: fate}
    assert [one.rejection.reason for one in taken.rejected] == ["too-old"] * (fate == "rejected")
    # Of a replay the ledger was asked.
    came = ("replayed-from", came)
    again = body("b", age_ms=NOW_MS - TODAY_MS - into_ms)
    partition.take(Record(4, again, home_ms, headers=[came]))
    assert partition.fates()[4] == "row"


def test_a_copy_that_came_home_late_meets_the_id_of_the_first() -> None:
    """Accepted as early as may be, the other of the same day forwarded as late as may be."""
    first = body("a", age_ms=NOW_MS - TODAY_MS)
    other = body("a", age_ms=NOW_MS - TODAY_MS - DAY_MS + 1)
    came = ("forwarded-from", b"0/5/%d" % (TODAY_MS + 5 * DAY_MS))
    partition = Partition()
    partition.take(Record(0, first, TODAY_MS - SKEW_MS), Record(1, None, KNOWN_UNTIL_MS))
    partition.dedupe.forget_before(KNOWN_UNTIL_MS)
    partition.take(Record(2, other, KNOWN_UNTIL_MS, headers=[came]))
    assert partition.fates() == {0: "row", 1: "rejected", 2: "duplicate"}


def test_duplicates_are_told_by_the_time_at_home() -> None:
    """By it ids are forgotten, so it must not matter whether they have been."""
    came = ("forwarded-from", b"0/5/%d" % (NOW_MS - 5 * DAY_MS))
    first, again = body("a", age_ms=9 * DAY_MS + 1), body("a", age_ms=5 * DAY_MS)
    for forgets in (False, True):
        partition = Partition()
        partition.take(Record(0, first, NOW_MS - 9 * DAY_MS - 1))
        if forgets:
            partition.dedupe.forget_before(NOW_MS)
        partition.take(
            Record(1, again, headers=[came]),
            Record(2, again, NOW_MS + 4 * DAY_MS, headers=[came]),
        )
        assert partition.fates() == {0: "row", 1: "row", 2: "rejected"}
        assert partition.rows[1].recorded_at_ms == NOW_MS - 5 * DAY_MS


def test_the_time_of_the_original_judges_a_replay() -> None:
    whence = b"0/5/%d" % (NOW_MS - 8 * DAY_MS)
    replay = Record(3, body("a", age_ms=14 * DAY_MS), headers=[("replayed-from", whence)])
    partition = Partition()
    partition.take(replay, Record(4, body("a", age_ms=DAY_MS)))
    assert partition.fates() == {3: "row", 4: "duplicate"}
    assert partition.rows[0].recorded_at_ms == NOW_MS - 8 * DAY_MS


def test_the_last_forwarding_header_counts() -> None:
    day_ago = b"0/5/%d" % (NOW_MS - DAY_MS)
    headers = [("forwarded-from", b"0/5/1"), ("forwarded-from", day_ago)]
    taken = Partition().take(Record(3, body("a"), headers=headers))
    assert len(taken.rejected) == 1
    partition = Partition()
    partition.take(Record(3, body("a", age_ms=DAY_MS), headers=headers))
    assert partition.rows[0].recorded_at_ms == NOW_MS - DAY_MS


def test_the_watermark_is_the_latest_kafka_time() -> None:
    partition = Partition()
    partition.take(Record(0, None, timestamp=NOW_MS + 5), Record(1, None))
    assert partition.taken.watermark_ms == NOW_MS + 5


def test_unknown_fields_are_counted() -> None:
    partition = Partition()
    partition.take(Record(0, body("a", colour="red", size=3)), Record(1, body("b")))
    assert partition.intake.unknown_fields.count == 2
