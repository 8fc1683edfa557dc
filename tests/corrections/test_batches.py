"""An id that came again after the dedupe horizon is another event: corrections tell them apart."""

import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.corrections import Correction, Entry, decode_correction
from pipeline.core.events import Event
from pipeline.core.resolved import Resolved, resolved_of
from pipeline.core.timestamps import US_PER_DAY
from pipeline.corrections.memory import Pending
from pipeline.corrections.verdicts import batches_of

DECIDED = (0, "book", "USD", 0)


@dataclass
class Sent:
    """A record of ``usage.corrections``."""

    value: bytes
    offset: int = 0
    headers: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])


def void(correction_id: str, event_id: str, day: int | None = None) -> Sent:
    body = {
        "correction_id": correction_id,
        "port_id": "p",
        "event_id": event_id,
        "kind": "void",
        "reason": "test",
    }
    if day is not None:
        body["occurred_at"] = f"2026-11-{day:02}T00:00:00Z"
    return Sent(json.dumps(body).encode())


def test_a_run_names_each_event_with_one_day() -> None:
    sent: list[Any] = [
        void("1", "a", 1),
        void("2", "b", 9),
        void("3", "a", 1),
        Sent(b"{"),
        void("4", "a", 9),
        void("5", "b", 9),
        void("6", "a"),
        void("7", "b", 2),
    ]
    runs = list(batches_of(sent))
    assert [run.records for run in runs] == [sent[:4], sent[4:6], sent[6:]]
    days = [{event: day for (_, event), day in run.keys.items()} for run in runs]
    assert days == [
        {"a": "2026-11-01", "b": "2026-11-09"},
        {"a": "2026-11-09", "b": "2026-11-09"},
        {"a": "", "b": "2026-11-02"},
    ]
    assert list(batches_of([])) == []


def test_what_is_let_go_is_that_of_its_day_alone() -> None:
    pending = Pending()
    entries: list[Entry] = []
    for day in (1, 9):
        correction = decode_correction(void(f"c{day}", "a", day).value)
        assert isinstance(correction, Correction)
        event = Event("a", day * US_PER_DAY, "p", "x", "m")
        entries.append(Entry(event, 1, -1, 0, -5, "rate", "priced", False))
        record: Resolved = resolved_of(correction, entries[-1], ("t", 0, day, 0), day, DECIDED)
        pending.add(0, day + 1, [record])
    assert pending.entries(("p", "a")) == entries
    pending.let_go({0: 2})
    assert pending.entries(("p", "a")) == entries[1:]
    pending.let_go({0: 10})
    assert pending.entries(("p", "a")) == []
    assert len(pending) == 0
