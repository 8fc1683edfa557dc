"""What a restore did, or would do, in words and as JSON."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.ops.rebuild_plan import Held


@dataclass
class RebuildReport:
    """What was restored, or would be. ``unheld`` is what was never in the ledger (see ``Held``)."""

    epoch: int
    dry_run: bool
    resumed: bool
    discarded: bool
    partitions: int
    entries: int
    cells: int = 0
    ids: int = 0
    policies: int = 0
    rates: int = 0
    starts: dict[int, int] = field(default_factory=dict[int, int])
    unheld: list[Held] = field(default_factory=list[Held])

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)

    @property
    def summary(self) -> str:
        """The report in one line."""
        return (
            f"restored epoch {self.epoch} from {self.entries:,} ledger entries: "
            f"{self.policies:,} policies, {self.rates:,} rates, {self.cells:,} cells, "
            f"{self.ids:,} event ids"
        )

    def in_one_line(self) -> str:
        """The report in one line, with what may be lost."""
        if not self.unheld:
            return self.summary
        places = "; ".join(str(held) for held in self.unheld)
        return f"{self.summary}; never in the ledger and not counted unless sent again: {places}"

    def lines(self) -> list[str]:
        """The report as text."""
        found = [
            self.summary.replace("restored", "would restore") if self.dry_run else self.summary
        ]
        if self.discarded:
            found.append("the tables that were there are thrown away")
        found += [
            f"usage.events partition {partition}: counting goes on at offset {offset}"
            for partition, offset in sorted(self.starts.items())
        ]
        if self.unheld:
            found.append(
                "never in the ledger, and not counted unless sent again (what is in the ledger is "
                "recognised):"
            )
            found += [f"  {held}" for held in self.unheld]
        return found
