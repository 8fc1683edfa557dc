"""The ledger's rows against the recount's, digest by digest; what differs is then looked at."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.recount.count import UNVERIFIABLE, PartitionCount, Recount
from pipeline.audit.recount.rows import AMOUNTS, COLUMNS, EVENT_BYTES

PART = "ledger"
MAX_SUSPECTS = 500
_DAY_US = 86_400_000_000


class RowDigest(NamedTuple):
    """A row of this log: where it says it came from, and the digest of its values."""

    topic: str
    partition: int
    offset: int
    digest: bytes


class Suspect(NamedTuple):
    """A row that differs, is missing or should not be there."""

    kind: Kind
    topic: str
    partition: int
    offset: int


class Suspects:
    """The first ``MAX_SUSPECTS`` of what differs, and how many there are of each kind."""

    def __init__(self) -> None:
        self.first: list[Suspect] = []
        self.beyond: dict[tuple[Kind, int], int] = {}

    def add(self, kind: Kind, topic: str, partition: int, offset: int) -> None:
        if len(self.first) < MAX_SUSPECTS:
            self.first.append(Suspect(kind, topic, partition, offset))
        else:
            place = (kind, partition)
            self.beyond[place] = self.beyond.get(place, 0) + 1


def compare_rows(
    findings: Findings,
    recount: Recount,
    topic: str,
    rows: Iterable[RowDigest],
    cuts: Mapping[int, int],
) -> Suspects:
    """Every row below its partition's cut, in any order, exactly one for each accepted event.

    Rows of offsets that are not recounted are left out.
    """
    suspects = Suspects()
    for count in recount.counts.values():
        count.accepted.forget_seen()
    for row in rows:
        count = recount.counts.get(row.partition) if row.topic == topic else None
        if count is None:
            suspects.add(Kind.ROW_UNEXPECTED, row.topic, row.partition, row.offset)
            continue
        if not count.counts_from <= row.offset < cuts.get(row.partition, 0):
            continue
        kind = _judge(count, row)
        if kind is not None:
            suspects.add(kind, topic, row.partition, row.offset)
    for partition, count in recount.counts.items():
        end = count.accepted.below(cuts.get(partition, 0))
        findings.compared["ledger rows"] += end
        for at in count.accepted.unseen(0, end):
            suspects.add(Kind.ROW_MISSING, topic, partition, count.accepted.offsets[at])
    return suspects


def _judge(count: PartitionCount, row: RowDigest) -> Kind | None:
    at = count.accepted.find(row.offset)
    if at is None:
        return Kind.ROW_UNEXPECTED
    if count.accepted.see(at):
        return Kind.ROW_TWICE
    wanted = count.accepted.digest(at)
    if count.accepted.note(at) == UNVERIFIABLE:
        same = wanted[:EVENT_BYTES] == row.digest[:EVENT_BYTES]
    else:
        same = wanted == row.digest
    return None if same else Kind.ROW_CHANGED


def add_suspects(
    findings: Findings,
    recount: Recount,
    suspects: Suspects,
    expected: Mapping[tuple[int, int], Mapping[str, Any]],
    found: Mapping[tuple[str, int, int], Sequence[Mapping[str, Any]]],
) -> None:
    """Adds each suspect as a difference.

    ``expected`` are the recount's rows by partition and offset, ``found`` the ledger's by topic,
    partition and offset, both by the names of ``COLUMNS``.
    """
    twice = {suspect[1:] for suspect in suspects.first if suspect.kind is Kind.ROW_TWICE}
    for suspect in suspects.first:
        kind, topic, partition, offset = suspect
        wanted = expected.get((partition, offset))
        rows = found.get((topic, partition, offset), ())
        if kind is Kind.ROW_CHANGED and suspect[1:] in twice and wanted in rows:
            continue  # the right row is there, too: it is the other that is one too many
        if kind is Kind.ROW_MISSING:
            _add(findings, suspect, wanted, "row", _summary(wanted), "none", _sum(wanted, -1))
        elif kind is Kind.ROW_UNEXPECTED:
            fate = recount.counts[partition].fate_of(offset) if _is_ours(recount, suspect) else (
                f"no row of {topic} partition {partition}"
            )  # fmt: skip
            for row in islice(rows, 1):
                _add(findings, suspect, row, "row", fate, _summary(row), _sum(row, 1))
        elif kind is Kind.ROW_TWICE:
            row = _other(wanted, rows)
            _add(findings, suspect, row, "row", "one", f"two: {_summary(row)}", _sum(row, 1))
        else:
            _add_change(findings, suspect, wanted or {}, rows)
    for (kind, partition), number in suspects.beyond.items():
        findings.by_kind[kind] += number
        findings.notes.append(f"partition {partition}: {number} more rows are {kind}")


def _add_change(
    findings: Findings,
    suspect: Suspect,
    wanted: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
) -> None:
    there = rows[0] if rows else {}
    names = [name for name in COLUMNS if wanted.get(name) != there.get(name)]
    amounts = {
        name: (there.get(name) or 0) - (wanted.get(name) or 0) for name in names if name in AMOUNTS
    }
    _add(
        findings,
        suspect,
        wanted or there,
        ", ".join(names) or "digest",
        ", ".join(f"{name} {wanted.get(name)}" for name in names),
        ", ".join(f"{name} {there.get(name)}" for name in names),
        amounts,
    )


def _add(
    findings: Findings,
    suspect: Suspect,
    row: Mapping[str, Any] | None,
    what: str,
    expected: str,
    found: str,
    amounts: Mapping[str, int],
) -> None:
    row = row or {}
    day = row.get("occurred_at_us")
    findings.add(
        suspect.kind,
        PART,
        what,
        expected,
        found,
        partition=suspect.partition,
        subject=f"port:{row.get('port_id', '?')} event {row.get('event_id', '?')}",
        day=None if day is None else day // _DAY_US,
        offset=suspect.offset,
        amounts=amounts,
    )


def _is_ours(recount: Recount, suspect: Suspect) -> bool:
    return suspect.partition in recount.counts


def _other(
    wanted: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    strange = [row for row in rows if row != wanted]
    return next(_chosen(strange, rows), None)


def _chosen(*lists: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for rows in lists:
        yield from rows


def _sum(row: Mapping[str, Any] | None, sign: int) -> dict[str, int]:
    """What a row adds, without the zeros."""
    return {name: sign * row[name] for name in AMOUNTS if row and row.get(name)}


def _summary(row: Mapping[str, Any] | None) -> str:
    if not row:
        return "a row"
    return f"a row of {row['total_tokens']} tokens, {row['cost_nano']} nano"
