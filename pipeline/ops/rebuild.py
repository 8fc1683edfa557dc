"""``tallyport rebuild``: an empty Kafka continues what the ledger holds.

The order of side effects (a fault point lies between each pair):

    0  discard    only when asked to: former workers are fenced, the tables' topics deleted
    1  begin      the record of a new epoch, ``restoring``: from here on no worker starts
    2  join       the ledger knows the epoch: sinks of older logs are refused
    3  registers  policies and rates whose keys are not there yet, in one transaction
    4  ids        the event ids of the dedupe horizon, to the journals of their homes
    5  tables     the cells of all days still needed, and where each table stands
    6  verify     tables are read back and compared with the ledger, which must not have moved
    7  ready      the second record of the epoch: workers may count

A crash anywhere leaves an epoch that no worker counts in. The next restore finds it, fences the
former one and does 2 to 7 again: what is there already is written once more or left out.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced
from clickhouse_connect.driver.client import Client

from pipeline.core.cells import Totals, sum_totals
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.core.timestamps import parse_rfc3339_us
from pipeline.core.totals import SourceTotals
from pipeline.faults import point
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.client import ledger_address, ledger_errors, open_writer
from pipeline.ledger.currency import check_currency
from pipeline.ledger.manifests import LogEpoch, join_epoch, known_epochs
from pipeline.ledger.migrate import pending
from pipeline.ledger.opening import (
    accepted_ids,
    control_sums,
    extent,
    opening_cells,
)
from pipeline.ops.rebuild_plan import Plan, check_remains, make_plan
from pipeline.ops.rebuild_report import RebuildReport
from pipeline.settings import Settings
from pipeline.stream.epoch import Epoch, read_epoch
from pipeline.stream.journal import Position
from pipeline.stream.opening import FencingProducer, OpeningWriter, restore_registers
from pipeline.stream.ownership import Ownership
from pipeline.stream.remains import Remains, discard_tables, find_remains
from pipeline.stream.tables import read_totals
from pipeline.stream.topics import Topics, create_or_check

T = TypeVar("T")
Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""What is being done and how much of it there is; what it yields takes the amount done."""


@contextlib.contextmanager
def silent(_label: str, _total: int | None) -> Generator[Callable[[int], None]]:
    """Reports nothing."""
    yield lambda _done: None


async def restore_is_due(settings: Settings) -> bool:
    """Whether this Kafka waits for a restore: an unfinished one, or it is empty and the ledger is
    not."""
    epoch = await read_epoch(client_kwargs(settings), Topics(settings.topic_prefix))
    if epoch is not None:
        return epoch.state == "restoring"
    return bool(await asyncio.to_thread(_known, settings))


async def rebuild(
    settings: Settings,
    *,
    discard: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> RebuildReport:
    """Restores totals, policies, rates and recent event ids from the ledger into Kafka.

    ``discard`` throws away what is left of the tables first. Raises ``Refused`` when Kafka has
    tables, or the ledger nothing to restore; ``TallyportError`` when a server cannot be used.
    """
    await check_kafka(settings)
    address = ledger_address(settings, write=True)
    ledger = await asyncio.to_thread(open_writer, settings)
    try:
        with ledger_errors(address):
            return await _Rebuild(settings, ledger, discard, progress).run(dry_run)
    except (ProducerFenced, InvalidProducerEpoch) as error:
        raise Refused(
            "another `tallyport rebuild`, or a worker, has taken over this Kafka meanwhile; "
            "nothing that this one had not finished counts"
        ) from error
    finally:
        await asyncio.to_thread(ledger.close)


def _known(settings: Settings) -> list[LogEpoch]:
    address = ledger_address(settings, write=True)
    with contextlib.closing(open_writer(settings)) as ledger, ledger_errors(address):
        return known_epochs(ledger)


class _Rebuild:
    def __init__(
        self, settings: Settings, ledger: Client, discard: bool, progress: Progress
    ) -> None:
        self._settings = settings
        self._client = client_kwargs(settings)
        self._topics = Topics(settings.topic_prefix)
        self._ledger = ledger
        self._discard = discard
        self._progress = progress

    async def run(self, dry_run: bool) -> RebuildReport:
        if missing := await asyncio.to_thread(pending, self._ledger):
            raise Refused(
                f"the ledger lacks {len(missing)} migrations (first {missing[0]}); "
                "run `tallyport migrate`"
            )
        await asyncio.to_thread(check_currency, self._ledger, self._settings.currency)
        if not dry_run:
            await create_or_check(self._settings)
        remains = await find_remains(self._client, self._topics)
        discards = self._discard and bool(remains.epoch or remains.filled)
        if discards:
            remains = Remains(remains.topic_ids, None, [], remains.events)
        check_remains(remains, self._topics, self._settings.partition_count)
        plan = await self._plan(remains)
        report = _report(plan, dry_run, discards)
        if dry_run:
            return await self._foresee(plan, report)
        if discards:
            await self._discard_tables()
            plan = await self._plan(await find_remains(self._client, self._topics))
        await self._restore(plan, report)
        return report

    async def _plan(self, remains: Remains) -> Plan:
        return await make_plan(self._settings, self._client, self._topics, self._ledger, remains)

    async def _discard_tables(self) -> None:
        """Step 0."""
        everywhere = list(range(self._settings.partition_count))
        ownership = Ownership(self._client, self._topics, everywhere, everywhere)
        await (await ownership.take()).close()
        await discard_tables(self._client, self._topics)
        await create_or_check(self._settings)

    async def _restore(self, plan: Plan, report: RebuildReport) -> None:
        """Steps 1 to 7."""
        topics, partitions = self._topics, plan.epoch.partitions
        async with FencingProducer(self._client, topics.restore_transactional_id) as producer:
            writer = OpeningWriter(producer, topics, partitions)
            if not plan.resumed:
                await writer.write_epoch(plan.epoch)
            point("rebuild-begun")
            await self._check_begun(plan.epoch)
            await asyncio.to_thread(join_epoch, self._ledger, _log_of(plan.epoch))
            point("rebuild-joined")
            report.rates, report.policies = await restore_registers(
                self._client,
                self._topics,
                [(r.epoch, r.offset, r.recorded_at_ms, r.key, r.value) for r in plan.rates],
                {r.key: r.value for r in plan.policies},
            )
            point("rebuild-registers")
            ids = await self._write_ids(writer, plan)
            report.ids = sum(ids.values())
            point("rebuild-ids")
            positions = await self._write_tables(writer, plan, ids)
            report.cells = sum(position.cells for position in positions.values())
            point("rebuild-tables")
            await self._verify(plan, positions)
            point("rebuild-verified")
            await writer.write_epoch(msgspec.structs.replace(plan.epoch, state="ready"))
            point("rebuild-ready")

    async def _check_begun(self, epoch: Epoch) -> None:
        begun = await read_epoch(self._client, self._topics)
        if begun is None or begun.id != epoch.id or begun.state != "restoring":
            raise Refused(
                f"{self._topics.epoch} says that another process has begun an epoch meanwhile; "
                "see what it is, then run `tallyport rebuild` again"
            )

    async def _write_ids(self, writer: OpeningWriter, plan: Plan) -> dict[int, int]:
        source = accepted_ids(self._ledger, plan.epoch.epoch, plan.ids_from_ms, plan.ids_until_ms)
        with self._progress("event ids", None) as done:
            return await writer.write_ids(_counted(source, done))

    async def _write_tables(
        self, writer: OpeningWriter, plan: Plan, ids: dict[int, int]
    ) -> dict[int, Position]:
        positions = {
            partition: msgspec.structs.replace(position, ids=ids[partition])
            for partition, position in plan.positions.items()
        }
        source = opening_cells(self._ledger, plan.epoch.epoch, plan.oldest_day)
        with self._progress("cells", None) as done:
            return await writer.write_tables(positions, _counted(source, done))

    async def _verify(self, plan: Plan, positions: dict[int, Position]) -> None:
        """Step 6. Reads each table back as a worker does, and adds it up by kind of scope."""
        sums: dict[str, list[Totals]] = defaultdict(list)
        for partition, position in positions.items():
            journal = (await read_totals(self._client, self._topics, [partition]))[partition]
            totals = SourceTotals()
            found = journal.restore(totals)
            if found != position:
                raise CorruptRecord(
                    f"{self._topics.totals} partition {partition} reads back as {found} instead "
                    f"of {position}"
                )
            by_kind: dict[str, list[Totals]] = defaultdict(list)
            for scope, _, amounts in totals.cells():
                by_kind[scope.partition(":")[0]].append(amounts)
            for kind, parts in by_kind.items():
                sums[kind].append(sum_totals(parts))
        arguments = (self._ledger, plan.epoch.epoch, plan.oldest_day)
        wanted = await asyncio.to_thread(control_sums, *arguments)
        for kind, total in wanted.items():
            if sum_totals(sums[kind]) != total:
                raise CorruptRecord(
                    f"the restored cells of kind {kind} add up to {sum_totals(sums[kind])}, the "
                    f"ledger to {total}"
                )
        await self._check_unmoved(plan)

    async def _check_unmoved(self, plan: Plan) -> None:
        now = await asyncio.to_thread(extent, self._ledger, plan.epoch.epoch)
        if now != plan.extent:
            raise Refused(
                f"the ledger got entries of an older log meanwhile ({plan.extent.entries:,} before,"
                f" {now.entries:,} now): stop the sink of the old Kafka, then run "
                "`tallyport rebuild` again"
            )

    async def _foresee(self, plan: Plan, report: RebuildReport) -> RebuildReport:
        """Fills in what a restore would write, without writing."""
        number = plan.epoch.epoch
        report.policies, report.rates = len(plan.policies), len(plan.rates)
        cells = opening_cells(self._ledger, number, plan.oldest_day)
        ids = accepted_ids(self._ledger, number, plan.ids_from_ms, plan.ids_until_ms)
        with self._progress("cells", None) as done:
            async for batch in _counted(cells, done):
                report.cells += len(batch)
        with self._progress("event ids", None) as done:
            async for batch in _counted(ids, done):
                report.ids += len(batch)
        return report


def _report(plan: Plan, dry_run: bool, discarded: bool) -> RebuildReport:
    return RebuildReport(
        epoch=plan.epoch.epoch,
        dry_run=dry_run,
        resumed=plan.resumed,
        discarded=discarded,
        partitions=plan.epoch.partitions,
        entries=plan.extent.entries,
        starts=dict(plan.epoch.starts),
        unheld=[held for held in plan.held if held.loses],
    )


def _log_of(epoch: Epoch) -> LogEpoch:
    created_us = parse_rfc3339_us(epoch.created_at) or 0
    created_at = datetime.fromtimestamp(created_us / 1_000_000, UTC)
    topic_ids = tuple(sorted(epoch.topic_ids.items()))
    return LogEpoch(epoch.epoch, epoch.id, created_at, topic_ids=topic_ids)


async def _counted(
    source: Generator[Sequence[T]], done: Callable[[int], None]
) -> AsyncGenerator[Sequence[T]]:
    """The batches of a blocking source, each fetched in a thread."""
    number = 0
    try:
        while (batch := await asyncio.to_thread(next, source, None)) is not None:
            yield batch
            number += len(batch)
            done(number)
    finally:
        await asyncio.to_thread(source.close)
