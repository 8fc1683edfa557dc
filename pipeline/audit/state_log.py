"""One partition of ``budget.state`` as a reader knows it: its states at the newest heartbeats."""

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.audit.recount.instants import parse_instant

KEPT_HEARTBEATS = 12

_HEARTBEAT = b"!heartbeat|"
_VERSION = re.compile(rb'"version":\s*(\d+)\s*[,}]')


class StateRecord(NamedTuple):
    """A record of ``budget.state``."""

    offset: int
    key: bytes
    value: bytes | None


class Heartbeat(NamedTuple):
    """What a partition says it contains."""

    offset: int
    as_of_ms: int
    through: dict[int, int]


class FallenVersion(NamedTuple):
    """A state whose version is lower than one before it; ``found`` None where it has none."""

    key: bytes
    offset: int
    last: int
    found: int | None


class StateLog:
    """One partition of ``budget.state``: its states at each of the newest heartbeats.

    Memory: one value per live key, and what changed between the kept heartbeats.
    """

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.farthest: dict[int, int] = {}
        """By source partition: the highest offset that any heartbeat claims."""
        self.fallen: list[FallenVersion] = []
        self.next_offset = 0
        self._versions: dict[bytes, int] = {}
        self._oldest: dict[bytes, bytes] = {}
        self._kept: deque[tuple[Heartbeat, dict[bytes, bytes | None]]] = deque()
        self._tail: dict[bytes, bytes | None] = {}

    @property
    def heartbeats(self) -> list[Heartbeat]:
        """The kept ones, oldest first."""
        return [heartbeat for heartbeat, _ in self._kept]

    @property
    def highest_version(self) -> int:
        return max(self._versions.values(), default=0)

    def feed(self, records: Iterable[StateRecord]) -> None:
        """Takes records in the order of their offsets."""
        for record in records:
            self.next_offset = record.offset + 1
            if record.key.startswith(_HEARTBEAT):
                self._take_heartbeat(record)
            else:
                self._tail[record.key] = record.value
                if record.value is not None:
                    self._check_version(record, record.value)

    def at(self, heartbeat: Heartbeat) -> dict[bytes, bytes]:
        """The states that precede a kept heartbeat."""
        states: dict[bytes, bytes] = dict(self._oldest)
        for kept, changes in self._kept:
            _apply(states, changes)
            if kept is heartbeat:
                break
        return states

    def _take_heartbeat(self, record: StateRecord) -> None:
        body = json.loads(record.value or b"{}")
        through = {int(source): int(at) for source, at in body["through"].items()}
        for source, offset in through.items():
            self.farthest[source] = max(offset, self.farthest.get(source, 0))
        heartbeat = Heartbeat(record.offset, parse_instant(body["as_of"]) // 1000, through)
        self._kept.append((heartbeat, self._tail))
        self._tail = {}
        if len(self._kept) > KEPT_HEARTBEATS:
            _apply(self._oldest, self._kept.popleft()[1])

    def _check_version(self, record: StateRecord, value: bytes) -> None:
        found = _VERSION.search(value)
        version = int(found[1]) if found else None
        last = self._versions.get(record.key, 0)
        if version is None or version < last:
            self.fallen.append(FallenVersion(record.key, record.offset, last, version))
        if version is not None:
            self._versions[record.key] = max(last, version)


def _apply(states: dict[bytes, bytes], changes: Mapping[bytes, bytes | None]) -> None:
    for key, value in changes.items():
        if value is None:
            states.pop(key, None)
        else:
            states[key] = value
