"""Corrections against the recount: each record's one fate, each entry, and what they add up to.

An event's first entry is compared with the recount of the events; from there on each further entry
is made again from the correction it names, in the order of the entries' numbers.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from time import monotonic
from typing import Any

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.fates import Refusal
from pipeline.audit.kafka_side import CorrectionLogs, KafkaSide
from pipeline.audit.ledger_side import EntryRow, LedgerSide
from pipeline.audit.recount.cells import Cells, Entry, sum_cells
from pipeline.audit.recount.corrections import (
    DECIDED_BY_THE_EVENT,
    Chain,
    Correction,
    entry_of_row,
    read_correction,
)
from pipeline.audit.recount.count import record_digest
from pipeline.audit.recount.envelopes import Unreadable
from pipeline.audit.recount.places import home_of
from pipeline.audit.recount.prices import Prices
from pipeline.audit.recount.rows import AMOUNTS, COLUMNS, EVENT_NUMBERS, EVENT_TEXTS
from pipeline.audit.waiting import covers, pause
from pipeline.core.resolved import Resolved

PART = "corrections"
SENT_BEFORE_MS = 1_000
"""Times of two partitions may be of two brokers: only what is older was surely sent before."""

EventKey = tuple[str, str]
Place = tuple[int, int]
"""partition and offset on ``usage.corrections``."""


@dataclass
class Snapshot:
    """What was found at one moment. ``entries`` are those of this epoch, by home partition.

    Each comes with its offset on ``tallyport.resolved``, None where Kafka no longer has that.
    """

    findings: Findings = field(default_factory=Findings)
    entries: dict[int, list[tuple[int | None, Entry]]] = field(
        default_factory=lambda: defaultdict[int, list[tuple[int | None, Entry]]](list)
    )
    booked: dict[Place, str] = field(default_factory=dict[Place, str])
    ids: set[str] = field(default_factory=set[str])
    void: set[EventKey] = field(default_factory=set[EventKey])
    not_recounted: int = 0


class CorrectionAudit:
    """Reads corrections, and compares what became of them; read again when there are more."""

    def __init__(
        self,
        kafka: KafkaSide,
        ledger: LedgerSide,
        epoch: int,
        partitions: int,
        prices: Callable[[int, str, int], Prices],
        book: str,
        wait_s: float,
    ) -> None:
        self._kafka, self._ledger, self._epoch = kafka, ledger, epoch
        self._partitions = partitions
        self._prices, self._book = prices, book
        self._wait_s = wait_s
        self._logs = CorrectionLogs()
        self._snapshot: Snapshot | None = None
        self._seen: object = None

    async def cells(self, partition: int, resolved_offset: int) -> Cells:
        """What a table that stands at ``resolved_offset`` has added for corrections."""
        snapshot = await self._settled({partition: resolved_offset})
        return _added_up(
            entry
            for offset, entry in snapshot.entries[partition]
            if offset is None or offset < resolved_offset
        )

    async def all_cells(self) -> list[Cells]:
        """What all corrections in the ledger add, by partition."""
        snapshot = await self._current()
        return [_added_up(entry for _, entry in entries) for entries in snapshot.entries.values()]

    async def compare(self, findings: Findings) -> None:
        """Every record below what is resolved, every entry, runs and blocks."""
        ends = await self._kafka.correction_ends()
        await self._wait_for_resolver(findings, ends)
        snapshot = await self._settled(await self._kafka.resolved_ends())
        findings.take(snapshot.findings)
        await self._compare_fates(findings, snapshot)
        await asyncio.to_thread(self._compare_runs, findings)
        await self._compare_blocks(findings)
        if snapshot.not_recounted:
            findings.notes.append(
                f"{snapshot.not_recounted} corrections are no longer in Kafka: their entries were "
                "taken from the ledger"
            )

    # -- waiting and reading -----------------------------------------------------------------------

    async def _wait_for_resolver(self, findings: Findings, wanted: Mapping[int, int]) -> None:
        deadline_s = monotonic() + self._wait_s
        while not covers(reached := await self._kafka.resolver_progress(), wanted):
            if not await pause(deadline_s):
                break
        for partition, end in wanted.items():
            if reached.get(partition, 0) < end:
                findings.add(
                    Kind.BEHIND, PART, "resolved up to offset", end, reached.get(partition, 0),
                    partition=partition,
                )  # fmt: skip

    async def _settled(self, wanted: Mapping[int, int]) -> Snapshot:
        """Once the ledger has all that is resolved below these offsets, for a bounded time.

        What it lacks then shows as entries that are missing.
        """
        deadline_s = monotonic() + self._wait_s
        while True:
            snapshot = await self._current()
            lacks = any(
                offset < wanted.get(partition, 0) and resolved.correction_id not in snapshot.ids
                for partition, offset, resolved in self._logs.resolved
            )
            if not lacks or not await pause(deadline_s):
                return snapshot

    async def _current(self) -> Snapshot:
        held = await asyncio.to_thread(self._ledger.reached, self._kafka.topics.resolved)
        seen = (await self._kafka.correction_ends(), await self._kafka.resolved_ends(), held)
        if self._snapshot is None or seen != self._seen:
            self._logs = await self._kafka.correction_logs()
            self._snapshot = await asyncio.to_thread(self._read)
            self._seen = seen
        return self._snapshot

    def _read(self) -> Snapshot:
        snapshot = Snapshot()
        self._check_numbers(snapshot.findings)
        rows = self._ledger.corrected_entries()
        for key, entries in groupby(rows, key=lambda one: one.event):
            self._follow(snapshot, key, list(entries))
        gone = self._ledger.gone_months()
        snapshot.ids.update(
            resolved.correction_id
            for _, _, resolved in self._logs.resolved
            if gone and _month_of(resolved.event.occurred_at_us) in gone
        )
        return snapshot

    def _check_numbers(self, findings: Findings) -> None:
        before: dict[int, int] = {}
        for partition, offset, resolved in self._logs.resolved:
            wanted = before.get(partition, resolved.number - 1) + 1
            if resolved.number != wanted:
                findings.add(
                    Kind.BLOCK_GAP, "resolved", "number", wanted, resolved.number,
                    partition=partition, offset=offset,
                )  # fmt: skip
            before[partition] = resolved.number

    # -- entries -----------------------------------------------------------------------------------

    def _follow(self, snapshot: Snapshot, key: tuple[int, str, str], rows: list[EntryRow]) -> None:
        """One event's entries, made again one after the other."""
        first = next((one for one in rows if one.row["entry_no"] == 0), None)
        if first is None:
            for one in rows:
                self._add(snapshot, Kind.ROW_UNEXPECTED, one, "an event", "no first entry")
            return
        chain = Chain(first.row)
        for one in rows:
            if one is first:
                continue
            if one.row["entry_no"] != chain.entry_no + 1:
                wanted, found = chain.entry_no + 1, one.row["entry_no"]
                self._add(snapshot, Kind.ROW_MISSING, one, f"entry {wanted}", f"entry {found}")
            snapshot.ids.add(one.row["correction_id"])
            if one.epoch == self._epoch:
                snapshot.findings.compared["correction entries"] += 1
                self._compare_entry(snapshot, chain, one)
            chain.add(one.row)
        if chain.requests < 1:
            snapshot.void.add(key[1:])

    def _compare_entry(self, snapshot: Snapshot, chain: Chain, one: EntryRow) -> None:
        place = (one.partition, one.offset)
        resolved = self._logs.resolved_at.get(place)
        home = home_of(one.row["port_id"], self._partitions)
        expected: Mapping[str, Any] | None = None
        if one.offset < self._logs.starts.get(one.partition, 0):
            snapshot.not_recounted += 1
        else:
            expected = self._expected(snapshot, chain, one, resolved and resolved[1])
        snapshot.booked[place] = one.row["correction_id"]
        entry = entry_of_row(expected or one.row)
        snapshot.entries[home].append((resolved[0] if resolved else None, entry))

    def _expected(
        self, snapshot: Snapshot, chain: Chain, one: EntryRow, resolved: Resolved | None
    ) -> Mapping[str, Any] | None:
        record = self._logs.records.get((one.partition, one.offset))
        if record is None or one.topic != self._kafka.topics.corrections or resolved is None:
            self._add(snapshot, Kind.ROW_UNEXPECTED, one, "a correction", "an entry without one")
            return None
        try:
            correction = read_correction(record.value)
        except Unreadable as unreadable:
            self._add(snapshot, Kind.ROW_UNEXPECTED, one, unreadable.reason, "an entry")
            return None
        currency = resolved.currency
        prices = self._prices(resolved.rates_next_offset, currency, resolved.price_lead_s)
        made = chain.next_row(correction, record.timestamp_ms, prices, currency)
        if isinstance(made, str):
            self._add(snapshot, Kind.ROW_UNEXPECTED, one, made, "an entry")
            return None
        if resolved.book != self._book:
            snapshot.findings.notes.append("a correction was priced by a book of another release")
            self._compare_values(snapshot, one, made, (*EVENT_TEXTS, *EVENT_NUMBERS))
            return None
        self._compare_values(snapshot, one, made, COLUMNS)
        return made

    def _compare_values(
        self, snapshot: Snapshot, one: EntryRow, made: Mapping[str, Any], columns: Iterable[str]
    ) -> None:
        names = [name for name in columns if made[name] != one.row[name]]
        if names:
            amounts = {
                name: (one.row[name] or 0) - (made[name] or 0) for name in names if name in AMOUNTS
            }
            wanted = ", ".join(f"{name} {made[name]}" for name in names)
            found = ", ".join(f"{name} {one.row[name]}" for name in names)
            self._add(snapshot, Kind.ROW_CHANGED, one, wanted, found, amounts)

    def _add(
        self,
        snapshot: Snapshot,
        kind: Kind,
        one: EntryRow,
        expected: str,
        found: str,
        amounts: Mapping[str, int] | None = None,
    ) -> None:
        row = one.row
        if amounts is None:
            sign = -1 if kind is Kind.ROW_MISSING else 1
            amounts = {name: sign * row[name] for name in AMOUNTS if row[name]}
        snapshot.findings.add(
            kind, PART, f"entry {row['entry_no']}", expected, found,
            partition=one.partition, offset=one.offset, day=one.day,
            subject=f"port:{row['port_id']} event {row['event_id']}", amounts=amounts,
        )  # fmt: skip

    # -- fates -------------------------------------------------------------------------------------

    async def _compare_fates(self, findings: Findings, snapshot: Snapshot) -> None:
        """Each record of ``usage.corrections``: an entry, a refusal, or a repeat; one of them."""
        refusals: dict[Place, Refusal] = {}
        async for refusal in self._kafka.correction_refusals():
            refusals[refusal.partition, refusal.offset] = refusal
        reached = await self._kafka.resolver_progress()
        asked: dict[Place, tuple[EventKey, int]] = {}
        for place, record in self._logs.records.items():
            if place[1] >= reached.get(place[0], 0):
                continue
            findings.compared["corrections"] += 1
            refusal = refusals.pop(place, None)
            try:
                correction: Correction | str = read_correction(record.value)
            except Unreadable as unreadable:
                correction = unreadable.reason
            wrong = _wrong_fate(snapshot, place, correction, refusal)
            if wrong is not None:
                kind, expected, found = wrong
                findings.add(kind, PART, "record", expected, found, partition=place[0],
                             offset=place[1], amounts={})  # fmt: skip
            if refusal is None:
                continue
            if refusal.digest != record_digest(
                record.key, record.value, record.headers, refusal.reason
            ):
                what = "key, value and headers"
                findings.add(Kind.REFUSAL_CHANGED, PART, what, "as sent", "changed",
                             partition=place[0], offset=place[1], amounts={})  # fmt: skip
            if refusal.reason == "unknown-event" and isinstance(correction, Correction):
                key = (correction.port_id, correction.event_id)
                asked[place] = (key, record.timestamp_ms)
        for (partition, offset), refusal in refusals.items():
            if offset >= self._logs.starts.get(partition, 0) and offset < reached.get(partition, 0):
                findings.add(Kind.REFUSAL_UNEXPECTED, PART, "record", "none", refusal.reason,
                             partition=partition, offset=offset, amounts={})  # fmt: skip
        await self._compare_unknown(findings, asked)

    async def _compare_unknown(
        self, findings: Findings, asked: Mapping[Place, tuple[EventKey, int]]
    ) -> None:
        """An event that was sent before the correction was known."""
        keys = {key for key, _ in asked.values()}
        sent = await asyncio.to_thread(self._ledger.first_recorded, keys) if keys else {}
        for (partition, offset), (key, corrected_ms) in asked.items():
            if sent.get(key, corrected_ms) < corrected_ms - SENT_BEFORE_MS:
                findings.add(
                    Kind.REFUSAL_UNEXPECTED, PART, "record", "an entry", "unknown-event",
                    partition=partition, offset=offset, subject=f"port:{key[0]} event {key[1]}",
                    amounts={},
                )  # fmt: skip

    # -- runs and blocks ---------------------------------------------------------------------------

    def _compare_runs(self, findings: Findings) -> None:
        topic, ends = self._kafka.topics.resolved, dict[int, int]()
        for run in self._ledger.manifests(topic):
            before = ends.get(run.partition, run.first_offset)
            if run.first_offset > before:
                _add_gap(findings, Kind.MANIFEST_GAP, run.partition, before, run.first_offset)
            ends[run.partition] = max(before, run.next_offset)

    async def _compare_blocks(self, findings: Findings) -> None:
        """Blocks join, and hold what was resolved in their range, once."""
        ends: dict[int, int] = {}
        resolved: dict[int, list[int]] = defaultdict(list)
        for partition, offset, _ in self._logs.resolved:
            resolved[partition].append(offset)
        async for block in self._kafka.correction_blocks(self._epoch):
            before = ends.get(block.partition, block.first_offset)
            if block.first_offset != before:
                _add_gap(findings, Kind.BLOCK_GAP, block.partition, before, block.first_offset)
            ends[block.partition] = block.next_offset
            offsets = resolved[block.partition]
            inside = bisect_left(offsets, block.next_offset) - bisect_left(
                offsets, block.first_offset
            )
            told = len(block.accepted) + len(block.duplicates)
            # Of what came since, and of what is deleted, the log that was read knows nothing.
            is_known = bool(offsets) and (
                offsets[0] <= block.first_offset and block.next_offset <= offsets[-1] + 1
            )
            if inside > told or (is_known and inside < told):
                findings.add(
                    Kind.BLOCK_FATE, PART, "corrections in a block", inside, told,
                    partition=block.partition, offset=block.first_offset,
                )  # fmt: skip


def _month_of(instant_us: int) -> int:
    """The UTC month of an instant as the ledger numbers it, 202611."""
    instant = datetime.fromtimestamp(instant_us // 1_000_000, UTC)
    return instant.year * 100 + instant.month


def _wrong_fate(
    snapshot: Snapshot, place: Place, correction: Correction | str, refusal: Refusal | None
) -> tuple[Kind, str, str] | None:
    """What is wrong with the fate of a record, if anything: kind, expected, found."""
    booked = place in snapshot.booked
    if isinstance(correction, str):
        if refusal is None:
            return Kind.REFUSAL_MISSING, correction, "none"
        wrong = refusal.reason != correction
        return (Kind.REFUSAL_CHANGED, correction, refusal.reason) if wrong else None
    if refusal is not None:
        if booked:
            return Kind.REFUSAL_UNEXPECTED, "an entry", refusal.reason
        if refusal.reason not in DECIDED_BY_THE_EVENT:
            return Kind.REFUSAL_CHANGED, "a valid correction", refusal.reason
        key = (correction.port_id, correction.event_id)
        if refusal.reason == "already-void" and key not in snapshot.void:
            return Kind.REFUSAL_CHANGED, "an event that is not void", refusal.reason
        return None
    if not booked and correction.correction_id not in snapshot.ids:
        return Kind.ROW_MISSING, "an entry", "none"
    return None


def _add_gap(findings: Findings, kind: Kind, partition: int, reached: int, begins: int) -> None:
    findings.add(kind, PART, "offset on tallyport.resolved", reached, begins, partition=partition,
                 offset=reached)  # fmt: skip


def _added_up(entries: Iterable[Entry]) -> Cells:
    return sum_cells(_each(entries))


def _each(entries: Iterable[Entry]) -> Iterator[Cells]:
    for entry in entries:
        yield {(scope, entry.day): entry.amounts for scope in entry.scopes}
