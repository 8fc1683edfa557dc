"""Counting again: feeds the recount from Kafka, up to the present, in bounded memory."""

import asyncio
from collections.abc import Callable, Iterable, Mapping

from pipeline.audit.kafka_side import Decisions, KafkaSide, Positions
from pipeline.audit.ledger_side import LedgerSide
from pipeline.audit.recount.count import DAY_MS, Recount
from pipeline.audit.recount.pseudonyms import Pseudonyms
from pipeline.audit.state_log import StateLog
from pipeline.core.book import builtin_book
from pipeline.core.windows import parse_ms
from pipeline.stream.epoch import Epoch

FEED_RECORDS = 500
CATCH_UP_ROUNDS = 5
CATCH_UP_RECORDS = 20_000

Offsets = Mapping[int, int]
Progress = Callable[[int, int], None]
"""Takes how many records were counted again, and how many there are."""


class Counting:
    """Owns the recount and how far it was fed."""

    def __init__(
        self,
        kafka: KafkaSide,
        epoch: Epoch,
        decisions: Decisions,
        positions: Positions,
        pseudonyms: Pseudonyms,
        progress: Progress | None,
    ) -> None:
        self._kafka, self._epoch, self._progress = kafka, epoch, progress
        self._partitions = list(range(epoch.partitions))
        self._decisions = decisions
        self._total = 0
        self.recount = Recount(
            epoch.partitions,
            decisions.rules,
            decisions.rates,
            positions.starts,
            epoch.starts,
            builtin_book().digest,
            pseudonyms,
        )

    def remember_older(self, ledger: LedgerSide) -> int:
        """Gives the recount the ids of older logs that may make a duplicate here; how many.

        Blocks while the ledger answers.
        """
        if self._epoch.epoch == 1:
            return 0
        rules = [one for records in self._decisions.rules.values() for one in records]
        horizon_ms = max((one.dedupe_days for one in rules), default=0) * DAY_MS
        since_ms = parse_ms(self._epoch.created_at) - horizon_ms - DAY_MS
        number = 0
        for port_id, event_id, recorded_at_ms in ledger.older_ids(since_ms):
            self.recount.remember(port_id, event_id, recorded_at_ms)
            number += 1
        return number

    async def count(self, ends: Offsets, logs: Mapping[int, StateLog]) -> None:
        """Counts up to ``ends`` and on to the present.

        What nobody will ask for any more is settled, so memory does not grow.
        """
        for _ in range(CATCH_UP_ROUNDS):
            for partition, offset in (await self._settled(logs.values())).items():
                self.recount.counts[partition].cells.settle(offset)
            before = self.recount.records
            await self._feed(ends)
            if self.recount.records - before < CATCH_UP_RECORDS:
                break
            await self._kafka.read_states(logs)
            ends = await self._kafka.event_ends(self._partitions)

    async def to_present(self) -> dict[int, int]:
        """Counts what has arrived since; returns where the log ends."""
        ends = await self._kafka.event_ends(self._partitions)
        await self._feed(ends)
        return ends

    async def _settled(self, logs: Iterable[StateLog]) -> dict[int, int]:
        """Below which offset nobody will compare tables or states any more."""
        found: dict[int, int] = {}
        kept = [heartbeat.through for log in logs for heartbeat in log.heartbeats]
        for partition in self._partitions:
            table = await self._kafka.table(partition)
            found[partition] = min([table.next_offset, *(t.get(partition, 0) for t in kept)])
        return found

    async def _feed(self, ends: Offsets) -> None:
        counts = self.recount.counts
        start = {p: count.next_offset for p, count in counts.items()}
        self._total = max(self._total, sum(max(0, ends[p] - counts[p].starts_at) for p in counts))
        async for records in self._kafka.events(start, ends):
            for at in range(0, len(records), FEED_RECORDS):
                self.recount.feed(records[at : at + FEED_RECORDS])
                await asyncio.sleep(0)  # let the clients' heartbeats through
            if self._progress is not None:
                self._progress(self.recount.records, self._total)
