"""What a chaos run found: one line per kind of fault, what ended by itself, and what differs."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

PLANNED_MOVES = ("worker-add", "worker-remove", "worker-stop")


@dataclass
class Done:
    """One fault that was done. Times in seconds.

    ``standstill_s`` is the longest time after the fault's begin in which nothing moved on at a
    reader; ``settled_s`` the time until everything was ready and moved on again. ``alone`` says
    that no fault of the other lane fell into it.
    """

    kind: str
    target: str
    at_s: float
    kills: int
    standstill_s: float
    settled_s: float
    alone: bool


@dataclass
class Unserved:
    """How long a source partition had no new block around one change of members."""

    kind: str
    partition: int
    moved: bool
    gap_s: float


@dataclass
class Report:
    """The result of one run; ``ok`` means that nothing differs and nothing hung."""

    seed: int
    brokers: int
    seconds: float = 0.0
    faults: list[Done] = field(default_factory=list[Done])
    unserved: list[Unserved] = field(default_factory=list[Unserved])
    sent: dict[str, int] = field(default_factory=dict[str, int])
    exits: dict[str, int] = field(default_factory=dict[str, int])
    audit: dict[str, Any] = field(default_factory=dict[str, Any])
    problems: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        """No problem, and the audit compared and agreed."""
        return not self.problems and bool(self.audit.get("ok"))

    @property
    def kills(self) -> int:
        """Processes that got SIGKILL, from outside or at a fault point."""
        return sum(done.kills for done in self.faults)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {"ok": self.ok, "kills": self.kills, "by_kind": self._by_kind(), **asdict(self)}

    def lines(self) -> list[str]:
        """The report as text."""
        broker = "one broker" if self.brokers == 1 else f"{self.brokers} brokers"
        head = f"chaos: seed {self.seed}, {broker}, {self.seconds:.0f} s"
        found = [head, "", *table(self._by_kind()), ""]
        for moved in (False, True):
            gaps = [one.gap_s for one in self.unserved if one.moved is moved]
            if gaps:
                words = "changed its worker" if moved else "kept its worker"
                found.append(
                    f"a partition that {words} at a planned change of workers was unserved for "
                    f"{median(gaps):.1f} s (median of {len(gaps)}), {max(gaps):.1f} s at most"
                )
        found += [f"{name}: {count:,}" for name, count in self.sent.items()]
        found += [f"ended by itself {n} times: {error}" for error, n in self.exits.items()]
        for name, count in self.audit.get("compared", {}).items():
            found.append(f"audit compared {name}: {count:,}")
        differences = self.audit.get("difference_count", "none counted")
        found.append(f"differences: {differences}")
        found += [f"problem: {problem}" for problem in self.problems]
        found.append("everything agrees" if self.ok else "THIS RUN FAILED")
        return found

    def _by_kind(self) -> list[dict[str, Any]]:
        kinds = defaultdict[str, list[Done]](list)
        for done in self.faults:
            kinds[done.kind].append(done)
        return [
            {
                "kind": kind,
                "faults": len(done),
                "kills": sum(one.kills for one in done),
                "standstill_p50_s": round(median(one.standstill_s for one in done), 1),
                "standstill_max_s": round(max(one.standstill_s for one in done), 1),
                "settled_max_s": round(max(one.settled_s for one in done), 1),
            }
            for kind, done in sorted(kinds.items())
        ]


def count_exits(ends: Sequence[tuple[str, int, str]]) -> dict[str, int]:
    """Parts that ended by themselves, by part, status and error."""
    texts = Counter(
        f"{slot.rstrip('-0123456789')} (status {status}) {error}" for slot, status, error in ends
    )
    return dict(texts.most_common())


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of equal keys as aligned text."""
    if not rows:
        return []
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
