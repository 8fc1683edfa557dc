"""The broker's clock, as far as this process can know it.

Every period ends and every ``as_of`` is stamped by the broker's time, so that a machine whose own
clock is a day off neither opens a cap nor looks stale. Each acknowledged record of a LogAppendTime
topic tells the broker's time; between two of them the monotonic clock carries it on.
"""

import time
from collections import deque

STEP_MS = 100.0
"""Less than this is how long an acknowledgement took; more may be a clock that was set."""
STEPS_KEPT = 64


class BrokerClock:
    """``now_ms`` is wall-clock time until the first ``observe``."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000
        self._steps: deque[tuple[float, float]] = deque(maxlen=STEPS_KEPT)

    def observe(self, broker_ms: int) -> None:
        """Takes the broker's time of something that happened just now."""
        now_s, before_ms = time.monotonic(), self._offset_ms
        self._offset_ms = broker_ms - now_s * 1000
        if self._offset_ms - before_ms > STEP_MS:
            self._steps.append((now_s, before_ms))

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC by the broker's clock."""
        return int(time.monotonic() * 1000 + self._offset_ms)

    def at_ms(self, at_s: float) -> int:
        """What the broker's clock said at ``at_s`` (monotonic), or less.

        What happened before a clock went forward is not of the time that the clock shows since.
        """
        earlier_ms = (offset_ms for stepped_s, offset_ms in self._steps if at_s < stepped_s)
        return int(at_s * 1000 + min((self._offset_ms, *earlier_ms)))
