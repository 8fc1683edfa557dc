"""Corrections that are resolved, but that the ledger may not hold yet."""

from collections import deque
from collections.abc import Iterable, Mapping

from pipeline.core.corrections import Entry
from pipeline.core.resolved import Resolved
from pipeline.corrections.entries import EventKey

MAX_PENDING = 50_000


class Pending:
    """Entries by event, and the ids of their corrections, until the ledger has taken them in.

    A partition's records are let go once the ledger vouches for their offsets.
    """

    def __init__(self) -> None:
        self._entries: dict[EventKey, list[Entry]] = {}
        self._ids: set[str] = set()
        # By partition: (offset from which on the ledger must go on, the records before it).
        self._waiting: dict[int, deque[tuple[int, list[Resolved]]]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def is_full(self) -> bool:
        """Whether the ledger should catch up first."""
        return len(self._ids) >= MAX_PENDING

    def add(self, partition: int, next_offset: int, records: Iterable[Resolved]) -> None:
        """Takes records that lie below ``next_offset`` of a partition."""
        taken = list(records)
        for resolved in taken:
            event = resolved.event
            key = (event.port_id, event.event_id)
            self._entries.setdefault(key, []).append(resolved.entry)
            self._ids.add(resolved.correction_id)
        self._waiting.setdefault(partition, deque()).append((next_offset, taken))

    def entries(self, key: EventKey) -> list[Entry]:
        """What is known of an event beside the ledger."""
        return self._entries.get(key, [])

    def has(self, correction_id: str) -> bool:
        """Whether a correction is among them."""
        return correction_id in self._ids

    def let_go(self, reached: Mapping[int, int]) -> None:
        """Forgets what the ledger has, given up to where it has each partition."""
        for partition, waiting in self._waiting.items():
            while waiting and waiting[0][0] <= reached.get(partition, 0):
                for resolved in waiting.popleft()[1]:
                    self._forget(resolved)

    def _forget(self, resolved: Resolved) -> None:
        event = resolved.event
        key = (event.port_id, event.event_id)
        left = [e for e in self._entries.get(key, ()) if e != resolved.entry]
        if left:
            self._entries[key] = left
        else:
            self._entries.pop(key, None)
        self._ids.discard(resolved.correction_id)
