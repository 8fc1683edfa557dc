"""What a restore would do: from what Kafka still holds and what the ledger knows."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import Refused
from pipeline.core.windows import DAY_MS, oldest_day_needed
from pipeline.ledger.manifests import LogEpoch, known_epochs
from pipeline.ledger.opening import Coverage, Extent, coverage, extent, watermarks_ms
from pipeline.ledger.registers import Register, policies_before, rates_before
from pipeline.settings import Settings
from pipeline.stream.epoch import Epoch, new_epoch, verify_epoch
from pipeline.stream.journal import Position
from pipeline.stream.remains import Bounds, Remains, first_timestamps_ms
from pipeline.stream.topics import Topics


@dataclass(frozen=True)
class Held:
    """One partition of the log before: how far the ledger holds it, and what becomes of the rest.

    ``kept_from`` is the offset at which counting goes on where Kafka still has the partition, None
    where it has not. Records from ``next_offset`` to there, or to the end that nobody knows any
    more, were never in the ledger: they are not counted unless they are sent again.
    """

    topic: str
    partition: int
    next_offset: int
    kept_from: int | None

    @property
    def loses(self) -> bool:
        """Whether records may be lost."""
        return self.kept_from is None or self.kept_from > self.next_offset

    def __str__(self) -> str:
        place = f"{self.topic} partition {self.partition}"
        if self.kept_from is None:
            return f"{place}: from offset {self.next_offset} on"
        return f"{place}: offsets {self.next_offset} to {self.kept_from}"


@dataclass(frozen=True)
class Plan:
    """A restore. ``epoch`` is the one to be written, or that of a restore to be finished.

    ``positions`` say where each table will stand, but for its number of cells and ids.
    ``policies`` and ``rates`` are empty where the topics are those of the log before.
    """

    epoch: Epoch
    resumed: bool
    extent: Extent
    positions: dict[int, Position]
    oldest_day: int
    ids_from_ms: int
    held: list[Held]
    policies: list[Register]
    rates: list[Register]

    @property
    def ids_until_ms(self) -> int:
        """The first moment after the newest id."""
        return self.extent.newest_ms + 1


def check_remains(remains: Remains, topics: Topics, partitions: int) -> None:
    """Raises ``Refused`` where there is more than an empty Kafka or a restore to be finished."""
    epoch = remains.epoch
    if epoch is None:
        if remains.filled:
            raise Refused(
                f"{', '.join(remains.filled)} hold records, but {topics.epoch} does not say of "
                "which epoch: what is left of the tables cannot be used. Stop all workers and "
                "sinks, then run `tallyport rebuild --discard-tables`"
            )
        return
    verify_epoch(epoch, topics, remains.topic_ids, partitions)
    if epoch.state == "ready":
        raise Refused(
            f"this Kafka has its tables (epoch {epoch.epoch}): there is nothing to restore. To "
            "throw them away and restore them from the ledger, stop all workers and sinks and "
            "run `tallyport rebuild --discard-tables`; for another number of partitions take a "
            "new TALLYPORT_TOPIC_PREFIX"
        )


async def make_plan(
    settings: Settings,
    client: Mapping[str, Any],
    topics: Topics,
    ledger: Client,
    remains: Remains,
) -> Plan:
    """What to restore into a Kafka that ``check_remains`` lets pass.

    Raises ``Refused`` when the ledger has never been written, or does not belong to this Kafka.
    """
    logs = await asyncio.to_thread(known_epochs, ledger)
    resumed = remains.epoch is not None
    epoch = remains.epoch or _next_epoch(settings, logs, remains)
    _check_logs(epoch, logs)
    size = await asyncio.to_thread(extent, ledger, epoch.epoch)
    now_ms = int(time.time() * 1000)
    # A clock of Kafka's that ran ahead must not make the restore forget days and ids.
    newest_ms = min(size.newest_ms, now_ms)
    oldest_day = _oldest_day(settings, newest_ms)
    covered = await asyncio.to_thread(coverage, ledger, epoch.epoch)
    # A log without manifests may be a restore that never came to its end.
    written = {one.epoch for one in covered}
    older = [log for log in logs if log.epoch in written]
    kept = _logs_of(older, topics.events, remains.topic_ids)
    held_ends = _ends(covered, topics.events, kept)
    kept_resolved = _logs_of_resolved(older, topics, remains.topic_ids, kept)
    resolved_ends = _ends(covered, topics.resolved, kept_resolved)
    if not resumed:
        epoch = msgspec.structs.replace(epoch, starts=_starts(held_ends, remains.events))
    unread_ms = await first_timestamps_ms(client, topics.events, epoch.starts, remains.events)
    marks_ms = {p: min(newest_ms, unread_ms.get(p, newest_ms)) for p in range(epoch.partitions)}
    # What waits there may be of an earlier time than the newest entry.
    ids_from_ms = min([newest_ms, *unread_ms.values()]) - settings.dedupe_days * DAY_MS
    if kept:
        found_ms = await asyncio.to_thread(watermarks_ms, ledger, topics.events, kept)
        marks_ms = {p: min(mark_ms, found_ms.get(p, 0)) for p, mark_ms in marks_ms.items()}
        ids_from_ms -= DAY_MS  # the clocks of brokers may differ
    registers = await asyncio.to_thread(_registers, ledger, epoch, older, topics, remains)
    return Plan(
        epoch=epoch,
        resumed=resumed,
        extent=size,
        positions=_positions(epoch, marks_ms, oldest_day, resolved_ends),
        oldest_day=oldest_day,
        ids_from_ms=max(ids_from_ms, size.oldest_ms),
        held=_held(
            covered,
            {topics.events: kept, topics.resolved: kept_resolved},
            {topics.events: epoch.starts, topics.resolved: resolved_ends},
        ),
        policies=registers[0],
        rates=registers[1],
    )


def _positions(
    epoch: Epoch,
    marks_ms: Mapping[int, int],
    oldest_day: int,
    resolved_ends: Mapping[int, int],
) -> dict[int, Position]:
    return {
        p: Position(
            epoch=epoch.epoch,
            next_offset=epoch.starts.get(p, 0),
            watermark_ms=marks_ms[p],
            oldest_day=oldest_day,
            resolved_offset=resolved_ends.get(p, 0),
        )
        for p in range(epoch.partitions)
    }


def _next_epoch(settings: Settings, logs: list[LogEpoch], remains: Remains) -> Epoch:
    if not logs:
        raise Refused(
            "the ledger has never been written from any Kafka: there is nothing to restore; "
            "start the worker"
        )
    now_ms = int(time.time() * 1000)
    number = max(log.epoch for log in logs) + 1
    return new_epoch(number, remains.topic_ids, settings.partition_count, now_ms, state="restoring")


def _check_logs(epoch: Epoch, logs: list[LogEpoch]) -> None:
    for log in logs:
        if log.epoch > epoch.epoch or (log.epoch == epoch.epoch and log.id != epoch.id):
            raise Refused(
                f"this Kafka is being restored as epoch {epoch.epoch}, but the ledger has gone on "
                f"to epoch {log.epoch} on another one (id {log.id}); connect that one, or run "
                "`tallyport rebuild --discard-tables`"
            )


def _logs_of(logs: list[LogEpoch], topic: str, topic_ids: Mapping[str, str]) -> list[int]:
    """The epochs whose ``topic`` is the one that Kafka has now."""
    now = topic_ids.get(topic)
    return [log.epoch for log in logs if now is not None and dict(log.topic_ids).get(topic) == now]


def _logs_of_resolved(
    logs: list[LogEpoch], topics: Topics, topic_ids: Mapping[str, str], kept: list[int]
) -> list[int]:
    """The epochs whose resolved corrections are on the topic that Kafka has now.

    A log that was begun before there were corrections does not name it; it is that of its events.
    """
    named = _logs_of(logs, topics.resolved, topic_ids)
    unnamed = [log.epoch for log in logs if topics.resolved not in dict(log.topic_ids)]
    return [*named, *(epoch for epoch in unnamed if epoch in kept)]


def _ends(covered: list[Coverage], topic: str, epochs: list[int]) -> dict[int, int]:
    ends: dict[int, int] = {}
    for one in covered:
        if one.topic == topic and one.epoch in epochs:
            ends[one.partition] = max(ends.get(one.partition, 0), one.next_offset)
    return ends


def _starts(held_ends: Mapping[int, int], events: Mapping[int, Bounds]) -> dict[int, int]:
    """Where counting goes on: behind what the ledger holds, within what Kafka holds."""
    return {
        partition: min(max(held_ends.get(partition, 0), first), end)
        for partition, (first, end) in sorted(events.items())
        if held_ends.get(partition, 0) or first
    }


def _oldest_day(settings: Settings, newest_ms: int) -> int:
    slack_days = settings.max_event_age_days + 1
    return max(0, min(oldest_day_needed(newest_ms), newest_ms // DAY_MS - slack_days))


def _held(
    covered: list[Coverage],
    kept: Mapping[str, list[int]],
    starts: Mapping[str, Mapping[int, int]],
) -> list[Held]:
    """How far the ledger holds the newest log, and where each partition goes on if it does."""
    last = max((one.epoch for one in covered), default=0)
    return [
        Held(
            one.topic,
            one.partition,
            one.next_offset,
            starts.get(one.topic, {}).get(one.partition, 0)
            if last in kept.get(one.topic, ())
            else None,
        )
        for one in covered
        if one.epoch == last
    ]


def _registers(
    ledger: Client, epoch: Epoch, older: list[LogEpoch], topics: Topics, remains: Remains
) -> tuple[list[Register], list[Register]]:
    """Policies and rates to write. Topics of the log before hold all of theirs themselves."""
    policies: list[Register] = []
    rates: list[Register] = []
    if not _logs_of(older, topics.policies, remains.topic_ids):
        policies = policies_before(ledger, epoch.epoch)
    if not _logs_of(older, topics.rates, remains.topic_ids):
        rates = rates_before(ledger, epoch.epoch)
    return policies, rates
