"""The recount itself: the fate of every record, decided again, and what it adds up to."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from pipeline.audit.recount.cells import RunningCells, entry_of
from pipeline.audit.recount.digests import OffsetDigests, TimedDigests, digest_of
from pipeline.audit.recount.envelopes import Headers, Unreadable
from pipeline.audit.recount.events import REASONS, Reading, judge_age, read_event
from pipeline.audit.recount.places import (
    Place,
    can_be_forwarded,
    forwarded_from,
    home_of,
    replayed_from,
)
from pipeline.audit.recount.prices import Prices, RateHistory
from pipeline.audit.recount.pseudonyms import Pseudonyms
from pipeline.audit.recount.rates import RateRecord
from pipeline.audit.recount.rows import EVENT_BYTES, PRICE_BYTES, row_digest, row_values
from pipeline.audit.recount.rules import Rules

DAY_MS = 86_400_000
RECORD_BYTES = 16
VERIFIABLE, UNVERIFIABLE = 0, 1
"""The notes of accepted records."""


class LogRecord(NamedTuple):
    """A record of ``usage.events`` as it stands in the log."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass
class Unverifiable:
    """Records whose price a book decided that is not installed here."""

    book: str
    first_offset: int
    last_offset: int = -1
    count: int = 0


class PartitionCount:
    """What became of one partition's records.

    Owns: fates by offset, digests of rows and records, the partition's ids and cells. The notes
    of ``rejected`` are places in ``REASONS``, those of ``forwarded`` the home partitions.
    """

    def __init__(self, starts_at: int, *, is_cut_off: bool) -> None:
        self.starts_at = starts_at
        """The first offset that this log counts and Kafka still holds."""
        self.is_cut_off = is_cut_off
        """Whether records before it were counted, too."""
        self.counts_from = starts_at
        """Records below it only fill the memory of ids: the log is cut off before them."""
        self.next_offset = starts_at
        self.is_counting = not is_cut_off
        self.records = 0
        self.without_rules = 0
        self.accepted = OffsetDigests(EVENT_BYTES + PRICE_BYTES)
        self.rejected = OffsetDigests(RECORD_BYTES)
        self.forwarded = OffsetDigests(RECORD_BYTES)
        self.duplicates = array("q")
        self.unpriced = array("q")
        self.arrived = TimedDigests()
        self.ids = TimedDigests()
        self.cells = RunningCells()
        self.unverifiable: dict[str, Unverifiable] = {}

    def fates_below(self, offset: int) -> dict[str, int]:
        """How many counted records below ``offset`` had which fate; ``unpriced`` is of accepted."""
        return {
            "accepted": self.accepted.below(offset),
            "rejected": self.rejected.below(offset),
            "duplicates": bisect_left(self.duplicates, offset),
            "forwarded": self.forwarded.below(offset),
            "unpriced": bisect_left(self.unpriced, offset),
        }

    def has_records_between(self, start: int, stop: int) -> bool:
        """Whether any counted record has an offset from ``start`` on and below ``stop``."""
        below, until = self.fates_below(start), self.fates_below(stop)
        return any(until[fate] > below[fate] for fate in below)

    def fate_of(self, offset: int) -> str:
        """What the recount says of one record, in words."""
        if offset < self.counts_from:
            return "not counted again: the log is cut off before it"
        if (at := self.rejected.find(offset)) is not None:
            return f"rejected: {REASONS[self.rejected.note(at)]}"
        if (at := self.forwarded.find(offset)) is not None:
            return f"forwarded to partition {self.forwarded.note(at)}"
        at = bisect_left(self.duplicates, offset)
        if at < len(self.duplicates) and self.duplicates[at] == offset:
            return "duplicate"
        return "no such record" if self.accepted.find(offset) is None else "accepted"


@dataclass
class _Judgement:
    """An event on its home partition that is neither too old nor too new."""

    event: Reading
    recorded_at_ms: int
    at_home_ms: int
    rules: Rules


class Recount:
    """Takes the records of every partition, each partition's in order of their offsets.

    ``log_starts`` are the first offsets that Kafka still holds, ``counts_start`` the first that
    this log ever counted (0 where not named). Where the log begins later than it counted, the
    partition counts from one dedupe horizon after its first record on, as duplicates of what is
    gone cannot be told. ``book`` is the digest of the installed book; prices that another one
    decided cannot be verified. ``pseudonyms`` say what rows show of forgotten users; cells keep
    the ids.
    """

    def __init__(
        self,
        partitions: int,
        rules: Mapping[int, Sequence[Rules]],
        rates: Sequence[RateRecord],
        log_starts: Mapping[int, int] | None = None,
        counts_start: Mapping[int, int] | None = None,
        book: str = "",
        pseudonyms: Pseudonyms | None = None,
    ) -> None:
        self._partitions = partitions
        self._pseudonyms = pseudonyms or Pseudonyms()
        self._book = book
        self._rules = {p: sorted(r, key=lambda one: one.from_offset) for p, r in rules.items()}
        self._rates = RateHistory(list(rates))
        self._counts_from_ms: dict[int, int] = {}
        self.counts: dict[int, PartitionCount] = {}
        for partition in range(partitions):
            begins, counted = (starts.get(partition, 0) for starts in
                               (log_starts or {}, counts_start or {}))  # fmt: skip
            self.counts[partition] = PartitionCount(
                max(begins, counted), is_cut_off=begins > counted
            )

    @property
    def partitions(self) -> int:
        return self._partitions

    @property
    def records(self) -> int:
        """How many records were judged."""
        return sum(count.records for count in self.counts.values())

    def remember(self, port_id: str, event_id: str, recorded_at_ms: int) -> None:
        """Takes an event that was accepted before this log began."""
        home = home_of(port_id, self._partitions)
        self.counts[home].ids.add(_id_digest(port_id, event_id), recorded_at_ms)

    def feed(self, records: Iterable[LogRecord]) -> None:
        """Judges records and adds them up; raises ``ValueError`` when they are out of order."""
        for record in records:
            count = self.counts[record.partition]
            if record.offset < count.next_offset:
                if record.offset < count.starts_at:
                    continue
                raise ValueError(f"offset {record.offset} comes after {count.next_offset - 1}")
            count.next_offset = record.offset + 1
            count.records += 1
            rules = self._rules_at(record)
            if rules is None:
                count.without_rules += 1
            else:
                self._judge(record, rules, count)

    def row_of(self, record: LogRecord) -> dict[str, Any] | None:
        """The row that a record makes if it is accepted; None where it cannot be."""
        rules = self._rules_at(record)
        if rules is None:
            return None
        judged = self._read(record, rules)
        if not isinstance(judged, _Judgement):
            return None
        price = self._prices(rules).price(judged.event)
        shown = self._pseudonyms.renamed(judged.event)
        return row_values(shown, judged.recorded_at_ms, price, rules.currency)

    def rules_below(self, partition: int, offset: int) -> Rules | None:
        """What decided the last record before ``offset``."""
        return self._rules_before(partition, offset - 1)

    def _judge(self, record: LogRecord, rules: Rules, count: PartitionCount) -> None:
        counts = self._is_counted(record, rules, count)
        judged = self._read(record, rules, count)
        if isinstance(judged, int):
            if counts:
                here = Place(record.partition, record.offset, record.timestamp_ms)
                digest = record_digest(record.key, record.value, record.headers, str(here))
                count.forwarded.append(record.offset, digest, judged)
        elif isinstance(judged, str):
            if counts:
                digest = record_digest(record.key, record.value, record.headers, judged)
                count.rejected.append(record.offset, digest, REASONS.index(judged))
        else:
            self._count(record.offset, judged, count, counts=counts)

    def _read(
        self, record: LogRecord, rules: Rules, count: PartitionCount | None = None
    ) -> "_Judgement | str | int":
        """The event; or the reason it is rejected for; or the partition it belongs on."""
        try:
            event = read_event(record.value, record.headers)
        except Unreadable as unreadable:
            return unreadable.reason
        home = home_of(event.port_id, self._partitions)
        if home != record.partition:
            return home if can_be_forwarded(record.key, record.headers) else "too-large"
        recorded_at_ms = record.timestamp_ms
        source = forwarded_from(record.headers) if record.headers else None
        if source is not None:
            # A record cannot have been elsewhere after it came here, whatever its header says.
            recorded_at_ms = min(source.timestamp_ms, recorded_at_ms)
            if count is not None:
                count.arrived.add(int.from_bytes(_digest_at(source, record)), 0)
        replayed = replayed_from(record.headers) if record.headers else None
        if replayed is not None:
            recorded_at_ms = min(replayed.timestamp_ms, recorded_at_ms)
        reason = judge_age(
            event.occurred_at_us,
            recorded_at_ms,
            rules.max_event_age_days,
            rules.max_future_skew_s,
        )
        if source is not None and _is_forgotten(event, record.timestamp_ms, rules):
            reason = "too-old"
        return reason or _Judgement(event, recorded_at_ms, record.timestamp_ms, rules)

    def _count(
        self, offset: int, judged: _Judgement, count: PartitionCount, *, counts: bool
    ) -> None:
        event, at_ms, rules = judged.event, judged.recorded_at_ms, judged.rules
        digest = _id_digest(event.port_id, event.event_id)
        # Ids are forgotten by the time at home, so a duplicate is told by that time, too.
        if count.ids.has_near(digest, judged.at_home_ms, rules.dedupe_days * DAY_MS):
            if counts:
                count.duplicates.append(offset)
            return
        count.ids.add(digest, at_ms)
        if not counts:
            return
        price = self._prices(rules).price(event)
        note = VERIFIABLE
        if price.by_book and self._book and rules.book != self._book:
            note = UNVERIFIABLE
            found = count.unverifiable.setdefault(rules.book, Unverifiable(rules.book, offset))
            found.last_offset = offset
            found.count += 1
        shown = self._pseudonyms.renamed(event)
        count.accepted.append(offset, row_digest(shown, at_ms, price, rules.currency), note)
        if price.cost_nano is None:
            count.unpriced.append(offset)
        count.cells.add(offset, entry_of(event, price.cost_nano))

    def _prices(self, rules: Rules) -> Prices:
        return self._rates.version(rules.rates_next_offset, rules.currency, rules.price_lead_s)

    def _rules_at(self, record: LogRecord) -> Rules | None:
        return self._rules_before(record.partition, record.offset)

    def _rules_before(self, partition: int, offset: int) -> Rules | None:
        records = self._rules.get(partition, [])
        at = bisect_right(records, offset, key=lambda rules: rules.from_offset)
        return records[at - 1] if at else None

    def _is_counted(self, record: LogRecord, rules: Rules, count: PartitionCount) -> bool:
        if count.is_counting:
            return True
        from_ms = self._counts_from_ms.setdefault(
            record.partition, record.timestamp_ms + rules.dedupe_days * DAY_MS
        )
        if record.timestamp_ms > from_ms:
            count.is_counting = True
        else:
            count.counts_from = record.offset + 1
        return count.is_counting


def record_digest(key: bytes | None, value: bytes | None, headers: Headers, note: str) -> bytes:
    """Sixteen bytes over a record as it was sent, and over a note on what became of it."""
    hasher = blake2b(digest_size=RECORD_BYTES)
    parts = [key, value]
    for name, content in headers:
        parts += [name.encode("utf-8", "surrogatepass"), content]
    hasher.update(note.encode())
    for part in parts:
        hasher.update(b"-" if part is None else b"%d:" % len(part))
        hasher.update(part or b"")
    return hasher.digest()


def _is_forgotten(event: Reading, at_home_ms: int, rules: Rules) -> bool:
    """Whether an event of this id and day may have been accepted and be forgotten since.

    It was accepted ``max_future_skew_s`` before the day began at the earliest.
    """
    day_ms = event.occurred_at_us // (DAY_MS * 1_000) * DAY_MS
    earliest_ms = day_ms - rules.max_future_skew_s * 1_000
    return earliest_ms < at_home_ms - rules.dedupe_days * DAY_MS


def _digest_at(source: Place, record: LogRecord) -> bytes:
    """The digest that a forwarded record had where it came from."""
    # The worker adds its header behind those that were sent.
    sent = list(record.headers)
    del sent[max(at for at, (name, _) in enumerate(sent) if name == "forwarded-from")]
    return record_digest(record.key, record.value, sent, str(source))


def _id_digest(port_id: str, event_id: str) -> int:
    return digest_of(f"{len(port_id)} {port_id}{event_id}")
