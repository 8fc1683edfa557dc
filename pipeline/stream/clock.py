"""The broker's clock, as far as this process can know it.

Every period ends and every ``as_of`` is stamped by the broker's time, so that a machine whose own
clock is a day off neither opens a cap nor looks stale. Each acknowledged record of a LogAppendTime
topic tells the broker's time; between two of them the monotonic clock carries it on.
"""

import time


class BrokerClock:
    """``now_ms`` is wall-clock time until the first ``observe``."""

    def __init__(self) -> None:
        self._offset_ms = time.time() * 1000 - time.monotonic() * 1000

    def observe(self, broker_ms: int) -> None:
        """Takes the broker's time of something that happened just now."""
        self._offset_ms = broker_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Milliseconds since 1970 UTC by the broker's clock."""
        return int(time.monotonic() * 1000 + self._offset_ms)
