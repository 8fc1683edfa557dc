"""The audit's result, as an object, as JSON and as lines of text."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.audit.differences import Difference, Kind


@dataclass
class AuditReport:
    """``ok`` means: something was compared, and nothing differed.

    ``ranges`` say, by partition of ``usage.events``, which offsets Kafka holds, from where they
    were counted again, up to where each part was compared (``cut`` is that of tables and ledger),
    and what could be compared with the ledger only. ``differences`` are the first of each kind.
    """

    difference_count: int = 0
    differences_by_kind: dict[str, int] = field(default_factory=dict[str, int])
    differences: list[Difference] = field(default_factory=list[Difference])
    epoch: int = 0
    ranges: dict[str, Any] = field(default_factory=dict[str, Any])
    compared: dict[str, int] = field(default_factory=dict[str, int])
    fates: dict[str, int] = field(default_factory=dict[str, int])
    rejected_by_reason: dict[str, int] = field(default_factory=dict[str, int])
    totals: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])
    records: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.difference_count == 0

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        body = {**vars(self), "differences": [d.to_json() for d in self.differences]}
        return {"ok": self.ok, **body}

    def lines(self, most_of_a_kind: int = 10) -> list[str]:
        """The report as text, with at most so many differences of each kind."""
        shown = self.first_of_each_kind(most_of_a_kind)
        found = [*self.summary(), *(difference.line for difference in shown)]
        if self.difference_count > len(shown):
            found.append(f"... and {self.difference_count - len(shown)} more differences")
        return [*found, self.verdict]

    def first_of_each_kind(self, most: int) -> list[Difference]:
        """At most so many differences of each kind, in order."""
        seen = Counter[Kind]()
        found: list[Difference] = []
        for difference in self.differences:
            seen[difference.kind] += 1
            if seen[difference.kind] <= most:
                found.append(difference)
        return found

    def summary(self) -> list[str]:
        """Ranges, what was compared, and notes."""
        found = [f"{name}: {json.dumps(ranges)}" for name, ranges in self.ranges.items()]
        found += [f"compared {part}: {number:,}" for part, number in self.compared.items()]
        rate = self.records / self.seconds if self.seconds else 0
        found.append(f"{self.records:,} records in {self.seconds:.1f} s ({rate:,.0f}/s)")
        return [*found, *(f"note: {note}" for note in self.notes)]

    @property
    def verdict(self) -> str:
        """The last line."""
        if self.ok:
            return "audit: everything agrees"
        kinds = ", ".join(f"{kind} {number}" for kind, number in self.differences_by_kind.items())
        return f"audit: {self.difference_count} differences ({kinds})"
