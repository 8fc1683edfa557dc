"""Where everything ended, below the cut: ledger rows and runs, rejected records, copies, blocks."""

import asyncio
from time import monotonic
from typing import Any

from pipeline.audit.counting import Counting, Offsets
from pipeline.audit.differences import Findings, Kind, day_text
from pipeline.audit.fates import BlockChain, compare_copies, compare_refusals, missing_copies
from pipeline.audit.kafka_side import KafkaSide
from pipeline.audit.ledger_side import LedgerSide
from pipeline.audit.manifests import Coverage, compare_manifests
from pipeline.audit.rows import add_suspects, compare_rows
from pipeline.audit.waiting import add_behind, covers, pause
from pipeline.core.windows import parse_ms
from pipeline.stream.epoch import Epoch

DAILY_TRIES = 8
_UNIX_DAY = 719_163


class Destinations:
    """Compares what lies below ``cuts`` with the recount; differences go to ``findings``."""

    def __init__(
        self,
        kafka: KafkaSide,
        ledger: LedgerSide,
        epoch: Epoch,
        counting: Counting,
        findings: Findings,
        wait_s: float,
    ) -> None:
        self._kafka, self._ledger, self._epoch = kafka, ledger, epoch
        self._counting, self._findings, self._wait_s = counting, findings, wait_s
        self._partitions = list(range(epoch.partitions))
        self._cuts: Offsets = {}
        self.ranges: dict[str, Any] = {}

    async def compare(self, cuts: Offsets, oldest_day: int) -> None:
        """Step 6 of the audit; ``oldest_day`` is the first that ``usage_daily`` is compared at."""
        self._cuts = cuts
        await self._wait_for_ledger(cuts)
        coverage = await self._compare_ledger()
        self.ranges["ledger"] = {p: list(covered) for p, covered in sorted(coverage.items())}
        await self._compare_fates()
        await self._compare_daily(oldest_day)

    async def _wait_for_ledger(self, wanted: Offsets) -> None:
        deadline_s = monotonic() + self._wait_s
        while True:
            held = await asyncio.to_thread(self._ledger.reached)
            if covers(held, wanted) or not await pause(deadline_s):
                break
        if not self._findings.by_kind[Kind.BEHIND]:
            add_behind(self._findings, "ledger", wanted, held)

    async def _compare_ledger(self) -> dict[int, Coverage]:
        """Step 6: runs, then every row below the cut, then what differs once more in full."""
        recount, topic = self._counting.recount, self._kafka.topics.events
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
        compare_refusals(self._findings, self._counting.recount, refusals, self._cuts)
        deadline_s = monotonic() + self._wait_s
        while missing_copies(self._counting.recount, self._cuts) and await pause(deadline_s):
            await self._counting.to_present()
        compare_copies(self._findings, self._counting.recount, self._cuts)
        await self._compare_blocks()

    async def _compare_blocks(self) -> None:
        """Reads ``usage.priced`` until its blocks reach the cut."""
        starts = await self._kafka.priced_starts(self._partitions)
        chains: dict[int, BlockChain] = {}
        for partition, count in self._counting.recount.counts.items():
            is_whole = not starts[partition] and not count.is_cut_off
            first = self._epoch.starts.get(partition, 0) if is_whole else None
            chains[partition] = BlockChain(count, partition, first)
            chains[partition].priced_next_offset = starts[partition]
        deadline_s = monotonic() + self._wait_s
        while True:
            await self._counting.to_present()
            places = {p: chain.priced_next_offset for p, chain in chains.items()}
            async for priced_offset, block in self._kafka.blocks(self._epoch.epoch, places):
                if block.next_offset > self._counting.recount.counts[block.partition].next_offset:
                    await self._counting.to_present()
                chains[block.partition].feed(self._findings, block, priced_offset)
            reached = {p: chain.reached or 0 for p, chain in chains.items()}
            wanted = {
                p: c for p, c in self._cuts.items() if self._counting.recount.counts[p].records
            }
            if covers(reached, wanted) or not await pause(deadline_s):
                break
        add_behind(self._findings, "blocks", wanted, reached)
        self.ranges["blocks"] = {p: [c.began_at, c.reached] for p, c in chains.items()}

    async def _compare_daily(self, oldest_day: int) -> None:
        """``usage_daily`` from a day on; asked again while inserts are in flight."""
        first = day_text(max(oldest_day, 0))
        self.ranges["usage_daily from"] = first
        found = await asyncio.to_thread(self._ledger.daily_differences, first)
        for _ in range(DAILY_TRIES):
            if not found:
                break
            await pause(monotonic() + 1)
            found = await asyncio.to_thread(self._ledger.daily_differences, first)
        self._findings.compared["usage_daily rows"] += await asyncio.to_thread(
            self._ledger.daily_count, first
        )
        for place, amounts in found:
            day = place.pop("date")
            named = ", ".join(f"{name} {value}" for name, value in place.items() if value)
            self._findings.add(
                Kind.DAILY_CHANGED, "daily", named, "the sum of usage_ledger", "another",
                subject=f"port:{place['port_id']}", day=day.toordinal() - _UNIX_DAY,
                amounts=amounts,
            )  # fmt: skip
