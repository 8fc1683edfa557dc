"""Resolved corrections: what a correction came to, once and for all, on ``tallyport.resolved``.

Whoever reads them, the tables or the ledger, takes the deltas as they are. ``number`` counts the
records of a partition from 1, so that a reader notices a missing one; offsets have holes.
"""

from typing import Any

import msgspec

from pipeline.core.blocks import EVENT_COLUMNS, Mark
from pipeline.core.corrections import Correction, Entry
from pipeline.core.errors import CorruptRecord
from pipeline.core.events import Event
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version

RESOLVED_VERSION = 1


class Resolved(msgspec.Struct, array_like=True, gc=False):
    """One resolved correction, as a row of the ledger.

    ``row`` has the values of ``ROW_COLUMNS``, its amounts deltas, ``source_offset`` and
    ``recorded_at_ms`` those of the correction. ``rates_next_offset``, ``book``, ``currency`` and
    ``price_lead_s`` are what decided: the price version, and the settings it depends on.
    """

    version: int
    number: int
    rates_next_offset: int
    book: str
    currency: str
    price_lead_s: int
    row: tuple  # type: ignore[type-arg]
    mark: Mark

    @property
    def event(self) -> Event:
        """The event with deltas for amounts."""
        return Event(*self.row[: len(EVENT_COLUMNS)])

    @property
    def entry(self) -> Entry:
        """The ledger entry."""
        cost_nano, rate_id, status, price_estimated = self.row[len(EVENT_COLUMNS) + 2 :]
        event = self.event
        entry_no, requests, unpriced_requests = self.mark[:3]
        return Entry(
            event,
            entry_no,
            requests,
            unpriced_requests,
            cost_nano,
            rate_id,
            status,
            event.estimated or price_estimated,
        )

    @property
    def recorded_at_ms(self) -> int:
        """When the correction reached Kafka."""
        return self.row[len(EVENT_COLUMNS) + 1]

    @property
    def place(self) -> tuple[int, int]:
        """Partition and offset of the correction on ``usage.corrections``."""
        return self.mark[6], self.row[len(EVENT_COLUMNS)]

    @property
    def correction_id(self) -> str:
        """The correction's own id."""
        return self.mark[3]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Resolved)


def resolved_of(
    correction: Correction,
    entry: Entry,
    place: tuple[str, int, int, int],
    number: int,
    decided: tuple[int, str, str, int],
) -> Resolved:
    """The record. ``place`` is topic, partition, offset and Kafka timestamp of the correction.

    ``decided`` are ``rates_next_offset``, ``book``, ``currency`` and ``price_lead_s``.
    """
    topic, partition, offset, timestamp_ms = place
    row: tuple[Any, ...] = (
        *msgspec.structs.astuple(entry.event),
        offset,
        timestamp_ms,
        entry.cost_nano,
        entry.rate_id,
        entry.status,
        entry.estimated,
    )
    mark = (
        entry.entry_no,
        entry.requests,
        entry.unpriced_requests,
        correction.correction_id,
        correction.reason,
        topic,
        partition,
    )
    return Resolved(RESOLVED_VERSION, number, *decided, row, mark)


def encode_resolved(resolved: Resolved) -> bytes:
    """The record as MessagePack."""
    return _encoder.encode(resolved)


def decode_resolved(value: bytes | None) -> Resolved:
    """The record in ``value``; raises ``CorruptRecord`` when it is none this code can read."""
    if value is None:
        raise CorruptRecord("a resolved correction without a value")
    try:
        resolved = _decoder.decode(value)
    except UNREADABLE as error:
        raise unreadable(value, "resolved correction", RESOLVED_VERSION, error) from error
    if resolved.version != RESOLVED_VERSION:
        raise wrong_version("resolved correction", resolved.version, RESOLVED_VERSION)
    return resolved
