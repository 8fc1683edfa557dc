"""``tallyport export``: months of the ledger to files, and out of it where nobody needs them.

A month is needed while anything may still ask the ledger for it: a budget's window or a table that
has cells of its days, the memory of event ids, a day that may still get entries, or the audit while
Kafka still has the events themselves.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import Refused
from pipeline.core.windows import DAY_MS, oldest_day_needed
from pipeline.faults import point
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.client import connect, ledger_address, ledger_errors
from pipeline.ledger.day_marks import QUIET_S
from pipeline.ledger.dropped import DROPPED, LEAVING, registered, sources_of
from pipeline.ledger.dropping import drop_month, finish_interrupted
from pipeline.ledger.export import Content, write_month
from pipeline.ledger.migrate import pending
from pipeline.ledger.months import Month
from pipeline.ops.folder_lock import FolderLock
from pipeline.settings import Settings
from pipeline.stream.epoch import read_epoch
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics

QUERY_TIMEOUT_S = 3_600
LOCK_NAME = "export-drop.lock"
ID_SLACK_DAYS = 2
"""What a restore reads of ids beyond the horizon."""

_UNIX_DAY = date(1970, 1, 1).toordinal()
_NEWEST_ID_MS = """
SELECT toUnixTimestamp64Milli(max(recorded_at)) FROM ledger_entries
WHERE toYYYYMM(occurred_at) = {month:UInt32} AND entry_no = 0
"""
_NEWEST_MARK_AGE_S = """
SELECT dateDiff('second', max(marked_at), now64(3, 'UTC')) FROM day_marks
WHERE toYYYYMM(day) = {month:UInt32} HAVING count() > 0
"""


@dataclass(frozen=True)
class ExportedMonth:
    """One file, what is in it, and whether the month has left the ledger."""

    month: str
    file: str
    rows: int
    cost_nano: int
    digest: str
    dropped: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def export_months(
    settings: Settings,
    months: Sequence[Month],
    folder: Path,
    *,
    drop: bool = False,
    done: Callable[[int], None] = lambda _: None,
) -> list[ExportedMonth]:
    """Writes a file for each of ``months``; with ``drop`` each then leaves the ledger.

    ``done`` is told how many are finished. Raises ``Refused`` for a month that is needed, that the
    ledger has nothing of or that was dropped before, before anything of it is written; months
    before it are done then, and while another process drops months from this data folder.
    """
    with _alone(settings) if drop else nullcontext():
        return _export_all(settings, sorted(set(months)), folder, drop=drop, done=done)


@contextmanager
def _alone(settings: Settings) -> Generator[None]:
    """One drop at a time: each takes what the other has half done for interrupted, and undoes it.

    The lock falls with the process, however it ends.
    """
    lock = FolderLock(
        settings.data_dir / LOCK_NAME,
        "`tallyport export --drop`",
        "run this again when it has ended",
    ).acquire()
    try:
        point("export-alone")
        yield
    finally:
        lock.release()


def _export_all(
    settings: Settings,
    months: Sequence[Month],
    folder: Path,
    *,
    drop: bool,
    done: Callable[[int], None],
) -> list[ExportedMonth]:
    address = ledger_address(settings, write=True)  # a reader's limits are too narrow for a month
    client = connect(address, query_timeout_s=QUERY_TIMEOUT_S)
    found: list[ExportedMonth] = []
    try:
        with ledger_errors(address):
            if missing := pending(client):
                raise Refused(
                    f"the ledger lacks {len(missing)} migrations (first {missing[0]}); "
                    "run `tallyport migrate`"
                )
            for month in months:
                found.append(_export(settings, client, month, folder, drop=drop))
                done(len(found))
    finally:
        client.close()
    return found


def _export(
    settings: Settings, client: Client, month: Month, folder: Path, *, drop: bool
) -> ExportedMonth:
    _check_register(client, month, drop=drop)
    if drop:
        finish_interrupted(client, month)
        _check_ledger(settings, client, month)
        asyncio.run(_check_kafka(settings, client, month))
    path, content = write_month(client, month, folder)
    if drop:
        drop_month(client, month, path.resolve(), content)
    return _exported(month, path, content, dropped=drop)


def _exported(month: Month, path: Path, content: Content, *, dropped: bool) -> ExportedMonth:
    return ExportedMonth(str(month), str(path), *content, dropped)


def _check_register(client: Client, month: Month, *, drop: bool) -> None:
    known = registered(client, month)
    if known is None:
        return
    if known.state == DROPPED:
        if drop:
            finish_interrupted(client, month)
        raise Refused(
            f"{month} was exported to {known.file} and dropped on {known.written_at:%Y-%m-%d}; "
            "the ledger no longer has it"
        )
    if known.state == LEAVING and not drop:
        raise Refused(
            f"{month} is half dropped, as `tallyport export --drop` was interrupted; run it again "
            "with --drop"
        )


# -- whether anybody needs a month -----------------------------------------------------------------


def _now_ms() -> int:
    return int(time.time() * 1000)


def _needed(month: Month, why: str) -> Refused:
    return Refused(f"{month} cannot be dropped: {why}")


def _check_ledger(settings: Settings, client: Client, month: Month) -> None:
    """What settings, the clock and the ledger itself say."""
    now_ms = _now_ms()
    end_day = month.end_day.toordinal() - _UNIX_DAY
    # A rejected record that is replayed may be judged as of days ago, within the horizon.
    accepted_days = settings.max_event_age_days + settings.dedupe_days
    if end_day > min(oldest_day_needed(now_ms), now_ms // DAY_MS - accepted_days):
        raise _needed(
            month,
            "budgets of the running month, week and rolling-30d, or events that may still arrive, "
            "need its last days",
        )
    parameters = {"month": month.number}
    [(newest_ms,)] = client.query(_NEWEST_ID_MS, parameters=parameters).result_rows
    horizon_days = settings.dedupe_days + ID_SLACK_DAYS
    if int(newest_ms) > now_ms - horizon_days * DAY_MS:
        since = datetime.fromtimestamp(int(newest_ms) / 1000, UTC)
        raise _needed(
            month,
            f"its last event was recorded on {since:%Y-%m-%d}, and ids are remembered for "
            f"{settings.dedupe_days} days (and {ID_SLACK_DAYS} to be sure)",
        )
    for (age_s,) in client.query(_NEWEST_MARK_AGE_S, parameters=parameters).result_rows:
        if age_s < 2 * QUIET_S:
            raise _needed(
                month,
                f"one of its days is open: it was marked {age_s} s ago; try again in a minute",
            )


async def _check_kafka(settings: Settings, client: Client, month: Month) -> None:
    """What the tables still hold, and what the audit would count again."""
    await check_kafka(settings)
    kafka, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    epoch = await read_epoch(kafka, topics)
    if epoch is None or epoch.state != "ready":
        raise _needed(
            month, "this Kafka has no tables; run `tallyport rebuild` first, which may need it"
        )
    begins = await _first_offsets(kafka, topics.events, epoch.partitions)
    for source in await asyncio.to_thread(sources_of, client, month):
        if source.epoch == epoch.epoch and source.topic == topics.events:
            begin = begins.get(source.partition, 0)
            if source.last_offset >= begin:
                raise _needed(
                    month,
                    f"Kafka still has events of it ({topics.events} partition {source.partition} "
                    f"begins at offset {begin}, its last event is at {source.last_offset}), and "
                    "the audit would miss their rows",
                )
    first, end = (day.toordinal() - _UNIX_DAY for day in (month.first_day, month.end_day))
    for partition, table in (
        await read_tables(kafka, topics, list(range(epoch.partitions)))
    ).items():
        if any(first <= day < end for _, day in table.cells):
            raise _needed(
                month,
                f"the table of partition {partition} still has cells of it (it drops them with "
                "the first event it counts later)",
            )


async def _first_offsets(kafka: Mapping[str, Any], topic: str, partitions: int) -> dict[int, int]:
    async with AIOKafkaConsumer(**kafka) as consumer:
        places = [TopicPartition(topic, p) for p in range(partitions)]
        found = await consumer.beginning_offsets(places)
    return {tp.partition: offset for tp, offset in found.items()}
