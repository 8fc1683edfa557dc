"""What happens to a slice of input records: the fate of each one, decided in one fixed order.

    1 validate   an invalid record is rejected with its first reason
    2 forward    an event away from its port's home partition is sent there
    3 judge      too old or too far in the future, by the Kafka timestamp where it came first;
                 too old as well where it came home so late that its id may have been forgotten
    4 dedupe     the same (port_id, event_id) again is a duplicate, by the Kafka timestamp here
    5 price      exactly, or unpriced; never a silent zero
    6 fold       into the day cells of every scope it touches

Each record ends as exactly one of: row (accepted), rejected, duplicate, forwarded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import compress
from typing import Protocol

from pipeline.core.dedupe import DedupeWindow, begun_event_key
from pipeline.core.event_codec import TimeLimits, UnknownFields, decode_events, judge_time
from pipeline.core.events import PricedEvent
from pipeline.core.home import (
    forwarded_from_header,
    home_partition,
    judging_time_ms,
    parse_forwarded_from,
)
from pipeline.core.prices import PriceVersion
from pipeline.core.rejections import TOO_OLD, Rejection
from pipeline.core.timestamps import US_PER_DAY, US_PER_HOUR
from pipeline.core.totals import SourceTotals

MAX_PORTS = 8_192
"""So many ports of a partition are known; with more the memory of them starts afresh."""


class InputRecord(Protocol):
    """A Kafka record as the consumer hands it over; ``timestamp`` in ms."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class Rejected:
    """A record that goes to ``usage.rejected`` as it came, with why."""

    record: InputRecord
    rejection: Rejection


@dataclass(slots=True)
class Forwarded:
    """A record that goes to partition ``home`` with ``headers`` (the last says whence)."""

    record: InputRecord
    home: int
    headers: list[tuple[str, bytes]]


@dataclass(slots=True)
class Taken:
    """The fates of the records of one flush, and what must be remembered of the accepted ones."""

    rows: list[PricedEvent] = field(default_factory=list[PricedEvent])
    rejected: list[Rejected] = field(default_factory=list[Rejected])
    duplicates: list[int] = field(default_factory=list[int])
    forwarded: list[Forwarded] = field(default_factory=list[Forwarded])
    keys: list[bytes] = field(default_factory=list[bytes])
    times_ms: list[int] = field(default_factory=list[int])
    unpriced: int = 0
    watermark_ms: int = 0


class Intake:
    """Takes the records of one source partition; memory is ``totals`` and ``dedupe``."""

    def __init__(
        self,
        partition: int,
        partitions: int,
        totals: SourceTotals,
        dedupe: DedupeWindow,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._totals = totals
        self._dedupe = dedupe
        self._ports: dict[str, tuple[int, blake2b]] = {}
        self.unknown_fields = UnknownFields()

    def take(
        self,
        records: Sequence[InputRecord],
        prices: PriceVersion,
        limits: TimeLimits,
        taken: Taken,
    ) -> None:
        """Decides every record's fate, in order, and adds it to ``taken``."""
        candidates, begun_keys = list[PricedEvent](), list[blake2b]()
        times_ms, arrived_ms = list[int](), list[int]()
        partition, ports = self._partition, self._ports
        max_age_us, max_skew_us = limits.max_age_us, limits.max_skew_us
        stamps_ms = [record.timestamp for record in records]
        events = decode_events(records, self.unknown_fields)
        for record, event, stamp_ms in zip(records, events, stamps_ms, strict=True):
            if isinstance(event, Rejection):
                taken.rejected.append(Rejected(record, event))
                continue
            home, begun_key = ports.get(event.port_id) or self._new_port(event.port_id)
            if home != partition:
                taken.forwarded.append(self._forward(record, home))
                continue
            recorded_at_ms, headers = stamp_ms, record.headers
            rejection = None
            if headers:
                recorded_at_ms = judging_time_ms(headers, stamp_ms)
                rejection = self._judge_late(event.occurred_at_us, record, limits)
            if not -max_skew_us <= recorded_at_ms * 1000 - event.occurred_at_us <= max_age_us:
                rejection = rejection or judge_time(event.occurred_at_us, recorded_at_ms, limits)
            if rejection is not None:
                taken.rejected.append(Rejected(record, rejection))
                continue
            event.source_offset = record.offset
            event.recorded_at_ms = recorded_at_ms
            candidates.append(event)
            times_ms.append(recorded_at_ms)
            arrived_ms.append(stamp_ms)
            begun_keys.append(begun_key)
        if records:
            taken.watermark_ms = max(taken.watermark_ms, *stamps_ms)
        keys = _keys(candidates, begun_keys)
        self._accept(candidates, keys, times_ms, arrived_ms, prices, taken)

    def _accept(
        self,
        candidates: list[PricedEvent],
        keys: list[bytes],
        times_ms: list[int],
        arrived_ms: list[int],
        prices: PriceVersion,
        taken: Taken,
    ) -> None:
        # Most came here first, and then there is one list less to turn into an array.
        came_ms = None if arrived_ms == times_ms else arrived_ms
        admitted = self._dedupe.admit(keys, times_ms, came_ms) if keys else []
        if not all(admitted):
            taken.duplicates += [
                event.source_offset
                for event, is_first in zip(candidates, admitted, strict=True)
                if not is_first
            ]
            candidates = list(compress(candidates, admitted))
            keys, times_ms = list(compress(keys, admitted)), list(compress(times_ms, admitted))
        taken.keys += keys
        taken.times_ms += times_ms
        taken.unpriced += prices.price_all(candidates)
        self._totals.add(candidates)
        taken.rows += candidates

    def _new_port(self, port_id: str) -> tuple[int, blake2b]:
        """Where the events of a port belong, and what their keys begin with; kept for the next."""
        if len(self._ports) >= MAX_PORTS:
            self._ports.clear()
        port = home_partition(port_id, self._partitions), begun_event_key(port_id)
        self._ports[port_id] = port
        return port

    def _judge_late(
        self, occurred_at_us: int, record: InputRecord, limits: TimeLimits
    ) -> Rejection | None:
        """Whether a forwarded event came home so late that its id may be forgotten by now.

        A copy that was accepted came ``max_skew_us`` before it occurred or later, and its id is
        remembered for a horizon from then on. The ledger tells events of one id by their days, so
        it is the whole day that must be remembered. Of replayed events the ledger was asked.
        """
        day_us = occurred_at_us - occurred_at_us % US_PER_DAY
        known_us = self._dedupe.horizon_ms * 1000 - limits.max_skew_us
        if record.timestamp * 1000 - day_us <= known_us:
            return None
        if parse_forwarded_from(record.headers) is None:
            return None
        hours = known_us // US_PER_HOUR
        return Rejection(
            TOO_OLD, f"occurred_at: its day began more than {hours} h before it was forwarded here"
        )

    def _forward(self, record: InputRecord, home: int) -> Forwarded:
        # The last such header counts, so one that was there before may stay.
        here = forwarded_from_header(self._partition, record.offset, record.timestamp)
        headers = [*record.headers, here]
        return Forwarded(record, home, headers)


def _keys(events: list[PricedEvent], begun_keys: list[blake2b]) -> list[bytes]:
    """``event_key`` of each event, from what those of its port begin with."""
    # A loop of its own: within the one before it the same takes a tenth longer.
    keys: list[bytes] = []
    for event, begun_key in zip(events, begun_keys, strict=True):
        key = begun_key.copy()
        key.update(event.event_id.encode())
        keys.append(key.digest())
    return keys
