"""Merging manifests: a sink writes one for every round, some 700,000 a day, and few are enough.

Merging a chain of old runs that join end to end:

1. Insert one run that covers all of them, with their counts added up.
2. Delete what lies inside of it.

Between the two each offset is covered twice, which says the same; what a crash leaves there is
deleted by the next turn. Runs never grow across a gap, and the newest one of each partition, which
says where the sink goes on, is left alone.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline import faults
from pipeline.ledger.manifests import Manifest, write_manifests

EVERY_S = 600.0
OLD_AFTER_S = 3_600
"""Younger runs are left alone: two sinks may have been at work at a handover."""
LEAST_RUNS = 100
"""Fewer are not worth a change."""
MOST_OFFSETS = 1_000_000
"""What a merged run covers at most: the audit compares counts run by run."""
MOST_RUNS = 50_000
"""Read in one turn of one partition."""

_PLACES = """
SELECT epoch, topic, partition, max(next_offset) FROM sink_manifests
GROUP BY epoch, topic, partition
HAVING countIf(written_at < {until:DateTime64(3, 'UTC')}) >= {least:UInt32}
"""
_RUNS = """
SELECT first_offset, next_offset, rows, rejected, duplicates, forwarded, days, priced_partition,
    priced_next_offset, written_at
FROM sink_manifests FINAL
WHERE epoch = {epoch:UInt32} AND topic = {topic:String} AND partition = {partition:UInt32}
AND written_at < {until:DateTime64(3, 'UTC')} AND next_offset < {newest:Int64}
AND next_offset - first_offset < {full:Int64}
ORDER BY first_offset, next_offset DESC LIMIT {most:UInt32}
"""
_DELETE = (
    "ALTER TABLE sink_manifests DELETE WHERE epoch = {epoch:UInt32} AND topic = {topic:String} "
    "AND partition = {partition:UInt32} AND first_offset >= {first:Int64} "
    "AND next_offset <= {next:Int64} AND NOT (first_offset = {first:Int64} "
    "AND next_offset = {next:Int64})"
)
_SYNC: dict[str, Any] = {"mutations_sync": 2}


class Run(NamedTuple):
    """A manifest without its place."""

    first_offset: int
    next_offset: int
    counts: tuple[int, int, int, int]
    days: frozenset[date]
    priced_partition: int
    priced_next_offset: int
    written_at: datetime


@dataclass
class Chain:
    """Runs that join end to end; ``has_inner`` when some lie inside of one of them."""

    runs: list[Run] = field(default_factory=list[Run])
    has_inner: bool = False

    @property
    def is_worth_it(self) -> bool:
        """Whether there is something to merge or to clear up."""
        return len(self.runs) >= LEAST_RUNS or self.has_inner

    def merged(self) -> Run:
        """One run that says what all of them say."""
        last = self.runs[-1]
        columns = zip(*(run.counts for run in self.runs), strict=True)
        rows, rejected, duplicates, forwarded = (sum(column) for column in columns)
        return Run(
            self.runs[0].first_offset,
            last.next_offset,
            (rows, rejected, duplicates, forwarded),
            frozenset[date]().union(*(run.days for run in self.runs)),
            last.priced_partition,
            last.priced_next_offset,
            max(run.written_at for run in self.runs),
        )


class Compactor:
    """Merges manifests every ten minutes. One object for one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s = clock()

    def turn(self, client: Client) -> int:
        """Merges if it is time to; returns how many runs. Raises ClickHouse's errors."""
        if self._clock() < self._next_s:
            return 0
        self._next_s = self._clock() + EVERY_S
        return compact(client)


def compact(client: Client, *, old_after_s: float = OLD_AFTER_S) -> int:
    """Merges what is older than ``old_after_s``; returns how many runs were merged."""
    until = datetime.now(UTC) - timedelta(seconds=old_after_s)
    number = 0
    for epoch, topic, partition, newest in client.query(
        _PLACES, parameters={"until": until, "least": LEAST_RUNS}
    ).result_rows:
        place = {"epoch": int(epoch), "topic": str(topic), "partition": int(partition)}
        limits = {"until": until, "newest": newest, "full": MOST_OFFSETS, "most": MOST_RUNS}
        found = client.query(_RUNS, parameters={**place, **limits}).result_rows
        for chain in chains([_run(row) for row in found]):
            if chain.is_worth_it:
                _merge(client, place, chain)
                number += len(chain.runs)
    return number


def chains(runs: Sequence[Run]) -> Iterator[Chain]:
    """Cuts runs, ordered by first offset and longest first, into chains that may be merged.

    A run that overlaps others without lying inside of one is in a chain of its own.
    """
    chain = Chain()
    for run in runs:
        if not chain.runs:
            chain.runs.append(run)
        elif _lies_inside(run, chain.runs[-1]):
            chain.has_inner = True
        elif _joins(chain, run):
            chain.runs.append(run)
        else:
            yield chain
            chain = Chain([run])
    if chain.runs:
        yield chain


def _lies_inside(run: Run, other: Run) -> bool:
    return other.first_offset <= run.first_offset and run.next_offset <= other.next_offset


def _joins(chain: Chain, run: Run) -> bool:
    last = chain.runs[-1]
    return (
        run.first_offset == last.next_offset
        and run.priced_partition == last.priced_partition
        and run.next_offset - chain.runs[0].first_offset <= MOST_OFFSETS
    )


def _merge(client: Client, place: dict[str, Any], chain: Chain) -> None:
    """Steps 1 and 2."""
    run = chain.merged()
    rows, rejected, duplicates, forwarded = run.counts
    merged = Manifest(
        **place,
        first_offset=run.first_offset,
        next_offset=run.next_offset,
        rows=rows,
        rejected=rejected,
        duplicates=duplicates,
        forwarded=forwarded,
        days=tuple(sorted(run.days)),
        priced_partition=run.priced_partition,
        priced_next_offset=run.priced_next_offset,
    )
    faults.point("compact-before-insert")
    if len(chain.runs) > 1:
        write_manifests(client, [merged], run.written_at)
    faults.point("compact-after-insert")
    offsets = {"first": run.first_offset, "next": run.next_offset}
    client.command(_DELETE, parameters={**place, **offsets}, settings=_SYNC)
    faults.point("compact-after-delete")


def _run(row: Sequence[Any]) -> Run:
    first, end, rows, rejected, duplicates, forwarded, days, priced, priced_next, at = row
    counts = (int(rows), int(rejected), int(duplicates), int(forwarded))
    return Run(int(first), int(end), counts, frozenset(days), int(priced), int(priced_next), at)
