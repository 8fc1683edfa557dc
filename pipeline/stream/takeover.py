"""Taking over partitions: the order that keeps a former owner from being half believed.

    1 own       former owners are fenced, and what they left open is decided (``stream.ownership``)
    2 note      where the partials of each merge partition end now
    3 read      the totals journals of *all* source partitions to what is appended by now, open
                transactions waited for (one whose marker has reached the partials before 2 may
                not have reached the journals yet); the ids and the published states of ours
    4 verify    counts and flush numbers; a journal that does not add up stops the worker
    5 seek      inputs to the tables' positions, partials to what was noted in 2

Partials between 2 and 3 are read twice, which is harmless: they are cumulative and stamped.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.accounts import Accounts
from pipeline.core.budgets import Heartbeat, is_heartbeat
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.totals import SourceTotals
from pipeline.core.windows import DAY_MS
from pipeline.freed_memory import give_back_freed_memory
from pipeline.stream.context import StreamContext
from pipeline.stream.flush import scope_home
from pipeline.stream.inbox import Inbox
from pipeline.stream.journal import JournalReader, Position
from pipeline.stream.merging import VERSION_BITS, MergeStage, heartbeat_in, version_of
from pipeline.stream.ownership import Ownership
from pipeline.stream.policy_board import PolicyBoard
from pipeline.stream.pricing import PriceStage
from pipeline.stream.reader import end_offsets, read_to_end
from pipeline.stream.tables import SourceTable, read_totals, restore_sources
from pipeline.stream.turns import TurnProducer

Seek = Callable[[str, int, int], Awaitable[None]]
"""topic, partition, offset."""


@dataclass(slots=True)
class Takeover:
    """What was taken over: the stages, and the producer that may write for them."""

    producer: TurnProducer
    prices: dict[int, PriceStage]
    merges: dict[int, MergeStage]


async def take_over(
    context: StreamContext,
    sources: list[int],
    homes: list[int],
    board: PolicyBoard,
    arrived: asyncio.Event,
    seek: Seek,
) -> Takeover:
    """Takes source partitions ``sources`` and merge partitions ``homes``.

    ``arrived`` is set whenever a stage has got work. Raises ``CorruptRecord`` or ``Refused`` when
    what is found cannot be trusted.
    """
    stages = _Stages()
    ownership = Ownership(context.client, context.topics, sources, homes)
    producer = await ownership.take()
    try:
        starts = await _partial_ends(context, homes)
        stages.end("own")
        everywhere = list(range(context.partitions)) if homes else sources
        totals = await read_totals(context.client, context.topics, everywhere)
        stages.end("totals")
        own = {p: totals.pop(p) for p in sources}
        horizon_ms = context.settings.dedupe_days * DAY_MS
        tables = await restore_sources(context.client, context.topics, own, horizon_ms)
        own.clear()
        await _verify_positions(context, tables)
        stages.end("tables")
        prices = {
            p: PriceStage(context, tables[p], _seek_to(seek, context.topics.events, p), arrived)
            for p in sources
        }
        inboxes = {
            home: Inbox(starts[home], _seek_to(seek, context.topics.partials, home), arrived)
            for home in homes
        }
        merges = await _merges(context, inboxes, tables, totals, board)
        give_back_freed_memory()  # the journals, as they were read
        stages.end("merges")
    except CorruptRecord:
        await producer.close()
        # Journals that another owner writes on while they are read here do not add up, either.
        await ownership.verify()
        raise
    except BaseException:
        await producer.close()
        raise
    return Takeover(producer, prices, merges)


class _Stages:
    """How long each stage took, as a metric."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def end(self, stage: str) -> None:
        now_s = time.monotonic()
        metrics.TAKEOVER_SECONDS.labels(stage).set(now_s - self._began_s)
        self._began_s = now_s


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
    inboxes: dict[int, Inbox],
    tables: dict[int, SourceTable],
    others: dict[int, JournalReader],
    board: PolicyBoard,
) -> dict[int, MergeStage]:
    if not inboxes:
        return {}
    accounts = {home: _accounts(context, home) for home in inboxes}
    applied: dict[int, int] = {}
    for source in range(context.partitions):
        await asyncio.sleep(0)  # as in ``restore_sources``
        if source in tables:
            cells, position = tables[source].totals, tables[source].position
        else:
            cells = SourceTotals()
            position = others.pop(source).restore(cells)
        _verify_epoch(context, source, position)
        applied[source] = position.flush
        _apply_cells(context, accounts, source, cells)
    for policy in board.policies():
        for account in accounts.values():
            account.put_policy(policy)
    published = await _restore_published(context, accounts)
    return {
        home: MergeStage(
            context,
            home,
            accounts[home],
            dict(applied),
            published[home].version,
            list(tables),
            inbox,
            _last_beat(published[home], context.epoch),
        )
        for home, inbox in inboxes.items()
    }


def _apply_cells(
    context: StreamContext, accounts: dict[int, Accounts], source: int, cells: SourceTotals
) -> None:
    for value in cells.values():
        home = accounts.get(scope_home(value[0], context.partitions))
        if home is not None:
            home.restore_cell(source, value)


def _verify_epoch(context: StreamContext, source: int, position: Position) -> None:
    if position.epoch not in (0, context.epoch):
        raise CorruptRecord(
            f"{context.topics.totals} partition {source} is of epoch {position.epoch}, "
            f"not {context.epoch}"
        )


def _accounts(context: StreamContext, home: int) -> Accounts:
    partitions = context.partitions
    return Accounts(lambda scope: scope_home(scope, partitions) == home, context.clock.now_ms())


@dataclass(slots=True)
class _Published:
    """What a partition of ``budget.state`` says at its end: the version to go on from, the last
    heartbeat as it was read, and the newest value of each key."""

    version: int
    beat: ConsumerRecord | None = None
    values: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])


def _last_beat(published: _Published, epoch: int) -> Heartbeat | None:
    return None if published.beat is None else heartbeat_in(published.beat, epoch)


async def _restore_published(
    context: StreamContext, accounts: dict[int, Accounts]
) -> dict[int, _Published]:
    """Feeds what was published last, and returns it by partition."""
    found = {home: _Published(context.epoch << VERSION_BITS) for home in accounts}
    async for records in read_to_end(context.client, context.topics.state, list(accounts)):
        published = found[records[0].partition]
        for record in records:
            published.version = max(published.version, version_of(record))
            key = (record.key or b"").decode(errors="replace")
            if is_heartbeat(key):
                published.beat = record
            else:
                published.values[key] = record.value
    for home, published in found.items():
        for key, value in published.values.items():
            accounts[home].restore_published(key, value)
        published.values.clear()
    return found


def _seek_to(seek: Seek, topic: str, partition: int) -> Callable[[int], Awaitable[None]]:
    async def seek_partition(offset: int) -> None:
        await seek(topic, partition, offset)

    return seek_partition
