"""Which records differ from what was last published, and in which order they go out."""

from collections import OrderedDict
from typing import Final, NamedTuple

import msgspec

from pipeline.core.budgets import State, parse_state
from pipeline.core.errors import CorruptRecord

UNREADABLE: Final = "unreadable"
"""Something was published, but it is no state."""

Published = State | str | None
"""A state, ``UNREADABLE``, or None for nothing or a tombstone."""


class Change(NamedTuple):
    """A record to publish under ``key``; ``state`` None is a tombstone."""

    key: str
    state: State | None


class Publication:
    """What was last ``published`` under one ``key`` of ``budget.state``.

    As such it belongs to no budget, and is due until nothing is published any more.
    """

    __slots__ = ("key", "published")

    def __init__(self, key: str, published: Published = None) -> None:
        self.key = key
        self.published = published

    def current(self, now_ms: int) -> State | None:
        """The state that belongs there now; None where none does."""
        return None


def published_in(key: str, value: bytes | None) -> Published:
    """What a record that was read from ``budget.state`` says."""
    if value is None:
        return None
    try:
        return parse_state(key, value).state
    except CorruptRecord:
        return UNREADABLE


# While periods are ending, so much of what goes out is kept for what events do meanwhile.
_CHANGED_SHARE = 4


class DueRecords:
    """The publications that may have changed: urgent ones, those whose period has ended, and those
    only ``used`` moved.

    A period ends for all its records at once, a hundred thousand perhaps: what an event does in
    the same moment does not wait behind them.

    Owns: the order, and what is published. Does not own: the current states, which ``take`` asks
    each record for when its turn comes.
    """

    def __init__(self) -> None:
        self._urgent: OrderedDict[Publication, None] = OrderedDict()
        self._ended: OrderedDict[Publication, None] = OrderedDict()
        self._changed: OrderedDict[Publication, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ended) + len(self._changed)

    @property
    def has_urgent(self) -> bool:
        """Whether a record is due of which more than ``used`` may have changed."""
        return bool(self._urgent) or bool(self._ended)

    def add(self, record: Publication) -> None:
        """Marks a record whose ``used`` changed."""
        if record not in self._changed and record not in self._ended and record not in self._urgent:
            self._changed[record] = None

    def add_new(self, record: Publication) -> None:
        """Marks a record that nobody has marked yet, and that is urgent."""
        self._urgent[record] = None

    def add_urgent(self, record: Publication) -> None:
        """Marks a record whose status, policy or existence changed."""
        if record not in self._urgent:
            self._ended.pop(record, None)
            self._changed.pop(record, None)
            self._urgent[record] = None

    def add_ended(self, record: Publication) -> None:
        """Marks a record whose period has ended."""
        if record not in self._ended and record not in self._urgent:
            self._changed.pop(record, None)
            self._ended[record] = None

    def discard(self, record: Publication) -> None:
        """Takes all marks away."""
        for records in (self._urgent, self._ended, self._changed):
            records.pop(record, None)

    def take(self, limit: int, now_ms: int) -> list[Change]:
        """Up to ``limit`` records that differ from what was published; they count as published."""
        taken: list[Change] = []
        urgent, changed = self._urgent, self._changed
        while urgent and len(taken) < limit:
            record, _ = urgent.popitem(last=False)
            state = record.current(now_ms)
            if _only_used_differs(record.published, state):
                changed[record] = None
            else:
                _publish(record, state, taken)
        share = min(limit, len(taken) + limit // _CHANGED_SHARE)
        for records, end in ((changed, share), (self._ended, limit), (changed, limit)):
            while records and len(taken) < end:
                record, _ = records.popitem(last=False)
                _publish(record, record.current(now_ms), taken)
        return taken


def _publish(record: Publication, state: State | None, taken: list[Change]) -> None:
    if record.published != state:
        taken.append(Change(record.key, state))
    # Also where it is equal: after a restart what was read is another object in each part.
    record.published = state


def _only_used_differs(known: Published, state: State | None) -> bool:
    if not isinstance(known, State) or state is None or known == state:
        return False
    return state == msgspec.structs.replace(
        known, used=state.used, unpriced_events=state.unpriced_events
    )
