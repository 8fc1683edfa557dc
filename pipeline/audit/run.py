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
from contextlib import closing
from time import monotonic

from pipeline.audit.corrections import CorrectionAudit
from pipeline.audit.counting import Counting, Offsets, Progress
from pipeline.audit.destinations import Destinations
from pipeline.audit.differences import Findings, Kind
from pipeline.audit.kafka_side import KafkaSide
from pipeline.audit.ledger_side import LedgerSide, pseudonym_key
from pipeline.audit.recount.cells import Cells, sum_cells
from pipeline.audit.recount.policies import budgets_in_force
from pipeline.audit.recount.prices import RateHistory
from pipeline.audit.recount.pseudonyms import Pseudonyms
from pipeline.audit.report import AuditReport, report_of
from pipeline.audit.state_log import Heartbeat, StateLog
from pipeline.audit.states import ScopeSums, compare_claims, compare_home
from pipeline.audit.tables import ForgottenCells, Opening, Table, compare_table
from pipeline.audit.waiting import add_behind, covers, pause
from pipeline.core.book import builtin_book
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import connect, ledger_address, ledger_errors, ledger_reader
from pipeline.settings import Settings
from pipeline.stream.epoch import Epoch
from pipeline.stream.topics import Topics

WAIT_S = 30.0


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
        pseudonyms = Pseudonyms()
        if forgotten := await asyncio.to_thread(ledger.forgotten):
            key = await asyncio.to_thread(_pseudonym_key, settings)
            pseudonyms = Pseudonyms(key, frozenset(forgotten))
        return await Audit(kafka, ledger, epoch, wait_s, progress, pseudonyms).run()


def _pseudonym_key(settings: Settings) -> bytes:
    """The key that readers may not see."""
    address = ledger_address(settings, write=True)
    with closing(connect(address)) as client, ledger_errors(address):
        return bytes.fromhex(pseudonym_key(client))


class Audit:
    """One run. ``kafka`` and ``ledger`` are what is read; nothing is written."""

    def __init__(
        self,
        kafka: KafkaSide,
        ledger: LedgerSide,
        epoch: Epoch,
        wait_s: float,
        progress: Progress | None = None,
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self._pseudonyms = pseudonyms or Pseudonyms()
        self._kafka, self._ledger, self._epoch = kafka, ledger, epoch
        self._wait_s = wait_s
        self._progress = progress
        self._findings = Findings()
        self._partitions = list(range(epoch.partitions))
        self._logs = {p: StateLog(p) for p in self._partitions}
        self._cuts: dict[int, int] = {}
        self._openings: dict[int, Opening] = {}
        self._agreed: dict[int, Heartbeat] = {}

    async def run(self) -> AuditReport:
        started_s = monotonic()
        positions = await self._kafka.positions()
        await self._wait_for_parts(positions.next_offsets)
        self._decisions = await self._kafka.decisions(self._epoch.epoch)
        self._counting = Counting(
            self._kafka, self._epoch, self._decisions, positions, self._pseudonyms, self._progress
        )
        self._recount = self._counting.recount
        self._corrections = self._correction_audit()
        older = await asyncio.to_thread(self._counting.remember_older, self._ledger)
        await self._counting.count(positions.next_offsets, self._logs)
        # Read before the tables: what a heartbeat claims must lie below their positions.
        await self._kafka.read_states(self._logs)
        oldest_day = await self._compare_tables(positions.next_offsets)
        destinations = Destinations(
            self._kafka, self._ledger, self._epoch, self._counting, self._findings, self._wait_s
        )
        await destinations.compare(self._cuts, oldest_day)
        await self._corrections.compare(self._findings)
        await self._compare_states()
        self._compare_something()
        self._findings.notes += _note_of_older(self._epoch, older)
        self._findings.notes += await asyncio.to_thread(self._ledger.left_months)
        if number := len(self._pseudonyms.forgotten):
            self._findings.notes.append(f"{number} users are forgotten: their states not compared")
        ranges = {
            "events in Kafka": {
                p: [positions.starts[p], count.next_offset]
                for p, count in self._recount.counts.items()
            },
            "states through": {p: dict(h.through) for p, h in sorted(self._agreed.items())},
            **destinations.ranges,
        }
        seconds = monotonic() - started_s
        return report_of(self._findings, self._recount, self._epoch, self._cuts, ranges, seconds)

    def _correction_audit(self) -> CorrectionAudit:
        history = RateHistory(self._decisions.rates)
        return CorrectionAudit(
            self._kafka,
            self._ledger,
            self._epoch.epoch,
            self._epoch.partitions,
            history.version,
            builtin_book().digest,
            self._wait_s,
        )

    # -- waiting and counting ----------------------------------------------------------------------

    async def _wait_for_parts(self, wanted: Offsets) -> None:
        """Steps 1 and 2: what is behind at the end of the wait is a difference."""
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._kafka.read_states(self._logs)
            reached = self._through()
            held = await asyncio.to_thread(self._ledger.reached)
            if (covers(reached, wanted) and covers(held, wanted)) or not await pause(deadline_s):
                break
        parts = {"state": reached, "ledger": held}
        if not covers(reached, wanted):
            tables = [await self._kafka.table(p) for p in self._partitions]
            parts["tables"] = {table.partition: table.next_offset for table in tables}
        for part, offsets in parts.items():
            add_behind(self._findings, part, wanted, offsets)

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
        forgotten = ForgottenCells(self._pseudonyms)
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
            corrected = await self._corrections.cells(partition, table.resolved_offset)
            self._compare_table(table, opening.with_cells(corrected), forgotten)
            self._openings[partition] = opening
            if table.next_offset > ends[partition]:
                self._findings.add(
                    Kind.INPUT_LOST, "tables", "end of usage.events",
                    f"at least {table.next_offset}", ends[partition], partition=partition,
                )  # fmt: skip
        money = not any(count.unverifiable for count in self._recount.counts.values())
        forgotten.compare(self._findings, money=money)
        if not self._findings.by_kind[Kind.BEHIND]:
            add_behind(self._findings, "tables", wanted, tables)
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

    def _compare_table(self, table: Table, opening: Opening, forgotten: ForgottenCells) -> None:
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
            forgotten=forgotten,
        )

    async def _compare_states(self) -> None:
        """Step 7: each partition of ``budget.state`` until it agrees at some heartbeat."""
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._kafka.read_states(self._logs)
            await self._counting.to_present()
            budgets = budgets_in_force(*await self._kafka.policies())
            openings = [opening.cells for opening in self._openings.values()]
            openings += await self._corrections.all_cells()
            sums = ScopeSums(self._recount, openings, budgets)
            money = not any(count.unverifiable for count in self._recount.counts.values())
            tried = Findings()
            for partition in self._partitions:
                if partition in self._agreed:
                    continue
                heartbeat = compare_home(
                    tried, self._logs[partition], sums, budgets, len(self._partitions),
                    money=money, hides=self._pseudonyms.hides,
                )  # fmt: skip
                if heartbeat is not None:
                    self._agreed[partition] = heartbeat
                    self._findings.compared["states"] += tried.compared.pop("states", 0)
            if len(self._agreed) == len(self._partitions) or not await pause(deadline_s):
                break
        self._findings.take(tried)
        if not budgets:
            self._findings.notes.append("no policies: there are no states to compare")
        elif not self._findings.compared["states"] and not tried.count:
            self._findings.add(Kind.NOTHING_COMPARED, "state", "states", "at least one", "none")

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


def _note_of_older(epoch: Epoch, ids: int) -> list[str]:
    if epoch.epoch == 1:
        return []
    return [
        f"epoch {epoch.epoch}: what older logs counted, {ids} ids that can still make a duplicate "
        "included, was taken from the ledger"
    ]
