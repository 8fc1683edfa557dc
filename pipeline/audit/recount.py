"""The recount: every event of the log judged, priced and added up a second time.

This is the oracle of the audit. It shares no code with the worker: plain dicts, the standard
library's ``json``, exact rationals, the price library itself. It reads the input records, the
rates and the record of which of them decided from which offset, and nothing else.
"""

import json
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

from pipeline.audit.pricing import Priced, RateHistory, RateRecord
from pipeline.audit.reading import (
    COUNTERS,
    TEXTS,
    Headers,
    Reading,
    Unreadable,
    judge_age,
    read_event,
)
from pipeline.core.errors import CorruptRecord

DAY_US = 86_400_000_000
DAY_MS = 86_400_000

Totals = tuple[int, int, int, int, int, int]
"""requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced."""
ZERO: Totals = (0, 0, 0, 0, 0, 0)
Cells = dict[tuple[str, int], Totals]
"""(scope, day) → totals; a scope is ``all`` or ``kind:id``, a day counts from 1970-01-01 UTC."""

COLUMNS = (
    "event_id",
    "occurred_at_us",
    "port_id",
    "provider",
    "model",
    *TEXTS,
    "feature",
    "kind",
    "billing_scope",
    *COUNTERS,
    "audio_nano",
    "estimated",
    "reported_cost",
    "tags",
    "recorded_at_ms",
    "cost_nano",
    "price_status",
)
"""What makes a ledger row: a row of the ledger must have the same values."""


class LogRecord(NamedTuple):
    """A record of ``usage.events`` as it stands in the log."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Row(NamedTuple):
    """An accepted event. ``digest`` covers the values of all ``COLUMNS`` (``row_digest``)."""

    offset: int
    port_id: str
    event_id: str
    occurred_at_us: int
    organization_id: str
    group_id: str
    user_id: str
    is_org: bool
    tokens: int
    cost_nano: int | None
    status: str
    digest: bytes


class Original(NamedTuple):
    """A rejected or forwarded record: why or whereto, and a digest of what was sent."""

    note: str
    digest: bytes


class Rules(NamedTuple):
    """What decided a partition's events from ``from_offset`` on."""

    from_offset: int
    rates_next_offset: int
    book: str
    max_event_age_days: int
    dedupe_days: int
    max_future_skew_s: int
    price_lead_s: int
    currency: str


@dataclass
class PartitionCount:
    """What became of one partition's records; rows are in the order of their offsets."""

    rows: list[Row] = field(default_factory=list[Row])
    rejected: dict[int, Original] = field(default_factory=dict[int, Original])
    duplicates: list[int] = field(default_factory=list[int])
    forwarded: dict[int, Original] = field(default_factory=dict[int, Original])
    taken_over: dict[tuple[int, int], list[bytes]] = field(
        default_factory=dict[tuple[int, int], list[bytes]]
    )
    """(partition, offset) where a forwarded record came from → digests of what arrived."""
    first_offset: int | None = None
    next_offset: int = 0
    counts_from: int = 0
    """Records below it only fill the memory of ids: the log is cut off before them."""
    without_rules: int = 0

    def fates_below(self, offset: int) -> dict[str, int]:
        """How many records below ``offset`` had which fate."""
        return {
            "accepted": bisect_left(self.rows, offset, key=_offset_of),
            "rejected": sum(at < offset for at in self.rejected),
            "duplicates": bisect_left(self.duplicates, offset),
            "forwarded": sum(at < offset for at in self.forwarded),
        }

    def cells_below(self, offset: int) -> Cells:
        """The totals of the accepted events below ``offset``."""
        return add_up(self.rows[: bisect_left(self.rows, offset, key=_offset_of)])


class Recount:
    """Takes the records of every partition, each partition's in order of their offsets.

    ``log_starts`` are the first offsets that Kafka still holds; where one is above 0, the
    partition counts from one dedupe horizon after its first record on, as duplicates of what
    is gone cannot be told.
    """

    def __init__(
        self,
        partitions: int,
        rules: Mapping[int, Sequence[Rules]],
        rates: Sequence[RateRecord],
        log_starts: Mapping[int, int] | None = None,
    ) -> None:
        self.counts = {partition: PartitionCount() for partition in range(partitions)}
        self._partitions = partitions
        self._rules = {p: sorted(records) for p, records in rules.items()}
        self._rates = RateHistory(list(rates))
        self._log_starts = dict(log_starts or {})
        self._accepted_ms: dict[tuple[str, str], list[int]] = {}
        self._counts_from_ms: dict[int, int] = {}

    def feed(self, records: Iterable[LogRecord]) -> None:
        """Judges records and adds them up; raises ``ValueError`` when they are out of order."""
        for record in records:
            count = self.counts[record.partition]
            if record.offset < count.next_offset:
                raise ValueError(f"offset {record.offset} comes after {count.next_offset - 1}")
            if count.first_offset is None:
                count.first_offset = count.counts_from = record.offset
            count.next_offset = record.offset + 1
            self._judge(record, count)

    def _judge(self, record: LogRecord, count: PartitionCount) -> None:
        rules = self._rules_at(record)
        if rules is None:
            count.without_rules += 1
            return
        counts = self._is_counted(record, rules, count)
        try:
            event = read_event(record.value, record.headers)
        except Unreadable as unreadable:
            if counts:
                count.rejected[record.offset] = Original(unreadable.reason, _digest(record))
            return
        home = home_of(event.port_id.encode(), self._partitions)
        if home != record.partition:
            if counts:
                count.forwarded[record.offset] = Original(str(home), _digest(record))
            return
        recorded_at_ms = record.timestamp_ms
        source = forwarded_from(record.headers)
        if source is not None:
            # A record cannot have been elsewhere after it came here, whatever its header says.
            recorded_at_ms = min(source[2], record.timestamp_ms)
            count.taken_over.setdefault(source[:2], []).append(_digest(record))
        reason = judge_age(
            event.occurred_at_us,
            recorded_at_ms,
            rules.max_event_age_days,
            rules.max_future_skew_s,
        )
        if reason is not None:
            if counts:
                count.rejected[record.offset] = Original(reason, _digest(record))
        elif not self._is_first(event, recorded_at_ms, rules.dedupe_days):
            if counts:
                count.duplicates.append(record.offset)
        elif counts:
            prices = self._rates.version(
                rules.rates_next_offset, rules.currency, rules.price_lead_s
            )
            count.rows.append(_row(record, event, recorded_at_ms, prices.price(event)))

    def _rules_at(self, record: LogRecord) -> Rules | None:
        records = self._rules.get(record.partition, [])
        at = bisect_right(records, record.offset, key=lambda rules: rules.from_offset)
        return records[at - 1] if at else None

    def _is_counted(self, record: LogRecord, rules: Rules, count: PartitionCount) -> bool:
        if self._log_starts.get(record.partition, 0) == 0:
            return True
        from_ms = self._counts_from_ms.setdefault(
            record.partition, record.timestamp_ms + rules.dedupe_days * DAY_MS
        )
        if record.timestamp_ms > from_ms:
            return True
        count.counts_from = record.offset + 1
        return False

    def _is_first(self, event: Reading, recorded_at_ms: int, dedupe_days: int) -> bool:
        times_ms = self._accepted_ms.setdefault((event.port_id, event.event_id), [])
        if any(abs(recorded_at_ms - t) <= dedupe_days * DAY_MS for t in times_ms):
            return False
        times_ms.append(recorded_at_ms)
        return True


def add_up(rows: Iterable[Row]) -> Cells:
    """The day cells of every scope that the rows touch."""
    sums = defaultdict[tuple[str, int], list[int]](lambda: [0, 0, 0, 0, 0, 0])
    for row in rows:
        amounts = amounts_of(row)
        day = row.occurred_at_us // DAY_US
        for scope in scopes_of(row.port_id, row.organization_id, row.group_id, row.user_id):
            cell = sums[scope, day]
            for at, amount in enumerate(amounts):
                cell[at] += amount
    return {key: _totals(cell) for key, cell in sums.items()}


def amounts_of(row: Row) -> Totals:
    """What one row adds to each of its cells."""
    cost = row.cost_nano or 0
    unpriced = int(row.cost_nano is None)
    return (
        1,
        row.tokens,
        cost,
        cost if row.is_org else 0,
        unpriced,
        unpriced if row.is_org else 0,
    )


def scopes_of(port_id: str, organization_id: str, group_id: str, user_id: str) -> list[str]:
    """The scopes an event counts in."""
    named = (("port", port_id), ("org", organization_id), ("group", group_id), ("user", user_id))
    return ["all", *(f"{kind}:{ident}" for kind, ident in named if ident)]


def sum_cells(parts: Iterable[Cells]) -> Cells:
    """Cells of several partitions added up."""
    sums = defaultdict[tuple[str, int], list[int]](lambda: [0, 0, 0, 0, 0, 0])
    for cells in parts:
        for key, totals in cells.items():
            cell = sums[key]
            for at, amount in enumerate(totals):
                cell[at] += amount
    return {key: _totals(cell) for key, cell in sums.items()}


def row_digest(values: Sequence[Any]) -> bytes:
    """The digest of a row's values, in the order of ``COLUMNS``.

    Sixteen bytes over all of them, then two for each, which say where two rows differ.
    """
    texts = [repr(value).encode("utf-8", "surrogatepass") for value in values]
    whole = blake2b(b"\n".join(texts), digest_size=16).digest()
    return whole + b"".join((crc32(text) & 0xFFFF).to_bytes(2, "big") for text in texts)


def differing_columns(digest: bytes, other: bytes) -> list[str]:
    """The columns in which the rows of two digests differ, as far as the short sums can say."""
    return [
        column
        for at, column in enumerate(COLUMNS)
        if digest[16 + 2 * at : 18 + 2 * at] != other[16 + 2 * at : 18 + 2 * at]
    ]


def record_digest(key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    """The digest of a record as it was sent, headers that the worker adds left out."""
    sent = [(name, content) for name, content in headers if name not in _ADDED]
    return blake2b(repr((key, value, sent)).encode(), digest_size=16).digest()


def read_rules(value: bytes | None, where: str) -> tuple[int, Rules]:
    """The partition and rules of a record; raises ``CorruptRecord`` naming ``where``."""
    try:
        body = json.loads(value or b"")
        return body["partition"], Rules(**{name: body[name] for name in Rules._fields})
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"{where}: not a record of the rules: {error}") from error


def home_of(key: bytes, partitions: int) -> int:
    """murmur2 as Kafka's Java client computes it, modulo the partitions."""
    return (_murmur2(key) & 0x7FFFFFFF) % partitions


def forwarded_from(headers: Headers) -> tuple[int, int, int] | None:
    """Partition, offset and Kafka time that the last ``forwarded-from`` header names."""
    contents = [content for name, content in headers if name == "forwarded-from"]
    if not contents:
        return None
    found = _FORWARDED.fullmatch(contents[-1] or b"")
    if found is None:
        return None
    partition, offset, timestamp_ms = (int(group) for group in found.groups())
    in_bounds = partition < 2**31 and offset < 2**63 and timestamp_ms <= 253_402_300_799_999
    return (partition, offset, timestamp_ms) if in_bounds else None


_ADDED = frozenset(
    ("forwarded-from", "reason", "detail", "source-topic", "source-partition", "source-offset")
)
_FORWARDED = re.compile(rb"(\d{1,10})/(\d{1,19})/(\d{1,15})")


def _offset_of(row: Row) -> int:
    return row.offset


def _totals(sums: Sequence[int]) -> Totals:
    requests, tokens, cost, org_cost, unpriced, org_unpriced = sums
    return requests, tokens, cost, org_cost, unpriced, org_unpriced


def _digest(record: LogRecord) -> bytes:
    return record_digest(record.key, record.value, record.headers)


def _row(record: LogRecord, event: Reading, recorded_at_ms: int, price: Priced) -> Row:
    values = (
        event.event_id,
        event.occurred_at_us,
        event.port_id,
        event.provider,
        event.model,
        *event.texts.values(),
        event.feature,
        event.kind,
        event.billing_scope,
        *event.counts.values(),
        event.estimated or price.estimated,
        plain(event.reported_cost),
        sorted(event.tags.items()),
        recorded_at_ms,
        price.cost_nano,
        price.status,
    )
    return Row(
        record.offset,
        event.port_id,
        event.event_id,
        event.occurred_at_us,
        event.texts["organization_id"],
        event.texts["group_id"],
        event.texts["user_id"],
        event.billing_scope == "org",
        event.counts["input_tokens"] + event.counts["output_tokens"],
        price.cost_nano,
        price.status,
        row_digest(values),
    )


def plain(amount: Any) -> str:
    """A decimal without exponent and trailing zeros; ``""`` for None."""
    if amount is None:
        return ""
    text = f"{amount:f}"
    text = text.rstrip("0").removesuffix(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _murmur2(data: bytes) -> int:
    words, tail = divmod(len(data), 4)
    h = 0x9747B28C ^ len(data)
    for at in range(words):
        k = int.from_bytes(data[4 * at : 4 * at + 4], "little")
        k = (k * 0x5BD1E995) % 2**32
        k ^= k >> 24
        k = (k * 0x5BD1E995) % 2**32
        h = (h * 0x5BD1E995) % 2**32 ^ k
    if tail:
        h ^= int.from_bytes(data[-tail:], "little")
        h = (h * 0x5BD1E995) % 2**32
    h ^= h >> 13
    h = (h * 0x5BD1E995) % 2**32
    return h ^ (h >> 15)
