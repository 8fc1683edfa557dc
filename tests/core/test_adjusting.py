"""Resolved corrections in a source table: each once, none missing."""

from dataclasses import dataclass
from typing import Any

import pytest

from pipeline.core.adjusting import take_resolved
from pipeline.core.corrections import Correction, Entry
from pipeline.core.dedupe import DedupeWindow
from pipeline.core.errors import CorruptRecord
from pipeline.core.events import Event
from pipeline.core.resolved import encode_resolved, resolved_of
from pipeline.core.totals import SourceTotals

DAY_US = 86_400_000_000
DECIDED = (0, "book", "USD", 60)


@dataclass
class Record:
    offset: int
    value: bytes | None


def record(number: int, correction_id: str = "", **fields: Any) -> Record:
    """A correction by −7 tokens and −3 nanos; offsets have holes."""
    named: dict[str, Any] = {"event_id": "e", "occurred_at_us": DAY_US, "port_id": "p"}
    event = Event(**named, provider="x", model="m", input_tokens=-7, **fields)
    entry = Entry(event, number, 0, -1, -3, "r", "priced", False)
    correction = Correction(correction_id or f"c{number}", "p", "e", "reprice", "why")
    place = ("usage.corrections", 0, number, 1_000)
    return Record(
        number * 2, encode_resolved(resolved_of(correction, entry, place, number, DECIDED))
    )


def test_deltas_go_into_every_cell_and_may_make_it_negative() -> None:
    totals, window = SourceTotals(), DedupeWindow(1_000_000)
    records = [record(1, user_id="u", billing_scope="user"), record(2)]
    found = take_resolved(records, 0, totals, window)
    assert {scope: amounts for scope, _, amounts in totals.cells()} == {
        "all": (0, -14, -6, -3, -2, -1),
        "port:p": (0, -14, -6, -3, -2, -1),
        "user:u": (0, -7, -3, 0, -1, 0),
    }
    assert (found.offsets, found.repeats, found.last_number) == ([2, 4], [], 2)
    assert [mark[3] for mark in found.marks] == ["c1", "c2"]
    assert len(found.keys) == len(found.times_ms) == 2


def test_one_that_was_taken_before_is_a_repeat() -> None:
    totals, window = SourceTotals(), DedupeWindow(1_000_000)
    take_resolved([record(5)], 0, totals, window)
    found = take_resolved([record(6, "c5")], 5, totals, window)
    assert (found.offsets, found.repeats, found.last_number) == ([], [12], 6)
    assert next(iter(totals.cells()))[2][2] == -3


@pytest.mark.parametrize(
    ("after", "records", "told"),
    [
        (1, [record(3)], "offset 6: number 3 comes after 1"),
        (3, [record(3)], "offset 6: number 3 comes after 3"),
        (0, [record(3), record(5)], "offset 10: number 5 comes after 3"),
        (0, [Record(4, b"\x90")], "offset 4: not a resolved correction"),
        (0, [Record(4, None)], "offset 4: a resolved correction without a value"),
    ],
)
def test_what_is_missing_or_cannot_be_read_is_told(
    after: int, records: list[Record], told: str
) -> None:
    with pytest.raises(CorruptRecord, match=told):
        take_resolved(records, after, SourceTotals(), DedupeWindow(1_000_000))
