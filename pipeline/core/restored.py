"""The header of a record that a restore wrote again: where, and when, it stood first.

A rate must arrive some time before it applies. A restored one arrives anew, so the rule is held
against the time of its first arrival. The header is no privilege: whoever may write rates may as
well say ``backdated``.
"""

from typing import Final

import msgspec

from pipeline.core.cloudevents import Headers
from pipeline.core.home import place_in

RESTORED_FROM: Final = "restored-from"


class RestoredFrom(msgspec.Struct, frozen=True):
    """The first place of a record: the epoch of its log, its offset and Kafka timestamp there."""

    epoch: int
    offset: int
    timestamp_ms: int


def restored_from_header(epoch: int, offset: int, timestamp_ms: int) -> tuple[str, bytes]:
    """The header that a restored record gets."""
    return RESTORED_FROM, f"{epoch}/{offset}/{timestamp_ms}".encode()


def parse_restored_from(headers: Headers) -> RestoredFrom | None:
    """What the last ``restored-from`` header says; None without one or when it is unreadable."""
    place = place_in(headers, RESTORED_FROM)
    return None if place is None else RestoredFrom(*place)


def first_timestamp_ms(headers: Headers, timestamp_ms: int) -> int:
    """When a record first arrived; ``timestamp_ms`` is its Kafka timestamp here."""
    whence = parse_restored_from(headers) if headers else None
    # A record cannot have arrived first after it arrived here.
    return timestamp_ms if whence is None else min(whence.timestamp_ms, timestamp_ms)
