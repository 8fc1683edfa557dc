"""Sends rejected records again.

In this order:

    1 fence     whoever replays under this prefix at the same time can commit nothing any more
    2 marks     which records were sent again before
    3 ends      what is on ``usage.rejected`` now; what is rejected from here on is not read
    4 judge     a batch: chosen, not sent again before, not in the ledger by now
    5 send      its records and their marks, in one transaction, to their home partitions

A kill before 5 has committed leaves nothing behind, one after it nothing to do: the marks say so.
An event that was accepted under the same id meanwhile is found in the ledger, or, until it is
there, by the worker's own memory of ids, which reaches further back than a replayed record's time.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ProducerFenced
from aiokafka.structs import ConsumerRecord
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import Refused
from pipeline.core.event_codec import MAX_EVENT_BYTES, TimeLimits, decode_event, judge_time
from pipeline.core.events import Event
from pipeline.core.home import home_partition
from pipeline.core.rejections import Rejection
from pipeline.core.replays import (
    RejectedSource,
    earliest_copy_ms,
    keeping_ms,
    kept_time_ms,
    read_rejected,
    replay_headers,
)
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.accepted import accepted_events
from pipeline.ledger.client import ledger_reader
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end, topic_partitions
from pipeline.stream.rejected_log import port_in
from pipeline.stream.replay_log import ReplayMarks, mark_record, marks_of, read_marks
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import FencedProducer, Outbox, passed_on

BATCH_RECORDS: Final = 500
ACCEPTED: Final = "accepted"
UNJUDGED: Final = "for the worker to judge"

Progress = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Choice:
    """Which rejected records are meant; what is empty or None does not limit.

    Times (of rejection, ``end_ms`` exclusive), partitions and offsets (inclusive) are those of
    ``usage.rejected``. ``ports`` are those that the bodies name; a record that names none is none
    of them. ``again`` takes also those that were sent again before.
    """

    reasons: frozenset[str] = frozenset()
    ports: frozenset[str] = frozenset()
    start_ms: int | None = None
    end_ms: int | None = None
    partitions: frozenset[int] = frozenset()
    first_offset: int = 0
    last_offset: int | None = None
    again: bool = False

    def takes(self, record: ConsumerRecord, reason: str) -> bool:
        """Whether this record is meant."""
        return (
            (not self.reasons or reason in self.reasons)
            and (self.start_ms is None or record.timestamp >= self.start_ms)
            and (self.end_ms is None or record.timestamp < self.end_ms)
            and (not self.partitions or record.partition in self.partitions)
            and record.offset >= self.first_offset
            and (self.last_offset is None or record.offset <= self.last_offset)
            and (not self.ports or port_in(record.value or b"") in self.ports)
        )


@dataclass
class ReplayReport:
    """What became of the records that were read; ``expected`` of those that were sent."""

    dry_run: bool
    read: int = 0
    foreign: int = 0
    chosen: int = 0
    replayed_before: int = 0
    in_ledger: int = 0
    too_large: int = 0
    sent: int = 0
    expected: Counter[str] = field(default_factory=Counter[str])

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**vars(self), "expected": dict(self.expected)}

    def lines(self) -> list[str]:
        """For people."""
        left_out = {
            "were sent again before": self.replayed_before,
            "are in the ledger by now": self.in_ledger,
            "are too large for an event": self.too_large,
        }
        found = [f"read {self.read} rejected records, {self.chosen} of them chosen"]
        if self.foreign:
            found.append(f"{self.foreign} records were not rejected by a worker of this deployment")
        found += [f"left out: {count} {why}" for why, count in left_out.items() if count]
        found.append(f"{'would send' if self.dry_run else 'sent'} {self.sent}")
        for fate, count in sorted(self.expected.items()):
            known = fate in (ACCEPTED, UNJUDGED)
            found.append(f"  {count} {fate if known else f'to be rejected again: {fate}'}")
        return found


@dataclass(slots=True)
class _Candidate:
    """A chosen record, its event where it is one, and the time that judges it when not now."""

    record: ConsumerRecord
    source: RejectedSource
    found: Event | Rejection | None
    time_ms: int | None = None

    @property
    def place(self) -> tuple[str, int, int]:
        return self.source.topic, self.source.partition, self.source.offset


class Replay:
    """One run."""

    def __init__(self, settings: Settings, choice: Choice, *, dry_run: bool) -> None:
        self._client = client_kwargs(settings)
        self._topics = Topics(settings.topic_prefix)
        self._settings, self._choice = settings, choice
        self._limits = TimeLimits.of(settings.max_event_age_days, settings.max_future_skew_s)
        self._keep_ms = keeping_ms(settings.dedupe_days)
        self._producer: FencedProducer | None = None
        self._marks = ReplayMarks()
        self._partitions = 0
        self.report = ReplayReport(dry_run)

    async def run(self, progress: Progress) -> ReplayReport:
        """Raises ``Refused`` when another run began meanwhile."""
        await check_kafka(self._settings)
        async with AIOKafkaConsumer(**self._client) as consumer:
            await topic_partitions(consumer, self._topics.replays)
            self._partitions = len(await topic_partitions(consumer, self._topics.events))
        async with AsyncExitStack() as stack:
            ledger = stack.enter_context(ledger_reader(self._settings))
            if not self.report.dry_run:
                self._producer = FencedProducer(
                    self._client, self._topics.replay_transactional_id, ""
                )
                stack.push_async_callback(self._producer.close)
                await self._producer.start()
            self._marks = await read_marks(self._client, self._topics.replays)
            await self._replay(ledger, progress)
        return self.report

    async def _replay(self, ledger: Client, progress: Progress) -> None:
        starts, ends = await self._extent()
        total = sum(ends[p] - starts[p] for p in ends)
        waiting: list[_Candidate] = []
        with progress("rejected records", total) as done:
            async for records in self._rejected(starts, ends):
                for record in records:
                    candidate = self._choose(record)
                    if candidate is not None:
                        waiting.append(candidate)
                    if len(waiting) >= BATCH_RECORDS:
                        await self._send(waiting, ledger)
                        waiting = []
                done(self.report.read)
            await self._send(waiting, ledger)

    async def _rejected(
        self, starts: dict[int, int], ends: dict[int, int]
    ) -> AsyncIterator[list[ConsumerRecord]]:
        if ends:
            async for records in read_to_end(
                self._client, self._topics.rejected, list(ends), start=starts, end=ends
            ):
                yield records

    async def _extent(self) -> tuple[dict[int, int], dict[int, int]]:
        """Where to begin and end on each partition of ``usage.rejected``."""
        async with AIOKafkaConsumer(**self._client, isolation_level="read_committed") as consumer:
            there = await topic_partitions(consumer, self._topics.rejected)
            wanted = self._choice.partitions
            if wanted - there:
                raise Refused(
                    f"--partition: {self._topics.rejected} has no partition {min(wanted - there)}"
                )
            places = [TopicPartition(self._topics.rejected, p) for p in sorted(wanted or there)]
            first = await consumer.beginning_offsets(places)
            last = await consumer.end_offsets(places)
        begin, end = self._choice.first_offset, self._choice.last_offset
        starts = {tp.partition: max(first[tp], begin) for tp in places}
        ends = {tp.partition: last[tp] if end is None else min(last[tp], end + 1) for tp in places}
        return starts, {p: at for p, at in ends.items() if at > starts[p]}

    def _choose(self, record: ConsumerRecord) -> _Candidate | None:
        report = self.report
        report.read += 1
        source = read_rejected(record.headers)
        if source is None or source.topic not in (self._topics.events, self._topics.corrections):
            report.foreign += 1
            return None
        if not self._choice.takes(record, source.reason):
            return None
        report.chosen += 1
        candidate = _Candidate(record, source, None)
        # A replay that was rejected is not sent again itself, but its original with ``again``.
        if source.is_replay or (candidate.place in self._marks and not self._choice.again):
            report.replayed_before += 1
            return None
        if len(record.value or b"") > MAX_EVENT_BYTES:
            report.too_large += 1
            return None
        if source.topic == self._topics.events:
            candidate.found = decode_event(record.value, source.headers)
        if self._is_of_another_port(candidate.found):
            report.chosen -= 1
            return None
        return candidate

    def _is_of_another_port(self, found: Event | Rejection | None) -> bool:
        """An envelope may name one port, and the event in it, which is what counts, another."""
        ports = self._choice.ports
        return bool(ports) and isinstance(found, Event) and found.port_id not in ports

    async def _send(self, candidates: Sequence[_Candidate], ledger: Client) -> None:
        """Sends a batch, but for what the ledger has; step 5 of the run."""
        now_ms = time.time_ns() // 1_000_000
        unique = list({one.place: one for one in candidates}.values())
        self.report.chosen -= len(candidates) - len(unique)  # it may stand there twice
        accepted = await asyncio.to_thread(self._accepted, unique, ledger, now_ms)
        outbox, sent = Outbox(), list[_Candidate]()
        for one in unique:
            if isinstance(one.found, Event):
                if (one.found.port_id, one.found.event_id) in accepted:
                    self.report.in_ledger += 1
                    continue
                one.time_ms = kept_time_ms(
                    one.source, one.record.timestamp, one.found.occurred_at_us, now_ms,
                    self._limits, self._keep_ms,
                )  # fmt: skip
            sent.append(one)
            record, headers = one.record, replay_headers(one.source, one.time_ms)
            again = passed_on(record.key, record.value, headers)
            outbox.add(one.source.topic, self._home(one), again)
        for mark in marks_of([one.place for one in sent]):
            outbox.add(self._topics.replays, 0, mark_record(mark))
            self._marks.add(mark)
        if sent and self._producer is not None:
            try:
                await self._producer.commit(outbox)
            except ProducerFenced as error:
                raise Refused("another replay-rejected was started; this one has ended") from error
        self.report.sent += len(sent)
        self.report.expected.update(self._fate(one, now_ms) for one in sent)

    def _accepted(
        self, candidates: Sequence[_Candidate], ledger: Client, now_ms: int
    ) -> set[tuple[str, str]]:
        """The events among them that were accepted, also before or after they were rejected."""
        events = [one.found for one in candidates if isinstance(one.found, Event)]
        if not events:
            return set()
        dedupe_days = self._settings.dedupe_days
        first_ms = min(
            earliest_copy_ms(one.source, one.record.timestamp, now_ms, dedupe_days)
            for one in candidates
        )
        return accepted_events(
            ledger,
            [(event.port_id, event.event_id) for event in events],
            datetime.fromtimestamp(first_ms / 1000, UTC),
            self._settings.max_event_age_days,
        )

    def _home(self, one: _Candidate) -> int:
        if isinstance(one.found, Event):
            return home_partition(one.found.port_id, self._partitions)
        return min(one.source.partition, self._partitions - 1)

    def _fate(self, one: _Candidate, now_ms: int) -> str:
        if one.found is None:
            return UNJUDGED
        if isinstance(one.found, Rejection):
            return one.found.reason
        judged_ms = now_ms if one.time_ms is None else one.time_ms
        rejection = judge_time(one.found.occurred_at_us, judged_ms, self._limits)
        return ACCEPTED if rejection is None else rejection.reason
