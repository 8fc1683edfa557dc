"""The ledger's runs of offsets: whether they join end to end and count what the recount counts."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.recount.count import PartitionCount, Recount

PART = "ledger"
_FATES = ("accepted", "rejected", "duplicates", "forwarded")


class Manifest(NamedTuple):
    """A run of source offsets that the ledger says it holds, and the fates in it."""

    partition: int
    first_offset: int
    next_offset: int
    accepted: int
    rejected: int
    duplicates: int
    forwarded: int


class Coverage(NamedTuple):
    """From and up to where the ledger says it holds a partition."""

    first_offset: int
    next_offset: int


def compare_manifests(
    findings: Findings, recount: Recount, manifests: Iterable[Manifest]
) -> dict[int, Coverage]:
    """Compares the runs, ordered by partition and first offset; returns what they cover.

    Runs that overlap are no fault: each must count right for its own offsets.
    """
    covered: dict[int, Coverage] = {}
    for run in manifests:
        count = recount.counts.get(run.partition)
        before = covered.get(run.partition)
        if before is None:
            covered[run.partition] = Coverage(run.first_offset, run.next_offset)
        else:
            if run.first_offset > before.next_offset:
                _add_gap(findings, run.partition, before.next_offset, run.first_offset)
            reached = max(before.next_offset, run.next_offset)
            covered[run.partition] = before._replace(next_offset=reached)
        if count is not None:
            _compare_run(findings, count, run)
    for partition, count in recount.counts.items():
        if not count.records:
            continue
        coverage = covered.get(partition)
        if coverage is None:
            _add_gap(findings, partition, count.starts_at, count.next_offset)
        elif coverage.first_offset > count.counts_from:
            _add_gap(findings, partition, count.counts_from, coverage.first_offset)
    return covered


def _add_gap(findings: Findings, partition: int, start: int, stop: int) -> None:
    findings.add(
        Kind.MANIFEST_GAP,
        PART,
        "offsets that no manifest covers",
        "none",
        f"{start} to {stop - 1}",
        partition=partition,
        offset=start,
        amounts={"offsets": start - stop},
    )


def _compare_run(findings: Findings, count: PartitionCount, run: Manifest) -> None:
    if run.first_offset < count.counts_from or run.next_offset > count.next_offset:
        return
    findings.compared["manifests"] += 1
    below, until = count.fates_below(run.first_offset), count.fates_below(run.next_offset)
    wanted = {fate: until[fate] - below[fate] for fate in _FATES}
    found: Mapping[str, int] = {fate: getattr(run, fate) for fate in _FATES}
    if wanted == found:
        return
    names = [fate for fate in _FATES if wanted[fate] != found[fate]]
    findings.add(
        Kind.MANIFEST_COUNT,
        PART,
        f"run of offsets {run.first_offset} to {run.next_offset - 1}",
        ", ".join(f"{name} {wanted[name]}" for name in names),
        ", ".join(f"{name} {found[name]}" for name in names),
        partition=run.partition,
        offset=run.first_offset,
        amounts={name: found[name] - wanted[name] for name in names},
    )
