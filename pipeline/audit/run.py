"""The audit: counts again up to a cut, and holds everything else against that, also in traffic.

1 begin     where the log of events begins and ends; that much must be taken in by all parts
2 wait      until states, tables and ledger have come that far, for a bounded time
3 recount   up to what all have taken in, then on to the present
4 states    ``budget.state`` is read on, then the tables: what a heartbeat claims they hold
5 tables    each is compared at its own position, which is the partition's cut
6 ledger    once its manifests reach the cut: every row, run, block and rejected record below it
7 states    again with newer heartbeats, until every partition agreed once, for a bounded time
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from time import monotonic
from typing import Any

from pipeline.audit.counting import Counting, Offsets, Progress
from pipeline.audit.differences import Findings, Kind, day_text
from pipeline.audit.fates import BlockChain, compare_copies, compare_refusals, missing_copies
from pipeline.audit.kafka_side import KafkaSide, Positions
from pipeline.audit.ledger_side import LedgerSide
from pipeline.audit.manifests import Coverage, compare_manifests
from pipeline.audit.recount.cells import Cells, sum_cells
from pipeline.audit.recount.count import PartitionCount
from pipeline.audit.recount.events import REASONS
from pipeline.audit.recount.policies import budgets_in_force
from pipeline.audit.report import AuditReport
from pipeline.audit.rows import add_suspects, compare_rows
from pipeline.audit.states import Heartbeat, ScopeSums, StateLog, compare_claims, compare_home
from pipeline.audit.tables import Opening, Table, compare_table
from pipeline.core.book import builtin_book
from pipeline.core.windows import parse_ms
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import ledger_reader
from pipeline.settings import Settings
from pipeline.stream.epoch import Epoch
from pipeline.stream.topics import Topics

WAIT_S = 30.0
POLL_S = 0.3
DAILY_TRIES = 8


async def run_audit(
    settings: Settings, *, wait_s: float = WAIT_S, progress: Progress | None = None
) -> AuditReport:
    """Compares tables, states and ledger with a recount of the events in Kafka.

    Works at rest and in traffic, and may be called at any time, for example by a schedule. Each of
    its waits for a part that is behind lasts at most ``wait_s``; what is still behind then is a
    difference. Raises ``TallyportError`` when Kafka or the ledger cannot be read.
    """
    kafka = KafkaSide(client_kwargs(settings), Topics(settings.topic_prefix))
    epoch = await kafka.epoch()
    with ledger_reader(settings) as client:
        ledger = LedgerSide(client, kafka.topics.events, epoch.epoch)
        return await Audit(kafka, ledger, epoch, wait_s, progress).run()


class Audit:
    """One run. ``kafka`` and ``ledger`` are what is read; nothing is written."""

    def __init__(
        self,
        kafka: KafkaSide,
        ledger: LedgerSide,
        epoch: Epoch,
        wait_s: float,
        progress: Progress | None = None,
    ) -> None:
        self._kafka, self._ledger, self._epoch = kafka, ledger, epoch
        self._wait_s = wait_s
        self._progress = progress
        self._findings = Findings()
        self._partitions = list(range(epoch.partitions))
        self._logs = {p: StateLog(p) for p in self._partitions}
        self._cuts: dict[int, int] = {}
        self._openings: dict[int, Opening] = {}
        self._agreed: dict[int, Heartbeat] = {}
        self._ranges: dict[str, Any] = {}

    async def run(self) -> AuditReport:
        started_s = monotonic()
        positions = await self._kafka.positions()
        await self._wait_for_parts(positions.next_offsets)
        self._decisions = await self._kafka.decisions(self._epoch.epoch)
        self._counting = Counting(
            self._kafka, self._epoch, self._decisions, positions, self._progress
        )
        self._recount = self._counting.recount
        older = await asyncio.to_thread(self._counting.remember_older, self._ledger)
        await self._counting.count(positions.next_offsets, self._logs)
        await self._kafka.read_states(
            self._logs
        )  # what they claim lies below the tables' positions
        oldest_day = await self._compare_tables(positions.next_offsets)
        await self._wait_for_ledger(self._cuts)
        coverage = await self._compare_ledger()
        await self._compare_fates()
        await self._compare_states_again()
        await self._compare_daily(oldest_day)
        self._compare_something()
        self._findings.notes += _note_of_older(self._epoch, older)
        return self._report(positions, coverage, monotonic() - started_s)

    # -- waiting and counting ----------------------------------------------------------------------

    async def _wait_for_parts(self, wanted: Offsets) -> None:
        """Steps 1 and 2: what is behind at the end of the wait is a difference."""
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._kafka.read_states(self._logs)
            reached = self._through()
            held = await asyncio.to_thread(self._ledger.reached)
            if (_covers(reached, wanted) and _covers(held, wanted)) or not await _pause(deadline_s):
                break
        parts = {"state": reached, "ledger": held}
        if not _covers(reached, wanted):
            tables = [await self._kafka.table(p) for p in self._partitions]
            parts["tables"] = {table.partition: table.next_offset for table in tables}
        for part, offsets in parts.items():
            self._add_behind(part, wanted, offsets)

    async def _wait_for_ledger(self, wanted: Offsets) -> None:
        deadline_s = monotonic() + self._wait_s
        while True:
            held = await asyncio.to_thread(self._ledger.reached)
            if _covers(held, wanted) or not await _pause(deadline_s):
                break
        if not self._findings.by_kind[Kind.BEHIND]:
            self._add_behind("ledger", wanted, held)

    def _add_behind(self, part: str, wanted: Offsets, reached: Offsets) -> None:
        for partition, offset in sorted(wanted.items()):
            found = reached.get(partition, 0)
            if found < offset:
                what = "next offset (not everything has been taken in)"
                self._findings.add(
                    Kind.BEHIND, part, what, offset, found, partition=partition,
                    amounts={"offsets": found - offset},
                )  # fmt: skip

    def _through(self) -> dict[int, int]:
        """By source partition: the offset that every partition's last heartbeat has reached."""
        last = [log.heartbeats[-1].through for log in self._logs.values() if log.heartbeats]
        if len(last) < len(self._logs):
            return {}
        return {p: min(through.get(p, 0) for through in last) for p in self._partitions}

    # -- tables and states -------------------------------------------------------------------------

    async def _compare_tables(self, wanted: Offsets) -> int:
        """Steps 4 and 5; returns the oldest day that any table has cells of."""
        tables: dict[int, int] = {}
        oldest_days: list[int] = []
        older: dict[int, Cells] = {}
        for partition in self._partitions:
            table = await self._kafka.table(partition)
            ends = await self._counting.to_present()
            tables[partition] = table.next_offset
            self._cuts[partition] = table.next_offset
            oldest_days.append(table.oldest_day)
            if self._epoch.epoch > 1 and not older:
                older = await asyncio.to_thread(
                    self._ledger.opening_of_older, len(self._partitions), table.oldest_day
                )
            opening = await self._opening(partition, table, older.get(partition, {}))
            self._compare_table(table, opening)
            self._openings[partition] = opening
            if table.next_offset > ends[partition]:
                self._findings.add(
                    Kind.INPUT_LOST, "tables", "end of usage.events",
                    f"at least {table.next_offset}", ends[partition], partition=partition,
                )  # fmt: skip
        if not self._findings.by_kind[Kind.BEHIND]:
            self._add_behind("tables", wanted, tables)
        ends = await self._kafka.event_ends(self._partitions)
        for log in self._logs.values():
            compare_claims(
                self._findings, log, self._recount.counts, tables, ends, self._epoch.epoch
            )
        return min(oldest_days, default=0)

    async def _opening(self, partition: int, table: Table, older: Cells) -> Opening:
        count = self._recount.counts[partition]
        if not count.is_cut_off:
            return Opening(older)
        below = await asyncio.to_thread(
            self._ledger.opening_of_cut_off, partition, count.counts_from, table.oldest_day
        )
        self._findings.notes.append(
            f"partition {partition}: Kafka no longer holds what is needed to recount offsets below "
            f"{count.counts_from}; up to there tables and states are compared with the ledger only"
        )
        return Opening(sum_cells([below.cells, older]), below.accepted, below.unpriced)

    def _compare_table(self, table: Table, opening: Opening) -> None:
        count = self._recount.counts[table.partition]
        rules = self._recount.rules_below(table.partition, table.next_offset)
        digest = None
        if rules is not None:
            digest = self._decisions.digests.get((table.partition, rules.from_offset))
        compare_table(
            self._findings,
            count,
            table,
            opening,
            epoch=self._epoch.epoch,
            rules_digest=digest if count.records else None,
        )

    async def _compare_states_again(self) -> None:
        """Step 7: each partition of ``budget.state`` until it agrees at some heartbeat."""
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._kafka.read_states(self._logs)
            await self._counting.to_present()
            budgets = budgets_in_force(*await self._kafka.policies())
            openings = [opening.cells for opening in self._openings.values()]
            sums = ScopeSums(self._recount, openings, budgets)
            money = not any(count.unverifiable for count in self._recount.counts.values())
            tried = Findings()
            for partition in self._partitions:
                if partition in self._agreed:
                    continue
                heartbeat = compare_home(
                    tried, self._logs[partition], sums, budgets, len(self._partitions), money=money
                )
                if heartbeat is not None:
                    self._agreed[partition] = heartbeat
                    self._findings.compared["states"] += tried.compared.pop("states", 0)
            if len(self._agreed) == len(self._partitions) or not await _pause(deadline_s):
                break
        self._findings.take(tried)
        if not budgets:
            self._findings.notes.append("no policies: there are no states to compare")
        elif not self._findings.compared["states"] and not tried.count:
            self._findings.add(Kind.NOTHING_COMPARED, "state", "states", "at least one", "none")

    # -- ledger and fates --------------------------------------------------------------------------

    async def _compare_ledger(self) -> dict[int, Coverage]:
        """Step 6: runs, then every row below the cut, then what differs once more in full."""
        recount, topic = self._recount, self._kafka.topics.events
        manifests = await asyncio.to_thread(lambda: list(self._ledger.manifests()))
        await self._counting.to_present()
        coverage = compare_manifests(self._findings, recount, manifests)
        suspects = await asyncio.to_thread(
            lambda: compare_rows(
                self._findings, recount, topic, self._ledger.row_digests(), self._cuts
            )
        )
        places = {(s.partition, s.offset) for s in suspects.first if s.topic == topic}
        known = {
            (partition, offset) for partition, offset in places if partition in recount.counts
            and recount.counts[partition].accepted.find(offset) is not None
        }  # fmt: skip
        expected = {
            (record.partition, record.offset): recount.row_of(record) or {}
            for record in await self._kafka.events_at(known)
        }
        found = await asyncio.to_thread(self._ledger.rows_at, suspects.first)
        add_suspects(self._findings, recount, suspects, expected, found)
        return coverage

    async def _compare_fates(self) -> None:
        since_ms = parse_ms(self._epoch.created_at) if self._epoch.epoch > 1 else 0
        refusals = [refusal async for refusal in self._kafka.refusals(since_ms)]
        compare_refusals(self._findings, self._recount, refusals, self._cuts)
        deadline_s = monotonic() + self._wait_s
        while missing_copies(self._recount, self._cuts) and await _pause(deadline_s):
            await self._counting.to_present()
        compare_copies(self._findings, self._recount, self._cuts)
        await self._compare_blocks()

    async def _compare_blocks(self) -> None:
        """Reads ``usage.priced`` until its blocks reach the cut."""
        starts = await self._kafka.priced_starts(self._partitions)
        chains: dict[int, BlockChain] = {}
        for partition, count in self._recount.counts.items():
            is_whole = not starts[partition] and not count.is_cut_off
            first = self._epoch.starts.get(partition, 0) if is_whole else None
            chains[partition] = BlockChain(count, partition, first)
            chains[partition].priced_next_offset = starts[partition]
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._counting.to_present()
            places = {p: chain.priced_next_offset for p, chain in chains.items()}
            async for priced_offset, block in self._kafka.blocks(self._epoch.epoch, places):
                if block.next_offset > self._recount.counts[block.partition].next_offset:
                    await self._counting.to_present()
                chains[block.partition].feed(self._findings, block, priced_offset)
            reached = {p: chain.reached or 0 for p, chain in chains.items()}
            wanted = {p: c for p, c in self._cuts.items() if self._recount.counts[p].records}
            if _covers(reached, wanted) or not await _pause(deadline_s):
                break
        self._add_behind("blocks", wanted, reached)
        self._ranges["blocks"] = {p: [c.began_at, c.reached] for p, c in chains.items()}

    async def _compare_daily(self, oldest_day: int) -> None:
        """``usage_daily`` from a day on; asked again while inserts are in flight."""
        first = day_text(max(oldest_day, 0))
        self._ranges["usage_daily from"] = first
        found = await asyncio.to_thread(self._ledger.daily_differences, first)
        for _ in range(DAILY_TRIES):
            if not found:
                break
            await asyncio.sleep(POLL_S)
            found = await asyncio.to_thread(self._ledger.daily_differences, first)
        self._findings.compared["usage_daily rows"] += await asyncio.to_thread(
            self._ledger.daily_count, first
        )
        for place, amounts in found:
            day = place.pop("date")
            named = ", ".join(f"{name} {value}" for name, value in place.items() if value)
            self._findings.add(
                Kind.DAILY_CHANGED, "daily", named, "the sum of usage_ledger", "another",
                subject=f"port:{place['port_id']}", day=_day_number(day), amounts=amounts,
            )  # fmt: skip

    # -- the end -----------------------------------------------------------------------------------

    def _compare_something(self) -> None:
        """An audit that compared nothing has failed."""
        findings = self._findings
        for partition, count in self._recount.counts.items():
            if count.without_rules:
                findings.add(
                    Kind.RULES_MISSING, "rules", "records that no rules decided",
                    0, count.without_rules, partition=partition, records=count.without_rules,
                )  # fmt: skip
            for book in count.unverifiable.values():
                findings.add(
                    Kind.NOT_VERIFIABLE, "rules",
                    "prices by a built-in book that is not installed (install the release that "
                    "priced them; amounts of money were not compared)",
                    builtin_book().digest, book.book, partition=partition,
                    offset=book.first_offset, records=book.count,
                    amounts={"records": book.count},
                )  # fmt: skip
        compared = findings.compared
        if not compared["ledger rows"] + compared["rejected"] + compared["cells"]:
            findings.add(Kind.NOTHING_COMPARED, "log", "events to compare", "at least one", "none")

    def _report(
        self, positions: Positions, coverage: Mapping[int, Coverage], seconds: float
    ) -> AuditReport:
        counts, findings = self._recount.counts, self._findings
        fates = Counter[str]()
        totals = Counter[str]()
        for partition, count in counts.items():
            below = count.fates_below(self._cuts[partition])
            totals["unpriced"] += below.pop("unpriced")
            fates.update(below)
            totals.update(_totals(count, self._cuts[partition]))
        return AuditReport(
            findings.count,
            {str(kind): number for kind, number in sorted(findings.by_kind.items())},
            findings.differences,
            self._epoch.epoch,
            {
                "events in Kafka": {
                    p: [positions.starts[p], c.next_offset] for p, c in counts.items()
                },
                "counted again from": {p: c.counts_from for p, c in counts.items()},
                "with the ledger only": {
                    p: [self._epoch.starts.get(p, 0), c.counts_from]
                    for p, c in counts.items()
                    if c.is_cut_off
                },
                "cut": dict(self._cuts),
                "states through": {p: dict(h.through) for p, h in sorted(self._agreed.items())},
                "ledger": {p: list(covered) for p, covered in sorted(coverage.items())},
                **self._ranges,
            },
            dict(findings.compared),
            dict(fates),
            _reasons(counts, self._cuts),
            dict(totals),
            findings.notes,
            self._recount.records,
            round(seconds, 3),
        )


def _note_of_older(epoch: Epoch, ids: int) -> list[str]:
    if epoch.epoch == 1:
        return []
    return [
        f"epoch {epoch.epoch}: what older logs counted, {ids} ids that can still make a duplicate "
        "included, was taken from the ledger"
    ]


def _totals(count: PartitionCount, cut: int) -> dict[str, int]:
    if cut < count.cells.settled_to:
        return {}
    found = Counter[str]()
    for (scope, _), cell in count.cells.below(cut).items():
        if scope == "all":
            found.update({"requests": cell[0], "tokens": cell[1], "cost_nano": cell[2]})
    return found


def _reasons(counts: Mapping[int, PartitionCount], cuts: Offsets) -> dict[str, int]:
    found = Counter(
        REASONS[count.rejected.note(at)]
        for partition, count in counts.items()
        for at in range(count.rejected.below(cuts[partition]))
    )
    return dict(sorted(found.items()))


def _day_number(day: Any) -> int:
    return day.toordinal() - 719_163


def _covers(reached: Offsets, wanted: Offsets) -> bool:
    return all(reached.get(partition, 0) >= offset for partition, offset in wanted.items())


async def _pause(deadline_s: float) -> bool:
    """Waits a moment; False when the time is up."""
    if monotonic() >= deadline_s:
        return False
    await asyncio.sleep(POLL_S)
    return True
