"""The audit's result, as an object, as JSON and as lines of text."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.audit.differences import Difference, Findings, Kind
from pipeline.audit.recount.count import PartitionCount, Recount
from pipeline.audit.recount.events import REASONS
from pipeline.stream.epoch import Epoch


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


def report_of(
    findings: Findings,
    recount: Recount,
    epoch: Epoch,
    cuts: Mapping[int, int],
    ranges: Mapping[str, Any],
    seconds: float,
) -> AuditReport:
    """The report of a run; ``ranges`` are added to those that recount and cuts tell."""
    counts = recount.counts
    fates, totals = Counter[str](), Counter[str]()
    for partition, count in counts.items():
        below = count.fates_below(cuts[partition])
        totals["unpriced"] += below.pop("unpriced")
        fates.update(below)
        totals.update(_totals(count, cuts[partition]))
    return AuditReport(
        findings.count,
        {str(kind): number for kind, number in sorted(findings.by_kind.items()) if number},
        findings.differences,
        epoch.epoch,
        {
            **ranges,
            "counted again from": {p: c.counts_from for p, c in counts.items()},
            "with the ledger only": {
                p: [epoch.starts.get(p, 0), c.counts_from]
                for p, c in counts.items()
                if c.is_cut_off
            },
            "cut": dict(cuts),
        },
        dict(findings.compared),
        dict(fates),
        _reasons(counts, cuts),
        dict(totals),
        findings.notes,
        recount.records,
        round(seconds, 3),
    )


def _totals(count: PartitionCount, cut: int) -> dict[str, int]:
    if cut < count.cells.settled_to:
        return {}
    found = Counter[str]()
    for (scope, _), cell in count.cells.below(cut).items():
        if scope == "all":
            found.update({"requests": cell[0], "tokens": cell[1], "cost_nano": cell[2]})
    return found


def _reasons(counts: Mapping[int, PartitionCount], cuts: Mapping[int, int]) -> dict[str, int]:
    found = Counter(
        REASONS[count.rejected.note(at)]
        for partition, count in counts.items()
        for at in range(count.rejected.below(cuts[partition]))
    )
    return dict(sorted(found.items()))
