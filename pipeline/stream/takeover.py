"""Taking over partitions: the order that keeps a former owner from being half believed.

    1 fence     a transactional producer per source partition: former owners are shut out and
                what they left open is decided
    2 note      where the partials of each merge partition end now
    3 read      the totals journals of *all* source partitions to what is appended by now, open
                transactions waited for (one whose marker has reached the partials before 2 may
                not have reached the journals yet); the ids and the published states of ours
    4 verify    counts and flush numbers; a journal that does not add up stops the worker
    5 seek      inputs to the tables' positions, partials to what was noted in 2

Partials between 2 and 3 are read twice, which is harmless: they are cumulative and stamped.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiokafka import AIOKafkaProducer

from pipeline.core.accounts import Accounts
from pipeline.core.budgets import is_heartbeat
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.totals import SourceTotals
from pipeline.core.windows import DAY_MS
from pipeline.stream.context import StreamContext
from pipeline.stream.flush import scope_home
from pipeline.stream.journal import JournalReader, Position
from pipeline.stream.merging import VERSION_BITS, VERSION_STEP, MergeStage, version_of
from pipeline.stream.policy_board import PolicyBoard
from pipeline.stream.reader import end_offsets, read_to_end
from pipeline.stream.tables import SourceTable, read_ids, read_totals, restore_source
from pipeline.stream.transaction import FencedProducer

Seek = Callable[[str, int, int], Awaitable[None]]
"""topic, partition, offset."""


@dataclass(slots=True)
class Takeover:
    """What was taken over: source tables with their fenced producers, and merge stages."""

    sources: dict[int, tuple[SourceTable, FencedProducer]]
    merges: dict[int, MergeStage]


async def take_over(
    context: StreamContext,
    sources: list[int],
    homes: list[int],
    board: PolicyBoard,
    publisher: AIOKafkaProducer,
    seek: Seek,
) -> Takeover:
    """Takes source partitions ``sources`` and merge partitions ``homes``.

    Raises ``CorruptRecord`` or ``Refused`` when what is found cannot be trusted.
    """
    producers = await _fence(context, sources)
    try:
        starts = await _partial_ends(context, homes)
        everywhere = list(range(context.partitions)) if homes else sources
        totals = await read_totals(context.client, context.topics, everywhere)
        ids = await read_ids(context.client, context.topics, sources)
        horizon_ms = context.settings.dedupe_days * DAY_MS
        tables = {p: restore_source(p, totals[p], ids[p], horizon_ms) for p in sources}
        await _verify_positions(context, tables)
        merges = await _merges(context, homes, totals, starts, board, publisher, seek)
    except BaseException:
        await asyncio.gather(*(p.close() for p in producers.values()), return_exceptions=True)
        raise
    return Takeover({p: (tables[p], producers[p]) for p in sources}, merges)


async def _fence(context: StreamContext, sources: list[int]) -> dict[int, FencedProducer]:
    producers = {
        p: FencedProducer(context.client, context.transactional_id(p), context.group_id)
        for p in sources
    }
    await asyncio.gather(*(producer.fence() for producer in producers.values()))
    return producers


async def _partial_ends(context: StreamContext, homes: list[int]) -> dict[int, int]:
    if not homes:
        return {}
    return await end_offsets(context.client, context.topics.partials, homes)


async def _verify_positions(context: StreamContext, tables: dict[int, SourceTable]) -> None:
    """An input log that ends before its table's position is not the one the table counted."""
    if not tables:
        return
    ends = await end_offsets(context.client, context.topics.events, list(tables))
    for partition, table in tables.items():
        if table.position.epoch not in (0, context.epoch):
            raise Refused(
                f"{context.topics.totals} partition {partition} belongs to epoch "
                f"{table.position.epoch}, the log to epoch {context.epoch}"
            )
        if table.position.next_offset > ends[partition]:
            raise Refused(
                f"{context.topics.events} partition {partition} ends at offset "
                f"{ends[partition]}, but its table has counted up to "
                f"{table.position.next_offset}: the topic was recreated or lost records"
            )


async def _merges(
    context: StreamContext,
    homes: list[int],
    totals: dict[int, JournalReader],
    starts: dict[int, int],
    board: PolicyBoard,
    publisher: AIOKafkaProducer,
    seek: Seek,
) -> dict[int, MergeStage]:
    if not homes:
        return {}
    accounts = {home: _accounts(context, home) for home in homes}
    applied: dict[int, int] = {}
    for source, reader in totals.items():
        cells = SourceTotals()
        position = reader.restore(cells)
        _verify_epoch(context, source, position)
        applied[source] = position.flush
        for cell in cells.cells():
            home = accounts.get(scope_home(cell.scope, context.partitions))
            if home is not None:
                home.apply_cell(source, cell.scope, cell.day, cell.totals())
    for home in homes:
        for policy in board.policies():
            accounts[home].put_policy(policy)
    versions = await _restore_published(context, accounts)
    state_ends = await end_offsets(context.client, context.topics.state, homes)
    return {
        home: MergeStage(
            context,
            home,
            accounts[home],
            dict(applied),
            versions[home],
            state_ends[home],
            publisher,
            starts[home],
            _seek_to(seek, context.topics.partials, home),
        )
        for home in homes
    }


def _verify_epoch(context: StreamContext, source: int, position: Position) -> None:
    if position.epoch not in (0, context.epoch):
        raise CorruptRecord(
            f"{context.topics.totals} partition {source} is of epoch {position.epoch}, "
            f"not {context.epoch}"
        )


def _accounts(context: StreamContext, home: int) -> Accounts:
    partitions = context.partitions
    return Accounts(lambda scope: scope_home(scope, partitions) == home, context.clock.now_ms())


async def _restore_published(
    context: StreamContext, accounts: dict[int, Accounts]
) -> dict[int, int]:
    """Feeds what was published last; returns the version each partition goes on from."""
    versions = dict.fromkeys(accounts, context.epoch << VERSION_BITS)
    last: dict[int, dict[str, bytes | None]] = {home: {} for home in accounts}
    async for records in read_to_end(context.client, context.topics.state, list(accounts)):
        home = records[0].partition
        for record in records:
            versions[home] = max(versions[home], version_of(record))
            key = (record.key or b"").decode(errors="replace")
            if not is_heartbeat(key):
                last[home][key] = record.value
    for home, published in last.items():
        for key, value in published.items():
            accounts[home].restore_published(key, value)
    # A former owner may have sent one more flush that is not in the log yet.
    return {home: version + VERSION_STEP for home, version in versions.items()}


def _seek_to(seek: Seek, topic: str, partition: int) -> Callable[[int], Awaitable[None]]:
    async def seek_partition(offset: int) -> None:
        await seek(topic, partition, offset)

    return seek_partition
