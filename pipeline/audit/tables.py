"""The worker's tables against the recount, each at exactly its own position."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.recount.cells import AMOUNTS, ZERO, Cells, Totals, sum_cells
from pipeline.audit.recount.count import PartitionCount
from pipeline.audit.recount.pseudonyms import Pseudonyms

PART = "tables"
FATES = ("accepted", "rejected", "duplicates", "forwarded", "unpriced")
MONEY = frozenset(("cost_nano", "org_cost_nano", "unpriced", "org_unpriced"))


@dataclass(frozen=True)
class Table:
    """A source partition's table as it was read.

    ``counts`` are by the names of ``FATES``, since the log's epoch began. ``rules_digest`` stands
    for what decided its last record, ``resolved_offset`` for the corrections it has taken.
    """

    partition: int
    next_offset: int
    cells: Cells
    counts: Mapping[str, int]
    oldest_day: int = 0
    epoch: int = 0
    flush: int = 0
    rules_digest: bytes = b""
    resolved_offset: int = 0


@dataclass(frozen=True)
class Opening:
    """What the ledger says of events that are not recounted.

    ``cells`` belong to one table. ``accepted`` and ``unpriced`` count events of this log whose
    records Kafka no longer holds.
    """

    cells: Cells = field(default_factory=dict[tuple[str, int], Totals])
    accepted: int = 0
    unpriced: int = 0

    def with_cells(self, cells: Cells) -> "Opening":
        """The same, and ``cells`` besides."""
        return Opening(sum_cells([self.cells, cells]), self.accepted, self.unpriced)


class ForgottenCells:
    """Cells of forgotten users, of all partitions together.

    Tables know them by their ids and the ledger by pseudonyms, which have other homes.
    """

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._expected: list[Cells] = []
        self._found: list[Cells] = []
        self._oldest_day = 0

    def without(self, expected: Cells, found: Cells, oldest_day: int) -> tuple[Cells, Cells]:
        """The cells of one partition's other scopes; those of forgotten users are kept here."""
        if not self._pseudonyms.forgotten:
            return expected, found
        self._oldest_day = max(self._oldest_day, oldest_day)
        return self._take(expected, self._expected), self._take(found, self._found)

    def compare(self, findings: Findings, *, money: bool) -> None:
        """Compares what was kept."""
        days = self._oldest_day
        expected, found = (
            {key: cell for key, cell in sum_cells(cells).items() if key[1] >= days}
            for cells in (self._expected, self._found)
        )
        compare_cells(findings, None, expected, found, money=money)

    def _take(self, cells: Cells, kept: list[Cells]) -> Cells:
        others: dict[tuple[str, int], Totals] = {}
        for (scope, day), totals in cells.items():
            if self._pseudonyms.hides(scope):
                kept.append({(self._pseudonyms.scope_of(scope), day): totals})
            else:
                others[scope, day] = totals
        return others


def compare_table(
    findings: Findings,
    count: PartitionCount,
    table: Table,
    opening: Opening,
    *,
    epoch: int,
    rules_digest: bytes | None,
    forgotten: ForgottenCells | None = None,
) -> None:
    """Cells, counts and stamps of one table; cells of forgotten users go to ``forgotten``.

    ``rules_digest`` is that of the last rules recorded before its position, None for none.
    """
    partition = table.partition
    if table.next_offset < count.starts_at and count.records:
        what = "next offset (Kafka has deleted records that were never counted)"
        findings.add(
            Kind.INPUT_LOST,
            PART,
            what,
            f"at least {count.starts_at}",
            table.next_offset,
            partition=partition,
        )
    if table.next_offset < count.cells.settled_to:
        what = "next offset (it fell while the audit ran)"
        findings.add(
            Kind.TABLE_STAMP,
            PART,
            what,
            count.cells.settled_to,
            table.next_offset,
            partition=partition,
        )
        return
    money = not count.unverifiable
    expected = sum_cells([count.cells.below(table.next_offset), opening.cells])
    expected = {key: cell for key, cell in expected.items() if key[1] >= table.oldest_day}
    wanted, found = (forgotten or ForgottenCells(Pseudonyms())).without(
        expected, table.cells, table.oldest_day
    )
    compare_cells(findings, table.partition, wanted, found, money=money)
    _compare_counts(findings, count, table, opening, money=money)
    _compare_stamps(findings, count, table, epoch)
    if table.flush and rules_digest is not None and table.rules_digest != rules_digest:
        what = "rules (the last ones recorded are not those that decided last)"
        findings.add(
            Kind.RULES_MISSING,
            "rules",
            what,
            rules_digest.hex(),
            table.rules_digest.hex(),
            partition=partition,
        )


def compare_cells(
    findings: Findings, partition: int | None, expected: Cells, found: Cells, *, money: bool = True
) -> None:
    """Every day cell of one table; without ``money`` what prices decide is left out."""
    findings.compared["cells"] += len(expected)
    for scope, day in sorted(expected.keys() | found.keys()):
        wanted, there = expected.get((scope, day), ZERO), found.get((scope, day), ZERO)
        if wanted == there:
            continue
        amounts = {
            name: other - value
            for name, value, other in zip(AMOUNTS, wanted, there, strict=True)
            if value != other and (money or name not in MONEY)
        }
        if amounts:
            findings.add(
                Kind.TABLE_CELL,
                PART,
                "cell",
                _shown(wanted, amounts),
                _shown(there, amounts),
                partition=partition,
                subject=scope,
                day=day,
                amounts=amounts,
            )


def _compare_counts(
    findings: Findings, count: PartitionCount, table: Table, opening: Opening, *, money: bool
) -> None:
    fates = count.fates_below(table.next_offset)
    fates["accepted"] += opening.accepted
    fates["unpriced"] += opening.unpriced
    names = ("accepted", "unpriced") if count.is_cut_off else FATES
    for name in names:
        found = table.counts.get(name, 0)
        if found != fates[name] and (money or name != "unpriced"):
            findings.add(
                Kind.TABLE_COUNT, PART, name, fates[name], found, partition=table.partition
            )


def _compare_stamps(findings: Findings, count: PartitionCount, table: Table, epoch: int) -> None:
    has_counted = table.next_offset > count.starts_at
    if table.epoch != epoch and (table.epoch or has_counted):
        findings.add(Kind.TABLE_STAMP, PART, "epoch", epoch, table.epoch, partition=table.partition)
    if has_counted and count.records and table.flush < 1:
        findings.add(
            Kind.TABLE_STAMP, PART, "flush", "at least 1", table.flush, partition=table.partition
        )


def _shown(totals: Totals, names: Mapping[str, int]) -> str:
    return ", ".join(
        f"{name} {value}" for name, value in zip(AMOUNTS, totals, strict=True) if name in names
    )
