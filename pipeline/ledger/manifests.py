"""How far the ledger has come: one manifest for every run of source offsets it holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime

import msgspec
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import CorruptRecord, Refused

INSERT_SETTINGS = {"async_insert": 0}
"""The acknowledgement of an insert means that its rows are on disk."""

_COLUMNS = (
    "epoch",
    "topic",
    "partition",
    "first_offset",
    "next_offset",
    "rows",
    "rejected",
    "duplicates",
    "forwarded",
    "days",
    "priced_partition",
    "priced_next_offset",
    "written_at",
)
_LAST = """
SELECT epoch, next_offset, priced_next_offset FROM sink_manifests
WHERE topic = {topic:String} AND partition = {partition:UInt32}
ORDER BY topic DESC, partition DESC, epoch DESC, next_offset DESC LIMIT 1
"""
_ROWS_ABOVE = """
SELECT DISTINCT source_offset FROM ledger_entries
WHERE epoch = {epoch:UInt32} AND source_topic = {topic:String}
AND source_partition = {partition:UInt32} AND source_offset >= {next_offset:Int64}
LIMIT {limit:UInt32}
"""
_ROWS_ABOVE_LIMIT = 500_000


@dataclass(frozen=True)
class Manifest:
    """One run ``[first_offset, next_offset)`` of a source partition that the ledger holds.

    ``rows``, ``rejected``, ``duplicates`` and ``forwarded`` count the run's records by where they
    ended. ``days`` are the UTC days its rows touch. ``priced_next_offset`` is where the reader of
    ``usage.priced`` (partition ``priced_partition``) goes on.
    """

    epoch: int
    topic: str
    partition: int
    first_offset: int
    next_offset: int
    rows: int
    rejected: int
    duplicates: int
    forwarded: int
    days: tuple[date, ...]
    priced_partition: int
    priced_next_offset: int


@dataclass(frozen=True)
class Position:
    """Up to where the ledger holds one source partition, and where its blocks go on."""

    epoch: int
    next_offset: int
    priced_next_offset: int


@dataclass(frozen=True)
class LogEpoch:
    """The Kafka log that offsets count in; a recreated one has a higher ``epoch``.

    ``ready`` is false while a restore into it has not finished.
    """

    epoch: int
    id: str
    created_at: datetime
    cluster_id: str = ""
    topic_ids: tuple[tuple[str, str], ...] = ()
    ready: bool = True


def write_manifests(client: Client, manifests: Iterable[Manifest], written_at: datetime) -> None:
    """Records the runs in one insert, so that either all of them stand or none."""
    rows = [[*(getattr(m, name) for name in _COLUMNS[:-1]), written_at] for m in manifests]
    client.insert("sink_manifests", rows, column_names=_COLUMNS, settings=INSERT_SETTINGS)


def last_position(client: Client, topic: str, partition: int) -> Position | None:
    """The newest manifest's end of one source partition; None when there is no manifest."""
    row = client.query(_LAST, parameters={"topic": topic, "partition": partition}).first_row
    return Position(*(int(value) for value in row)) if row else None


def rows_above(client: Client, topic: str, partition: int, position: Position) -> frozenset[int]:
    """Source offsets of rows that were inserted although no manifest covers them yet.

    A sink that died between its insert and its manifest leaves them. At most 500,000 are named;
    inserting one again would do no harm.
    """
    parameters = {
        "epoch": position.epoch,
        "topic": topic,
        "partition": partition,
        "next_offset": position.next_offset,
        "limit": _ROWS_ABOVE_LIMIT,
    }
    found = client.query(_ROWS_ABOVE, parameters=parameters).result_rows
    return frozenset(int(offset) for (offset,) in found)


def known_epochs(client: Client) -> list[LogEpoch]:
    """Every log the ledger's entries came from, oldest first."""
    rows = client.query(
        "SELECT epoch, id, created_at, cluster_id, topic_ids FROM log_epochs FINAL ORDER BY epoch"
    ).result_rows
    return [
        LogEpoch(int(epoch), str(log_id), created, str(cluster), tuple(sorted(topics.items())))
        for epoch, log_id, created, cluster, topics in rows
    ]


def join_epoch(client: Client, log: LogEpoch) -> None:
    """Records ``log`` as the one the ledger is written from now on.

    Raises ``Refused`` when the ledger knows a later log, or another one of the same number: then
    this Kafka is not the one whose usage the ledger holds.
    """
    known = known_epochs(client)
    if any(k.epoch == log.epoch and k.id == log.id for k in known):
        if known[-1].epoch > log.epoch:
            raise Refused(
                f"this Kafka's log is of epoch {log.epoch}, but the ledger has gone on to epoch "
                f"{known[-1].epoch}; connect the newer Kafka"
            )
        return
    if known and known[-1].epoch >= log.epoch:
        raise Refused(
            f"this Kafka's log (epoch {log.epoch}, id {log.id}) is not the one the ledger was "
            f"written from (epoch {known[-1].epoch}, id {known[-1].id}); connect that Kafka, or "
            "start with an empty ledger"
        )
    row = [log.epoch, log.id, log.created_at, log.cluster_id, dict(log.topic_ids)]
    client.insert(
        "log_epochs",
        [row],
        column_names=("epoch", "id", "created_at", "cluster_id", "topic_ids"),
        settings=INSERT_SETTINGS,
    )


class _EpochRecord(msgspec.Struct):
    epoch: int
    id: str
    created_at: datetime
    cluster_id: str = ""
    topic_ids: dict[str, str] = {}
    state: str = "ready"


def decode_epoch(value: bytes) -> LogEpoch:
    """The record of ``tallyport.epoch``; raises ``CorruptRecord`` when it is none."""
    try:
        record = msgspec.json.decode(value, type=_EpochRecord)
    except msgspec.MsgspecError as error:
        raise CorruptRecord(f"not a record of the log's epoch: {error}") from error
    created_at = record.created_at
    if created_at.tzinfo is None:
        created_at = created_at.replace(tzinfo=UTC)
    topics = tuple(sorted(record.topic_ids.items()))
    ready = record.state == "ready"
    return LogEpoch(record.epoch, record.id, created_at, record.cluster_id, topics, ready)
