"""The audit: waits until everything is taken in, reads it all, recounts, compares."""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.audit import gather
from pipeline.audit.budgets import budgets_in_force
from pipeline.audit.compare import (
    Difference,
    Findings,
    Manifest,
    Table,
    compare_coverage,
    compare_daily,
    compare_forwarded,
    compare_ledger,
    compare_manifests,
    compare_rejected,
    compare_something,
    compare_states,
    compare_tables,
)
from pipeline.audit.recount import Cells, Recount, Rules, add_up
from pipeline.core.book import builtin_book
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import open_reader
from pipeline.settings import Settings
from pipeline.stream.topics import Topics

WAIT_S = 30.0
POLL_S = 0.3

Offsets = Mapping[int, int]


@dataclass
class AuditReport:
    """The audit's result. ``ok`` means: something was compared, and nothing differed.

    ``ranges`` say up to which offset of each partition of ``usage.events`` each part was
    compared. ``differences`` are the first of ``difference_count``.
    """

    difference_count: int = 0
    differences: list[Difference] = field(default_factory=list[Difference])
    ranges: dict[str, Any] = field(default_factory=dict[str, Any])
    compared: dict[str, int] = field(default_factory=dict[str, int])
    fates: dict[str, int] = field(default_factory=dict[str, int])
    rejected_by_reason: dict[str, int] = field(default_factory=dict[str, int])
    totals: dict[str, int] = field(default_factory=dict[str, int])
    notes: list[str] = field(default_factory=list[str])

    @property
    def ok(self) -> bool:
        return self.difference_count == 0

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        body = asdict(self)
        body["differences"] = [d._asdict() for d in self.differences]
        return {"ok": self.ok, **body}

    def lines(self, most: int = 40) -> list[str]:
        """The report as text: ranges, what was compared, notes, at most so many differences."""
        found = [f"{name}: {json.dumps(ranges)}" for name, ranges in self.ranges.items()]
        found += [f"compared {part}: {number:,}" for part, number in self.compared.items()]
        found += [f"note: {note}" for note in self.notes]
        found += [difference_line(difference) for difference in self.differences[:most]]
        if self.difference_count > most:
            found.append(f"... and {self.difference_count - most} more differences")
        verdict = "everything agrees" if self.ok else f"{self.difference_count} differences"
        return [*found, f"audit: {verdict}"]


def difference_line(difference: Difference) -> str:
    """One difference as a line of text."""
    place = "" if difference.partition is None else f" partition {difference.partition}"
    words = [f"{difference.part}{place}", difference.subject, difference.day, difference.what]
    text = " · ".join(word for word in words if word)
    by = "" if difference.by is None else f" (by {difference.by:+d})"
    return f"{text}: expected {difference.expected}, found {difference.found}{by}"


async def run_audit(settings: Settings, *, wait_s: float = WAIT_S) -> AuditReport:
    """Compares tables, states and ledger with a recount of the events in Kafka.

    Waits up to ``wait_s`` until all three have taken in what was in Kafka at the call; what is
    still behind then is a difference. Raises ``TallyportError`` when Kafka or the ledger cannot
    be read.
    """
    ledger = await asyncio.to_thread(open_reader, settings)
    try:
        audit = _Audit(client_kwargs(settings), Topics(settings.topic_prefix), ledger)
        return await audit.run(wait_s)
    finally:
        await asyncio.to_thread(ledger.close)


class _Audit:
    def __init__(self, client: dict[str, Any], topics: Topics, ledger: Client) -> None:
        self._client = client
        self._topics = topics
        self._ledger = ledger
        self._findings = Findings()

    async def run(self, wait_s: float) -> AuditReport:
        findings = self._findings
        positions = await gather.read_positions(self._client, self._topics.events)
        partitions = sorted(positions.starts)
        epoch = await gather.read_epoch(self._client, self._topics)
        states = gather.StateLogs(self._client, self._topics, partitions)
        wanted = positions.next_offsets
        deadline = asyncio.get_running_loop().time() + wait_s
        tables = await self._wait_for_tables(partitions, wanted, deadline)
        reached = await self._wait_for_states(states, wanted, deadline)
        manifests = await self._wait_for_ledger(epoch, wanted, deadline)
        ends = {p: _end(manifests, p) for p in partitions}
        compare_coverage(findings, "tables", wanted, {p: t.next_offset for p, t in tables.items()})
        compare_coverage(findings, "state", wanted, reached)
        compare_coverage(findings, "ledger", wanted, ends)

        refusals = await gather.read_refusals(self._client, self._topics)
        budgets = budgets_in_force(*await gather.read_policies(self._client, self._topics))
        recount = await self._recount(partitions, positions.starts)
        opening = await asyncio.to_thread(self._compare_rows, recount, epoch, ends)
        compare_something(findings, recount)
        compare_tables(findings, recount, tables, opening)
        throughs = compare_states(findings, recount, states.records, budgets, opening)
        compare_manifests(findings, recount, manifests)
        compare_rejected(findings, recount, refusals, tables)
        compare_forwarded(findings, recount, tables)
        compare_daily(findings, *await gather.read_agreeing_sums(self._ledger))
        return self._report(recount, tables, throughs, manifests)

    async def _wait_for_tables(
        self, partitions: list[int], wanted: Offsets, deadline: float
    ) -> dict[int, Table]:
        while True:
            tables = await gather.read_tables(self._client, self._topics, partitions)
            reached = {p: table.next_offset for p, table in tables.items()}
            if _covers(reached, wanted) or not await _pause(deadline):
                return tables

    async def _wait_for_states(
        self, states: gather.StateLogs, wanted: Offsets, deadline: float
    ) -> dict[int, int]:
        while True:
            await states.read_on()
            if _covers(states.through(), wanted) or not await _pause(deadline):
                return states.through()

    async def _wait_for_ledger(
        self, epoch: int, wanted: Offsets, deadline: float
    ) -> dict[int, list[Manifest]]:
        while True:
            manifests = await asyncio.to_thread(
                gather.read_manifests, self._ledger, self._topics.events, epoch
            )
            reached = {p: _end(manifests, p) for p in wanted}
            if _covers(reached, wanted) or not await _pause(deadline):
                return manifests

    async def _recount(self, partitions: list[int], starts: Offsets) -> Recount:
        """Reads rules and rates first, which were written before what they decided."""
        rules = await gather.read_all_rules(self._client, self._topics)
        rates = await gather.read_rates(self._client, self._topics)
        self._check_book(rules)
        recount = Recount(len(partitions), rules, rates, starts)
        async for records in gather.read_events(self._client, self._topics.events):
            for at in range(0, len(records), 500):
                recount.feed(records[at : at + 500])
                await asyncio.sleep(0)  # let the clients' heartbeats through
        return recount

    def _check_book(self, rules: Mapping[int, list[Rules]]) -> None:
        installed = builtin_book().digest
        others = {entry.book for entries in rules.values() for entry in entries} - {installed}
        for digest in sorted(others):
            self._findings.add(
                "rules", None, "", "built-in book (install the release that priced them)",
                installed, digest,
            )  # fmt: skip

    def _compare_rows(self, recount: Recount, epoch: int, ends: Offsets) -> dict[int, Cells]:
        """Compares the ledger's rows; returns its totals of what Kafka no longer holds."""
        opening: dict[int, Cells] = {}
        for partition, count in recount.counts.items():
            arguments = (self._ledger, self._topics.events, epoch, partition)
            rows = gather.read_ledger_rows(*arguments, ends[partition])
            compare_ledger(self._findings, partition, count, rows, ends[partition])
            if count.counts_from:
                older = gather.read_ledger_rows(*arguments, count.counts_from)
                opening[partition] = add_up(older)
                self._findings.notes.append(
                    f"partition {partition}: Kafka no longer holds what is needed to recount "
                    f"offsets below {count.counts_from}; up to there tables and states are "
                    "compared with the ledger only"
                )
        return opening

    def _report(
        self,
        recount: Recount,
        tables: Mapping[int, Table],
        throughs: Mapping[int, Mapping[int, int]],
        manifests: Mapping[int, list[Manifest]],
    ) -> AuditReport:
        counts = recount.counts
        findings = self._findings
        fates: dict[str, int] = {}
        for count in counts.values():
            for fate, number in count.fates_below(count.next_offset).items():
                fates[fate] = fates.get(fate, 0) + number
        reasons = Counter(o.note for count in counts.values() for o in count.rejected.values())
        rows = [row for count in counts.values() for row in count.rows]
        return AuditReport(
            difference_count=findings.count,
            differences=findings.differences,
            ranges={
                "events in Kafka": {p: [c.first_offset, c.next_offset] for p, c in counts.items()},
                "recounted from": {p: c.counts_from for p, c in counts.items()},
                "tables up to": {p: table.next_offset for p, table in tables.items()},
                "states through": {p: dict(t) for p, t in throughs.items()},
                "ledger": {
                    p: [r[0].first_offset, _end(manifests, p)] for p, r in manifests.items()
                },
            },
            compared=findings.compared,
            fates=fates,
            rejected_by_reason=dict(sorted(reasons.items())),
            totals={
                "requests": len(rows),
                "tokens": sum(row.tokens for row in rows),
                "cost_nano": sum(row.cost_nano or 0 for row in rows),
                "unpriced": sum(row.cost_nano is None for row in rows),
            },
            notes=findings.notes,
        )


def _covers(reached: Offsets, wanted: Offsets) -> bool:
    return all(reached.get(partition, 0) >= offset for partition, offset in wanted.items())


async def _pause(deadline: float) -> bool:
    """Waits a moment; False when the time is up."""
    if asyncio.get_running_loop().time() >= deadline:
        return False
    await asyncio.sleep(POLL_S)
    return True


def _end(manifests: Mapping[int, list[Manifest]], partition: int) -> int:
    return max((run.next_offset for run in manifests.get(partition, ())), default=0)
