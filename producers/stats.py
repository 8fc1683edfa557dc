"""What a meter has done so far, in numbers."""

import threading
from collections import Counter
from typing import Final, Literal

import msgspec

from pipeline.core.rejections import Reason

LOST_OFF: Final = "off"
LOST_CLOSED: Final = "closed"
LOST_ERROR: Final = "error"
LOST_FULL: Final = "spool-full"
LOST_FAILED: Final = "spool-failed"
LOST_DAMAGED: Final = "spool-damaged"
LostReason = Literal["off", "closed", "error", "spool-full", "spool-failed", "spool-damaged"]
"""Why an event was lost: no deployment is configured, the meter was closed, a fault in the SDK, no
room left in the spool, the disk refused, the disk gave back something else."""

REFUSED: Final = "refused"
RejectedReason = Reason | Literal["refused"]
"""Why an event was refused: the contract's reasons, or the API as a whole refused the request."""


class MeterStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of one process's counters since the meter was made.

    ``recorded`` events are in the spool or sent; ``sent`` ones are acknowledged; ``adopted`` ones
    were left by processes that died. ``rejected`` and ``lost`` count by reason, see
    ``RejectedReason`` and ``LostReason``. ``unrecorded`` calls were left without a record,
    ``estimated`` events carry an estimate because the response did not say what was used,
    ``unknown_shapes`` responses were not recognised, ``unknown_fields`` were ignored. ``waiting``
    events are in the spool now. ``policies`` are mirrored now; ``held`` calls are counted beside
    what their states say; ``lapsed`` ones were let go because nothing more was heard of them.
    ``unreadable`` records of ``budget.state`` were ignored.
    """

    transport: str
    freshness: str
    spool: str
    recorded: int = 0
    sent: int = 0
    adopted: int = 0
    waiting: int = 0
    rejected: dict[str, int] = {}
    lost: dict[str, int] = {}
    unrecorded: int = 0
    estimated: int = 0
    unknown_shapes: int = 0
    unknown_fields: int = 0
    bad_estimates: int = 0
    policies: int = 0
    held: int = 0
    lapsed: int = 0
    unreadable: int = 0
    last_trouble: str = ""


class Counters:
    """Counts from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._plain = Counter[str]()
        self._rejected = Counter[str]()
        self._lost = Counter[str]()

    def add(self, name: str, count: int = 1) -> None:
        """Adds to the field of ``MeterStats`` with that name."""
        with self._lock:
            self._plain[name] += count

    def reject(self, reason: RejectedReason) -> None:
        """Counts an event that was refused."""
        with self._lock:
            self._rejected[reason] += 1

    def lose(self, reason: LostReason, count: int = 1) -> None:
        """Counts events that were lost."""
        with self._lock:
            self._lost[reason] += count

    def snapshot(self) -> dict[str, object]:
        """The counted fields of ``MeterStats``."""
        with self._lock:
            return {
                **self._plain,
                "rejected": dict(self._rejected),
                "lost": dict(self._lost),
            }
