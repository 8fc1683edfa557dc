"""The audit's result, as an object, as JSON and as lines of text."""

import json
from dataclasses import dataclass, field
from typing import Any

from pipeline.audit.differences import Difference


@dataclass
class AuditReport:
    """``ok`` means: something was compared, and nothing differed.

    ``ranges`` say, by partition of ``usage.events``, which offsets Kafka holds, from where they
    were counted again, up to where each part was compared (``cut`` is that of tables and ledger),
    and what could be compared with the ledger only. ``differences`` are the first of
    ``difference_count``.
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

    def lines(self, most: int = 40) -> list[str]:
        """The report as text, with at most so many differences."""
        found = [*self.summary(), *(d.line for d in self.differences[:most])]
        if self.difference_count > most:
            found.append(f"... and {self.difference_count - most} more differences")
        return [*found, self.verdict]

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
