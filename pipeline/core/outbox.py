"""Which records differ from what was last published, and in which order they go out."""

from collections import OrderedDict
from collections.abc import Callable
from sys import intern
from typing import NamedTuple

import msgspec

from pipeline.core.budgets import State, parse_state
from pipeline.core.errors import CorruptRecord


class Change(NamedTuple):
    """A record to publish under ``key``; ``state`` None is a tombstone."""

    key: str
    state: State | None


# While periods are ending, so much of what goes out is kept for what events do meanwhile.
_CHANGED_SHARE = 4


class Outbox:
    """The keys whose records may have changed: urgent ones, those whose period has ended, and
    those only ``used`` moved.

    A period ends for all its records at once, a hundred thousand perhaps: what an event does in
    the same moment does not wait behind them.

    Owns: what was last published under each key. Does not own: the current states, which
    ``take`` asks for when a record's turn comes.
    """

    def __init__(self) -> None:
        self._urgent: OrderedDict[str, None] = OrderedDict()
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._changed: OrderedDict[str, None] = OrderedDict()
        # None: something was published, but it could not be read.
        self._published: dict[str, State | None] = {}

    def __len__(self) -> int:
        return len(self._urgent) + len(self._ended) + len(self._changed)

    @property
    def has_urgent(self) -> bool:
        """Whether a record is due of which more than ``used`` may have changed."""
        return bool(self._urgent) or bool(self._ended)

    def add(self, key: str) -> None:
        """Marks a record whose ``used`` changed."""
        if key not in self._changed and key not in self._ended and key not in self._urgent:
            self._changed[key] = None

    def add_urgent(self, key: str) -> None:
        """Marks a record whose status, policy or existence changed."""
        if key not in self._urgent:
            self._ended.pop(key, None)
            self._changed.pop(key, None)
            self._urgent[key] = None

    def add_ended(self, key: str) -> None:
        """Marks a record whose period has ended."""
        if key not in self._ended and key not in self._urgent:
            self._changed.pop(key, None)
            self._ended[key] = None

    def restore(self, key: str, value: bytes | None) -> None:
        """Takes what was last published under ``key``; None is a tombstone."""
        if value is None:
            self._published.pop(key, None)
            return
        try:
            state = parse_state(key, value).state
        except CorruptRecord:
            state = None
        key = intern(key)  # one string with the account's
        self._published[key] = state
        self.add(key)

    def take(self, limit: int, current: Callable[[str], State | None]) -> list[Change]:
        """Up to ``limit`` records that differ from what was published; they count as published.

        ``current`` gives the state under a key now, None where none belongs.
        """
        taken: list[Change] = []
        while self._urgent and len(taken) < limit:
            key, _ = self._urgent.popitem(last=False)
            state = current(key)
            if self._only_used_differs(key, state):
                self._changed[key] = None
            else:
                self._publish(key, state, taken)
        share = min(limit, len(taken) + limit // _CHANGED_SHARE)
        for keys, end in ((self._changed, share), (self._ended, limit), (self._changed, limit)):
            while keys and len(taken) < end:
                key, _ = keys.popitem(last=False)
                self._publish(key, current(key), taken)
        return taken

    def _publish(self, key: str, state: State | None, taken: list[Change]) -> None:
        if state is None:
            if key in self._published:
                del self._published[key]
                taken.append(Change(key, None))
        else:
            if self._published.get(key) != state:
                taken.append(Change(key, state))
            # Also where it is equal: after a restart what was read is another object in each part.
            self._published[key] = state

    def _only_used_differs(self, key: str, state: State | None) -> bool:
        known = self._published.get(key)
        if known is None or state is None or known == state:
            return False
        same = msgspec.structs.replace(
            known, used=state.used, unpriced_events=state.unpriced_events
        )
        return same == state
