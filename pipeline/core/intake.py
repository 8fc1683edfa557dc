"""What happens to a slice of input records: the fate of each one, decided in one fixed order.

    1 validate   an invalid record is rejected with its first reason
    2 forward    an event away from its port's home partition is sent there; rejected where its key
                 and headers are too large for that
    3 judge      too old or too far in the future, by the Kafka timestamp where it came first;
                 too old as well where it came home so late that its id may have been forgotten
    4 dedupe     the same (port_id, event_id) again is a duplicate, by the Kafka timestamp here
    5 price      exactly, or unpriced; never a silent zero
    6 fold       into the day cells of every scope it touches

Each record ends as exactly one of: row (accepted), rejected, duplicate, forwarded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import compress
from typing import Final, NamedTuple, Protocol

import numpy as np

from pipeline.core.dedupe import (
    ENTRY_BYTES,
    DedupeWindow,
    as_words,
    begun_event_key,
    encode_words,
)
from pipeline.core.dedupe_segment import Mask, Times, Words
from pipeline.core.event_codec import (
    TimeLimits,
    UnknownFields,
    decode_event,
    decode_events,
    judge_time,
)
from pipeline.core.events import PricedEvent
from pipeline.core.home import (
    MAX_CARRIED_BYTES,
    carried_bytes,
    forwarded_from_header,
    home_partition,
    judging_time_ms,
    parse_forwarded_from,
)
from pipeline.core.prices import PriceVersion
from pipeline.core.record_columns import RecordColumns
from pipeline.core.rejections import TOO_LARGE, TOO_OLD, Rejection
from pipeline.core.rows import Rows
from pipeline.core.timestamps import US_PER_DAY, US_PER_HOUR
from pipeline.core.totals import SourceTotals, Sums

MAX_PORTS = 8_192
"""So many ports of a partition are known; with more the memory of them starts afresh."""
FEW_RECORDS: Final = 48
"""Up to so many are all taken here: taking them together has a fixed cost, which is several times
as high where little else has happened just before as in a loop that does nothing else."""


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
    """The fates of the records of one flush, and what must be remembered of the accepted ones.

    ``ids`` are packed (see ``core.dedupe``). The rows of accepted events are not among it.
    """

    rejected: list[Rejected] = field(default_factory=list[Rejected])
    duplicates: list[int] = field(default_factory=list[int])
    forwarded: list[Forwarded] = field(default_factory=list[Forwarded])
    ids: bytearray = field(default_factory=bytearray)
    unpriced: int = 0
    watermark_ms: int = 0

    @property
    def id_count(self) -> int:
        """How many ids there are to remember."""
        return len(self.ids) // ENTRY_BYTES


class UsualReader(Protocol):
    """Takes usual events out of a slice and does with all of them at once what is done here with
    one after the other; what it leaves is for here. It holds one slice at a time.

    ``usual`` says which records are events that are valid, of the right age and at home; there
    ``keys`` are their identities.
    """

    max_records: int

    def read(self, records: RecordColumns, limits: TimeLimits) -> None: ...

    @property
    def usual(self) -> Mask: ...
    @property
    def keys(self) -> Words: ...

    def price(self, admitted: Mask, prices: PriceVersion) -> tuple[Mask, int]:
        """Which of the admitted usual events have a price, or certainly none; how many none."""
        ...

    def rows(self) -> Rows:
        """The rows of those."""
        ...

    def sums(self) -> Sums:
        """What those add to the cells."""
        ...

    def release(self) -> None:
        """Lets go of the slice."""
        ...


class _Candidates(NamedTuple):
    """Events that are accepted unless they are duplicates, each with its place in the slice, its
    judging time and its identity."""

    places: list[int]
    events: list[PricedEvent]
    times_ms: list[int]
    begun_keys: list[blake2b]


class Intake:
    """Takes the records of one source partition; memory is ``totals`` and ``dedupe``.

    ``usual`` speeds it up, where there is one; nothing else depends on it.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        totals: SourceTotals,
        dedupe: DedupeWindow,
        usual: UsualReader | None = None,
    ) -> None:
        self._partition = partition
        self._partitions = partitions
        self._totals = totals
        self._dedupe = dedupe
        self._usual = usual
        self._ports: dict[str, tuple[int, blake2b]] = {}
        self.unknown_fields = UnknownFields()

    def take(
        self,
        records: Sequence[InputRecord],
        prices: PriceVersion,
        limits: TimeLimits,
        taken: Taken,
    ) -> Rows:
        """Decides every record's fate, in order, and adds it to ``taken``; returns the rows of
        the accepted events."""
        usual = self._usual
        if usual is not None and len(records) > FEW_RECORDS:
            columns = records if isinstance(records, RecordColumns) else RecordColumns.of(records)
            return self._take_together(usual, columns, prices, limits, taken)
        if not records:
            return Rows.of([])
        records = [*records]  # of columns each would be made anew whenever it is looked at
        found = self._candidates(records, range(len(records)), limits, taken)
        stamps_ms = [record.timestamp for record in records]
        taken.watermark_ms = max(taken.watermark_ms, *stamps_ms)
        events = found.events
        if not events:
            return Rows.of([])
        words, times_ms = as_words(_keys(found)), np.array(found.times_ms, np.int64)
        arrived_ms = np.array([stamps_ms[place] for place in found.places], np.int64)
        admitted = self._dedupe.admit_words(words, times_ms, arrived_ms)
        if not admitted.all():
            is_first = admitted.tolist()
            taken.duplicates += [
                event.source_offset
                for event, first in zip(events, is_first, strict=True)
                if not first
            ]
            events = list(compress(events, is_first))
            words, times_ms = words[admitted], times_ms[admitted]
        taken.ids += encode_words(words, times_ms)
        return self._accept(events, prices, taken)

    def _take_together(
        self,
        usual: UsualReader,
        records: RecordColumns,
        prices: PriceVersion,
        limits: TimeLimits,
        taken: Taken,
    ) -> Rows:
        usual.read(records, limits)
        keys, times_ms, is_candidate = usual.keys, records.stamps_ms, usual.usual
        taken.watermark_ms = max(taken.watermark_ms, int(times_ms.max()))
        places = [] if is_candidate.all() else np.flatnonzero(~is_candidate).tolist()
        others = self._candidates(records.at(places), places, limits, taken)
        if others.places:
            keys[others.places] = as_words(_keys(others))
            times_ms, is_candidate = times_ms.copy(), is_candidate.copy()
            times_ms[others.places] = others.times_ms
            is_candidate[others.places] = True
        admitted = self._admit(records, keys, times_ms, is_candidate, taken)
        priced, unpriced = usual.price(admitted, prices)
        taken.unpriced += unpriced
        self._totals.add_sums(usual.sums())
        rows = usual.rows()
        rest = [] if priced.all() else np.flatnonzero(admitted & ~priced).tolist()
        if not rest:
            usual.release()
            return rows
        before = np.searchsorted(np.flatnonzero(priced), rest)
        usual.release()
        known = dict(zip(others.places, others.events, strict=True))
        events = [
            known.get(place) or _event_in(record)
            for place, record in zip(rest, records.at(rest), strict=True)
        ]
        return rows.merged(self._accept(events, prices, taken), before)

    def _admit(
        self, records: RecordColumns, keys: Words, times_ms: Times, is_candidate: Mask, taken: Taken
    ) -> Mask:
        """Which of the candidates among all records are no duplicates; these are remembered."""
        arrived_ms = records.stamps_ms
        if is_candidate.all():
            admitted = self._dedupe.admit_words(keys, times_ms, arrived_ms)
            if admitted.all():  # nearly always; indices by a mask take longer than all of this
                taken.ids += encode_words(keys, times_ms)
                return admitted
        else:
            admitted = np.zeros(len(keys), np.bool_)
            admitted[is_candidate] = self._dedupe.admit_words(
                keys[is_candidate], times_ms[is_candidate], arrived_ms[is_candidate]
            )
        taken.duplicates += records.offsets[is_candidate & ~admitted].tolist()
        taken.ids += encode_words(keys[admitted], times_ms[admitted])
        return admitted

    def _accept(self, events: list[PricedEvent], prices: PriceVersion, taken: Taken) -> Rows:
        taken.unpriced += prices.price_all(events)
        self._totals.add(events)
        return Rows.of(events)

    def _candidates(
        self,
        records: Sequence[InputRecord],
        places: Iterable[int],
        limits: TimeLimits,
        taken: Taken,
    ) -> _Candidates:
        """Decides what becomes of ``records`` but for duplicates."""
        found = _Candidates([], [], [], [])
        partition, ports = self._partition, self._ports
        max_age_us, max_skew_us = limits.max_age_us, limits.max_skew_us
        events = decode_events(records, self.unknown_fields)
        for place, record, event in zip(places, records, events, strict=True):
            if isinstance(event, Rejection):
                taken.rejected.append(Rejected(record, event))
                continue
            home, begun_key = ports.get(event.port_id) or self._new_port(event.port_id)
            if home != partition:
                self._forward(record, home, taken)
                continue
            recorded_at_ms, headers = record.timestamp, record.headers
            rejection = None
            if headers:
                recorded_at_ms = judging_time_ms(headers, recorded_at_ms)
                rejection = self._judge_late(event.occurred_at_us, record, limits)
            if not -max_skew_us <= recorded_at_ms * 1000 - event.occurred_at_us <= max_age_us:
                rejection = rejection or judge_time(event.occurred_at_us, recorded_at_ms, limits)
            if rejection is not None:
                taken.rejected.append(Rejected(record, rejection))
                continue
            event.source_offset = record.offset
            event.recorded_at_ms = recorded_at_ms
            found.places.append(place)
            found.events.append(event)
            found.times_ms.append(recorded_at_ms)
            found.begun_keys.append(begun_key)
        return found

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

    def _forward(self, record: InputRecord, home: int, taken: Taken) -> None:
        carried = carried_bytes(record.key, record.headers)
        if carried > MAX_CARRIED_BYTES:
            why = f"key and headers: {carried} bytes, at most {MAX_CARRIED_BYTES} to be forwarded"
            taken.rejected.append(Rejected(record, Rejection(TOO_LARGE, why)))
            return
        # The last such header counts, so one that was there before may stay.
        here = forwarded_from_header(self._partition, record.offset, record.timestamp)
        headers = [*record.headers, here]
        taken.forwarded.append(Forwarded(record, home, headers))


def _keys(found: _Candidates) -> list[bytes]:
    """``event_key`` of each event, from what those of its port begin with."""
    # A loop of its own: within the one before it the same takes a tenth longer.
    keys: list[bytes] = []
    for event, begun_key in zip(found.events, found.begun_keys, strict=True):
        key = begun_key.copy()
        key.update(event.event_id.encode())
        keys.append(key.digest())
    return keys


def _event_in(record: InputRecord) -> PricedEvent:
    """The event of a usual record, which therefore has one."""
    event = decode_event(record.value)
    if isinstance(event, Rejection):
        raise RuntimeError(f"offset {record.offset}: read as valid, then rejected: {event.detail}")
    event.source_offset = record.offset
    event.recorded_at_ms = record.timestamp
    return event
