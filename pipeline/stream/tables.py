"""The tables of the stream: what a partition remembers, and how it is read back.

A *source table* belongs to one partition of ``usage.events``: its cells, the ids it has seen and
its position, written in the transaction of each flush. Reading back always goes to the end of the
log as of the call, open transactions decided, and is verified before it is used.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.cells import Totals
from pipeline.core.dedupe import DedupeWindow
from pipeline.core.totals import SourceTotals
from pipeline.native.ids import id_search
from pipeline.stream.id_journal import IdJournal, IdJournalReader
from pipeline.stream.journal import Journal, JournalReader, Position
from pipeline.stream.reader import end_offsets, read_to_end
from pipeline.stream.topics import Topics


@dataclass(slots=True)
class SourceTable:
    """One source partition's memory; ``position`` is what the last flush committed."""

    partition: int
    totals: SourceTotals
    dedupe: DedupeWindow
    position: Position
    journal: Journal
    ids: IdJournal


@dataclass(slots=True)
class TableView:
    """A source table as an auditor sees it: nothing here can be written back."""

    partition: int
    position: Position
    cells: dict[tuple[str, int], Totals] = field(default_factory=dict[tuple[str, int], Totals])

    @property
    def next_offset(self) -> int:
        """The input offset up to which (exclusive) the cells count."""
        return self.position.next_offset


async def read_totals(
    client: Mapping[str, Any], topics: Topics, partitions: list[int]
) -> dict[int, JournalReader]:
    """Reads the totals journals of ``partitions`` to their end.

    The end is everything appended before the call, open transactions decided: what a reader of
    another topic saw of a transaction before the call is then seen here, too.
    """
    end = await end_offsets(client, topics.totals, partitions, committed=False)
    readers = {p: JournalReader(f"{topics.totals} partition {p}") for p in partitions}
    async for records in read_to_end(client, topics.totals, partitions, end=end):
        reader = readers[records[0].partition]
        for record in records:
            reader.feed(record.key, record.value, record.offset)
    return readers


async def restore_sources(
    client: Mapping[str, Any],
    topics: Topics,
    totals: Mapping[int, JournalReader],
    horizon_ms: int,
) -> dict[int, SourceTable]:
    """The tables that go on where their journals end; ``totals`` holds those of the totals.

    Reads the journals of ids. Raises ``CorruptRecord`` when the two do not agree.
    """
    tables: dict[int, SourceTable] = {}
    readers: dict[int, IdJournalReader] = {}
    for partition, reader in totals.items():
        await asyncio.sleep(0)  # a large table takes a while, and health and heartbeats go on
        cells, journal, dedupe = SourceTotals(), Journal(), DedupeWindow(horizon_ms, id_search())
        position = reader.restore(cells, journal)
        tables[partition] = SourceTable(partition, cells, dedupe, position, journal, IdJournal())
        name = f"{topics.ids} partition {partition}"
        readers[partition] = IdJournalReader(name, dedupe, position.watermark_ms - horizon_ms)
    async for records in read_to_end(client, topics.ids, list(totals)):
        reader = readers[records[0].partition]
        for record in records:
            reader.feed(record.key, record.value, record.offset)
    for partition, table in tables.items():
        await asyncio.sleep(0)
        table.ids = readers[partition].restore(table.position.ids)
    return tables


async def read_tables(
    client: Mapping[str, Any], topics: Topics, partitions: list[int]
) -> dict[int, TableView]:
    """The cells and position of each source partition, as committed at the call."""
    views: dict[int, TableView] = {}
    for partition, reader in (await read_totals(client, topics, partitions)).items():
        totals = SourceTotals()
        position = reader.restore(totals)
        cells = {(scope, day): amounts for scope, day, amounts in totals.cells()}
        views[partition] = TableView(partition, position, cells)
    return views
