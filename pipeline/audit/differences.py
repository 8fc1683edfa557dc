"""Differences: what can disagree, in a closed list, and where and by how much it does."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from enum import StrEnum
from typing import Any

MAX_OF_A_KIND = 200


class Kind(StrEnum):
    """Every way in which two parts can disagree."""

    NOTHING_COMPARED = "nothing-compared"
    """There was nothing to compare, which is no agreement."""
    NOT_VERIFIABLE = "not-verifiable"
    """A built-in book decided prices that is not installed here."""
    BEHIND = "behind"
    """A part has not taken in what was in Kafka when the audit began."""
    INPUT_LOST = "input-lost"
    """Kafka deleted records, or ends, before what a part has counted."""
    RULES_MISSING = "rules-missing"
    """Nothing says what decided some records."""
    TABLE_MISSING = "table-missing"
    """A partition has records and no table."""
    TABLE_CELL = "table-cell"
    """A day cell of a table is not the sum of its events."""
    TABLE_COUNT = "table-count"
    """A table's count of fates is not the recount's."""
    TABLE_STAMP = "table-stamp"
    """A table's epoch, flush or time contradicts the log."""
    STATE_MISSING = "state-missing"
    """A budget has no state."""
    STATE_UNEXPECTED = "state-unexpected"
    """A state stands where none belongs."""
    STATE_CHANGED = "state-changed"
    """A state says something else than cells and policies lead to."""
    STATE_VERSION = "state-version"
    """A version fell, is absent, or is of a later epoch."""
    HEARTBEAT_MISSING = "heartbeat-missing"
    """A partition of ``budget.state`` has no heartbeat."""
    HEARTBEAT_AHEAD = "heartbeat-ahead"
    """A heartbeat claims more than the tables have counted."""
    ROW_MISSING = "row-missing"
    """An accepted event has no row in the ledger."""
    ROW_UNEXPECTED = "row-unexpected"
    """A row stands in the ledger for no accepted event."""
    ROW_TWICE = "row-twice"
    """An accepted event has two rows."""
    ROW_CHANGED = "row-changed"
    """A row says something else than its event and price."""
    MANIFEST_GAP = "manifest-gap"
    """The ledger's runs of offsets do not join end to end."""
    MANIFEST_COUNT = "manifest-count"
    """A run's counts are not those of its offsets."""
    BLOCK_GAP = "block-gap"
    """The priced blocks do not join end to end."""
    BLOCK_FATE = "block-fate"
    """A priced block says another fate of a record."""
    REFUSAL_MISSING = "refusal-missing"
    """A rejected record is not in ``usage.rejected``."""
    REFUSAL_UNEXPECTED = "refusal-unexpected"
    """``usage.rejected`` has a record that was not rejected."""
    REFUSAL_CHANGED = "refusal-changed"
    """A rejected record has other bytes, headers or another reason."""
    COPY_MISSING = "copy-missing"
    """A forwarded record did not arrive at home as it was sent."""
    DAILY_CHANGED = "daily-changed"
    """``usage_daily`` is not the sum of ``usage_ledger``."""


@dataclass(frozen=True)
class Difference:
    """One disagreement.

    ``part`` is what was compared, ``subject`` whose it is (``port:…``, a record key), ``amounts``
    found − expected by counter and in nanos, ``records`` how many records it stands for.
    """

    kind: Kind
    part: str
    what: str
    expected: str
    found: str
    partition: int | None = None
    subject: str = ""
    day: str = ""
    offset: int | None = None
    amounts: Mapping[str, int] = field(default_factory=dict[str, int])
    records: int = 1

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "kind": str(self.kind), "amounts": dict(self.amounts)}

    @property
    def by(self) -> str:
        """``amounts`` in words."""
        return ", ".join(f"{name} {amount:+d}" for name, amount in self.amounts.items())

    @property
    def line(self) -> str:
        """The difference as a line of text."""
        place = "" if self.partition is None else f" partition {self.partition}"
        offset = "" if self.offset is None else f"offset {self.offset}"
        words = [f"{self.kind}: {self.part}{place}", offset, self.subject, self.day, self.what]
        text = " · ".join(word for word in words if word)
        by = f" (by {self.by})" if self.amounts else ""
        return f"{text}: expected {self.expected}, found {self.found}{by}"


@dataclass
class Findings:
    """Differences, the first ``MAX_OF_A_KIND`` of each kind kept, and how much was compared."""

    differences: list[Difference] = field(default_factory=list[Difference])
    by_kind: Counter[Kind] = field(default_factory=Counter[Kind])
    compared: Counter[str] = field(default_factory=Counter[str])
    notes: list[str] = field(default_factory=list[str])

    @property
    def count(self) -> int:
        """How many differences there are."""
        return self.by_kind.total()

    def add(
        self,
        kind: Kind,
        part: str,
        what: str,
        expected: object,
        found: object,
        *,
        partition: int | None = None,
        subject: str = "",
        day: int | None = None,
        offset: int | None = None,
        amounts: Mapping[str, int] | None = None,
        records: int = 1,
    ) -> None:
        """Adds a difference; ``day`` counts from 1970-01-01.

        Two integers give the amount under the name ``what`` where ``amounts`` is left out.
        """
        self.by_kind[kind] += 1
        if self.by_kind[kind] > MAX_OF_A_KIND:
            return
        if amounts is None and type(expected) is int and type(found) is int:
            amounts = {what: found - expected}
        self.differences.append(
            Difference(
                kind,
                part,
                what,
                _text(expected),
                _text(found),
                partition,
                subject,
                "" if day is None else day_text(day),
                offset,
                amounts or {},
                records,
            )
        )

    def take(self, other: "Findings") -> None:
        """Adds what another comparison found."""
        kept = Counter(difference.kind for difference in self.differences)
        for difference in other.differences:
            if kept[difference.kind] < MAX_OF_A_KIND:
                kept[difference.kind] += 1
                self.differences.append(difference)
        self.by_kind.update(other.by_kind)
        self.compared.update(other.compared)
        self.notes.extend(other.notes)


def day_text(day: int) -> str:
    """A day since 1970-01-01 as a date; days that no calendar has stay numbers."""
    try:
        return (date(1970, 1, 1) + timedelta(days=day)).isoformat()
    except OverflowError:
        return f"day {day}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
