"""Rejected records that are sent again: what of them is the original's, and whose time judges it.

A replayed record carries ``replayed-from: PARTITION/OFFSET/TIMESTAMP_MS`` behind the original's own
headers: where on its topic the original stood, and the time at which it was rejected, which then
judges the age. Without ``/TIMESTAMP_MS`` the record's own time judges it, as of any other.
"""

from typing import Final

import msgspec

from pipeline.core.cloudevents import Headers
from pipeline.core.event_codec import TimeLimits
from pipeline.core.home import FORWARDED_FROM, REPLAYED_FROM, place_in
from pipeline.core.windows import DAY_MS

ADDED_HEADERS: Final = ("reason", "detail", "source-topic", "source-partition", "source-offset")
"""What the worker adds behind the headers of a record that it rejects, in this order."""


class RejectedSource(msgspec.Struct, frozen=True):
    """What a record of ``usage.rejected`` says of its original.

    ``headers`` are the original's own. ``forwarded_ms`` is when a forwarded one came first.
    ``is_replay`` says that the original was itself a replay.
    """

    reason: str
    topic: str
    partition: int
    offset: int
    headers: list[tuple[str, bytes | None]]
    forwarded_ms: int | None
    is_replay: bool

    def came_ms(self, rejected_ms: int) -> int:
        """When the original came: where it came first, else when it was rejected."""
        return rejected_ms if self.forwarded_ms is None else min(self.forwarded_ms, rejected_ms)


def read_rejected(headers: Headers) -> RejectedSource | None:
    """The source of a rejected record; None when its headers are not those of a worker."""
    own, added = list(headers[: -len(ADDED_HEADERS)]), headers[-len(ADDED_HEADERS) :]
    if tuple(name for name, _ in added) != ADDED_HEADERS:
        return None
    reason, _, topic, partition, offset = (
        (value or b"").decode("utf-8", "replace") for _, value in added
    )
    if not (_is_number(partition) and _is_number(offset)):
        return None
    forwarded = place_in(own, FORWARDED_FROM)
    kept = [(name, value) for name, value in own if name != FORWARDED_FROM]
    return RejectedSource(
        reason,
        topic,
        int(partition),
        int(offset),
        kept,
        None if forwarded is None else forwarded[2],
        any(name == REPLAYED_FROM for name, _ in own),
    )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 19


def keeping_ms(dedupe_days: int) -> int:
    """For how long after its rejection a record keeps that time: one day less than ids are known.

    A time that ids are no longer remembered from would let two copies of an event be counted.
    """
    return (dedupe_days - 1) * DAY_MS


def kept_time_ms(
    source: RejectedSource,
    rejected_ms: int,
    occurred_at_us: int,
    now_ms: int,
    limits: TimeLimits,
    keep_ms: int,
) -> int | None:
    """The time that judges a replayed event; None for the time of its replay.

    It is the time at which the original came, as if what was wrong had been right then. The time
    of the replay judges an event that was in the future, and one that was rejected too long ago.
    """
    came_ms = source.came_ms(rejected_ms)
    is_future = occurred_at_us - came_ms * 1000 > limits.max_skew_us
    return None if is_future or now_ms - came_ms > keep_ms else came_ms


def earliest_copy_ms(
    source: RejectedSource, rejected_ms: int, now_ms: int, dedupe_days: int
) -> int:
    """From when on the ledger is asked whether a copy of the event was accepted.

    One horizon before the time that judges the replay, where that may be kept: the worker may have
    forgotten what was accepted so long before.
    """
    judged_ms = max(source.came_ms(rejected_ms), now_ms - keeping_ms(dedupe_days))
    return min(judged_ms, rejected_ms) - dedupe_days * DAY_MS


def replay_headers(source: RejectedSource, time_ms: int | None) -> list[tuple[str, bytes | None]]:
    """The original's own headers and where the record comes from."""
    place = f"{source.partition}/{source.offset}"
    whence = place if time_ms is None else f"{place}/{time_ms}"
    return [*source.headers, (REPLAYED_FROM, whence.encode())]
