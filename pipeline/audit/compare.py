"""Recount against tables, states, ledger and rejected records: what differs, and by how much.

Pure: it works on what ``gather`` has read. Agreement over nothing is a difference too.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

from pipeline.audit.budgets import Budget, expected_states
from pipeline.audit.reading import parse_time
from pipeline.audit.recount import (
    ZERO,
    Cells,
    PartitionCount,
    Recount,
    Row,
    Totals,
    differing_columns,
    home_of,
    sum_cells,
)

MAX_DIFFERENCES = 1_000
HEARTBEATS_TRIED = 6
TOTALS_FIELDS = ("requests", "tokens", "cost_nano", "org_cost_nano", "unpriced", "org_unpriced")
FATES = ("accepted", "rejected", "duplicates", "forwarded")
_HEARTBEAT = b"!heartbeat|"


class Difference(NamedTuple):
    """One disagreement. ``part`` is what was compared; ``by`` is found − expected for numbers."""

    part: str
    partition: int | None
    subject: str
    day: str
    what: str
    expected: str
    found: str
    by: int | None = None


@dataclass
class Findings:
    """Differences, the first ``MAX_DIFFERENCES`` of them kept, and how much was compared."""

    differences: list[Difference] = field(default_factory=list[Difference])
    count: int = 0
    compared: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])

    def add(
        self,
        part: str,
        partition: int | None,
        subject: str,
        what: str,
        expected: object,
        found: object,
        day: int | None = None,
    ) -> None:
        """Adds a difference; ``day`` counts from 1970-01-01."""
        self.count += 1
        if len(self.differences) >= MAX_DIFFERENCES:
            return
        by = None
        if type(expected) is int and type(found) is int:
            by = found - expected
        shown = "" if day is None else (date(1970, 1, 1) + timedelta(days=day)).isoformat()
        self.differences.append(
            Difference(part, partition, subject, shown, what, _text(expected), _text(found), by)
        )

    def took(self, part: str, number: int) -> None:
        """Counts what was compared."""
        self.compared[part] = self.compared.get(part, 0) + number


@dataclass(frozen=True)
class Table:
    """A source partition's table as it was read."""

    partition: int
    next_offset: int
    cells: Cells
    counts: Mapping[str, int]
    """By the names of ``FATES``, since the log began."""
    oldest_day: int = 0


class StateRecord(NamedTuple):
    """A record of ``budget.state``."""

    offset: int
    key: bytes
    value: bytes | None


class Manifest(NamedTuple):
    """A run of source offsets that the ledger says it holds."""

    partition: int
    first_offset: int
    next_offset: int
    accepted: int
    rejected: int
    duplicates: int
    forwarded: int


class Refusal(NamedTuple):
    """A record of ``usage.rejected``: where it came from, why, and what was sent."""

    partition: int
    offset: int
    reason: str
    digest: bytes


Opening = Mapping[int, Cells]
"""By partition: the ledger's own totals of events before the recount's start."""


def compare_coverage(
    findings: Findings, part: str, wanted: Mapping[int, int], reached: Mapping[int, int]
) -> None:
    """Whether ``part`` has taken in every record that was there when the audit began."""
    for partition, next_offset in sorted(wanted.items()):
        if reached.get(partition, 0) < next_offset:
            what = "next offset (not everything has been taken in)"
            findings.add(part, partition, "", what, next_offset, reached.get(partition, 0))


def compare_something(findings: Findings, recount: Recount) -> None:
    """An audit that compared nothing has failed."""
    for partition, count in recount.counts.items():
        if count.without_rules:
            findings.add(
                "rules",
                partition,
                "",
                "records before any record of the rules that decided them",
                0,
                count.without_rules,
            )
    if not any(count.rows or count.rejected for count in recount.counts.values()):
        findings.add("log", None, "", "events to compare", "at least one", "none")


def compare_tables(
    findings: Findings, recount: Recount, tables: Mapping[int, Table], opening: Opening
) -> None:
    """Each table's cells and counts against the recount at exactly its next offset."""
    for partition, count in recount.counts.items():
        table = tables.get(partition)
        if table is None:
            findings.add("tables", partition, "", "table", "one", "none")
            continue
        expected = sum_cells([count.cells_below(table.next_offset), opening.get(partition, {})])
        expected = {key: cell for key, cell in expected.items() if key[1] >= table.oldest_day}
        _compare_cells(findings, partition, expected, table.cells)
        if not count.counts_from:
            fates = count.fates_below(table.next_offset)
            for fate in FATES:
                if table.counts.get(fate, 0) != fates[fate]:
                    found = table.counts.get(fate, 0)
                    findings.add("tables", partition, "", fate, fates[fate], found)


def _compare_cells(findings: Findings, partition: int, expected: Cells, found: Cells) -> None:
    findings.took("cells", len(expected))
    for scope, day in sorted(expected.keys() | found.keys()):
        wanted, there = expected.get((scope, day), ZERO), found.get((scope, day), ZERO)
        for name, value, other in zip(TOTALS_FIELDS, wanted, there, strict=True):
            if value != other:
                findings.add("tables", partition, scope, name, value, other, day)


# -- states --------------------------------------------------------------------------------------


class Heartbeat(NamedTuple):
    """What a partition of ``budget.state`` contains at one point, and its states there."""

    as_of_ms: int
    through: dict[int, int]
    states: dict[bytes, bytes]


def heartbeats(records: Sequence[StateRecord], last: int) -> Iterator[Heartbeat]:
    """The newest ``last`` heartbeats, newest first, each with the states that precede it."""
    places = [at for at, record in enumerate(records) if record.key.startswith(_HEARTBEAT)]
    for place in reversed(places[-last:]):
        states: dict[bytes, bytes] = {}
        for record in records[:place]:
            if record.key.startswith(_HEARTBEAT):
                continue
            if record.value is None:
                states.pop(record.key, None)
            else:
                states[record.key] = record.value
        body = json.loads(records[place].value or b"")
        through = {int(source): offset for source, offset in body["through"].items()}
        yield Heartbeat(parse_time(body["as_of"]) // 1000, through, states)


def compare_states(
    findings: Findings,
    recount: Recount,
    logs: Mapping[int, Sequence[StateRecord]],
    budgets: Mapping[str, Budget],
    opening: Opening,
) -> dict[int, dict[int, int]]:
    """Every state before a heartbeat against the recount at that heartbeat's ``through``.

    On a live system a state may already contain more than the heartbeat after it says, so the
    last few heartbeats are tried, and one at which everything agrees is enough. Returns the
    ``through`` that was compared, by partition.
    """
    if not budgets:
        findings.notes.append("no policies: there are no states to compare")
    throughs: dict[int, dict[int, int]] = {}
    cells_at: dict[tuple[tuple[int, int], ...], Cells] = {}
    partitions = len(recount.counts)
    for partition in range(partitions):
        records = logs.get(partition, ())
        _compare_versions(findings, partition, records)
        newest: Findings | None = None
        for heartbeat in heartbeats(records, HEARTBEATS_TRIED):
            vector = tuple(sorted(heartbeat.through.items()))
            if vector not in cells_at:
                cells_at[vector] = _cells_through(recount, heartbeat.through, opening)
            tried = Findings()
            _compare_at(tried, partition, partitions, heartbeat, budgets, cells_at[vector])
            if newest is None or not tried.count:
                newest = tried
                throughs[partition] = heartbeat.through
            if not tried.count:
                break
        if newest is None:
            findings.add("state", partition, "", "heartbeat", "one", "none")
            continue
        _merge(findings, newest)
    return throughs


def _cells_through(recount: Recount, through: Mapping[int, int], opening: Opening) -> Cells:
    parts = [count.cells_below(through.get(p, 0)) for p, count in recount.counts.items()]
    return sum_cells([*parts, *opening.values()])


def _compare_at(
    findings: Findings,
    partition: int,
    partitions: int,
    heartbeat: Heartbeat,
    budgets: Mapping[str, Budget],
    cells: Cells,
) -> None:
    expected = {
        key.encode(): state
        for key, state in expected_states(budgets, cells, heartbeat.as_of_ms).items()
        if home_of(state["scope"].encode(), partitions) == partition
    }
    findings.took("states", len(expected))
    for key in sorted(expected.keys() | heartbeat.states.keys()):
        name = key.decode(errors="replace")
        if key not in heartbeat.states:
            findings.add("state", partition, name, "state", expected[key]["used"], "none")
            continue
        found = _object(heartbeat.states[key])
        if key not in expected:
            findings.add("state", partition, name, "state", "none", found.get("used"))
            continue
        for field_name, value in expected[key].items():
            if field_name not in found or found[field_name] != value:
                findings.add(
                    "state", partition, name, field_name, value, found.get(field_name, "absent")
                )


def _compare_versions(findings: Findings, partition: int, records: Sequence[StateRecord]) -> None:
    versions: dict[bytes, int] = {}
    for record in records:
        if record.value is None or record.key.startswith(_HEARTBEAT):
            continue
        version = _object(record.value).get("version")
        name = record.key.decode(errors="replace")
        if type(version) is not int:
            findings.add("state", partition, name, "version", "a number", version)
            continue
        last = versions.get(record.key, -1)
        if version < last:
            findings.add("state", partition, name, "version (may only grow)", last, version)
        versions[record.key] = max(last, version)


def _object(value: bytes) -> dict[str, Any]:
    try:
        body = json.loads(value)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


# -- ledger --------------------------------------------------------------------------------------


def compare_ledger(
    findings: Findings,
    partition: int,
    count: PartitionCount,
    rows: Iterable[Row],
    next_offset: int,
) -> None:
    """The ledger's rows of one partition, in the order of their offsets, row by row.

    Only rows from the recount's start and below ``next_offset`` count.
    """
    end = bisect_left(count.rows, next_offset, key=lambda row: row.offset)
    expected = iter(count.rows[:end])
    findings.took("ledger rows", end)
    wanted = next(expected, None)
    last_offset = -1
    for row in rows:
        if row.offset < count.counts_from or row.offset >= next_offset:
            continue
        while wanted is not None and wanted.offset < row.offset:
            _missing_row(findings, partition, wanted)
            wanted = next(expected, None)
        if row.offset == last_offset:
            what = "row (offset in the ledger twice)"
            findings.add("ledger", partition, _name(row), what, 1, 2, _day(row))
        elif wanted is None or row.offset < wanted.offset:
            what = f"row at offset {row.offset} (no such accepted event)"
            findings.add("ledger", partition, _name(row), what, 0, 1, _day(row))
        else:
            _compare_row(findings, partition, wanted, row)
            wanted = next(expected, None)
        last_offset = row.offset
    for missing in [] if wanted is None else [wanted, *expected]:
        _missing_row(findings, partition, missing)


def compare_manifests(
    findings: Findings, recount: Recount, manifests: Mapping[int, Sequence[Manifest]]
) -> None:
    """Whether the ledger's runs join end to end and count what the recount counts."""
    for partition, count in recount.counts.items():
        runs = sorted(manifests.get(partition, ()), key=lambda run: run[1:3])
        if not runs:
            if count.next_offset:
                findings.add("ledger", partition, "", "manifests", "at least one", "none")
            continue
        start = count.first_offset or 0
        if not count.counts_from and runs[0].first_offset > start:
            findings.add("ledger", partition, "", "first offset", start, runs[0].first_offset)
        overlaps = False
        reached = runs[0].next_offset
        for _, run in pairwise(runs):
            if run.first_offset > reached:
                what = "offset after a run (gap between runs)"
                findings.add("ledger", partition, "", what, reached, run.first_offset)
            overlaps |= run.first_offset < reached
            reached = max(reached, run.next_offset)
        if count.counts_from or overlaps:
            continue
        fates = count.fates_below(reached)
        for fate in FATES:
            found = sum(getattr(run, fate) for run in runs)
            if found != fates[fate]:
                findings.add("ledger", partition, "", f"{fate} in manifests", fates[fate], found)


def compare_daily(findings: Findings, ledger: Mapping[str, Any], daily: Mapping[str, Any]) -> None:
    """The sums of ``usage_daily`` against those of ``usage_ledger``."""
    for name in sorted(ledger.keys() | daily.keys()):
        if ledger.get(name) != daily.get(name):
            findings.add("daily", None, "", name, ledger.get(name), daily.get(name))


def _missing_row(findings: Findings, partition: int, row: Row) -> None:
    what = f"row at offset {row.offset} (cost {row.cost_nano} nano, {row.tokens} tokens)"
    findings.add("ledger", partition, _name(row), what, 1, 0, _day(row))


def _compare_row(findings: Findings, partition: int, wanted: Row, found: Row) -> None:
    if wanted == found:
        return
    before = findings.count
    for name in Row._fields:
        if name in ("offset", "digest"):
            continue
        value, other = getattr(wanted, name), getattr(found, name)
        if value != other:
            findings.add("ledger", partition, _name(wanted), name, value, other, _day(wanted))
    if findings.count == before:
        columns = ", ".join(differing_columns(wanted.digest, found.digest)) or "a column"
        what = f"{columns} at offset {wanted.offset}"
        findings.add("ledger", partition, _name(wanted), what, "as sent", "changed", _day(wanted))


def _name(row: Row) -> str:
    return f"port:{row.port_id} event {row.event_id}"


def _day(row: Row) -> int:
    return row.occurred_at_us // 86_400_000_000


# -- where every record ended ----------------------------------------------------------------------


def compare_rejected(
    findings: Findings,
    recount: Recount,
    refusals: Iterable[Refusal],
    tables: Mapping[int, Table],
) -> None:
    """``usage.rejected`` against what the recount rejects: one to one, the same bytes."""
    found: dict[tuple[int, int], Refusal] = {}
    for refusal in refusals:
        found[refusal.partition, refusal.offset] = refusal
    for partition, count in recount.counts.items():
        end = tables[partition].next_offset if partition in tables else 0
        findings.took("rejected", sum(offset < end for offset in count.rejected))
        for offset, original in count.rejected.items():
            if offset >= end:
                continue
            refusal = found.pop((partition, offset), None)
            subject = f"offset {offset}"
            if refusal is None:
                findings.add("rejected", partition, subject, "record", original.note, "none")
            elif refusal.reason != original.note:
                findings.add(
                    "rejected", partition, subject, "reason", original.note, refusal.reason
                )
            elif refusal.digest != original.digest:
                findings.add(
                    "rejected", partition, subject, "key, value and headers", "as sent", "changed"
                )
        for (source, offset), refusal in sorted(found.items()):
            if source == partition and count.counts_from <= offset < end:
                findings.add(
                    "rejected", partition, f"offset {offset}", "record", "none", refusal.reason
                )


def compare_forwarded(findings: Findings, recount: Recount, tables: Mapping[int, Table]) -> None:
    """Every forwarded record must have arrived at home with the bytes it was sent with."""
    for partition, count in recount.counts.items():
        end = tables[partition].next_offset if partition in tables else 0
        for offset, original in count.forwarded.items():
            if offset >= end:
                continue
            findings.took("forwarded", 1)
            home = recount.counts[int(original.note)]
            arrived = home.taken_over.get((partition, offset), [])
            if original.digest not in arrived:
                expected = f"a copy on partition {original.note}"
                found = "a changed copy" if arrived else "none"
                findings.add("forwarded", partition, f"offset {offset}", "copy", expected, found)


def _merge(findings: Findings, other: Findings) -> None:
    room = MAX_DIFFERENCES - len(findings.differences)
    findings.differences.extend(other.differences[:room])
    findings.count += other.count
    for part, number in other.compared.items():
        findings.took(part, number)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def totals_of(row: Sequence[Any]) -> Totals:
    """A table's cell as the recount's tuple."""
    requests, tokens, cost, org_cost, unpriced, org_unpriced = (int(value) for value in row)
    return requests, tokens, cost, org_cost, unpriced, org_unpriced
