"""What the SDK tells its service: a few lines in the log, never a flood."""

import logging
import threading
import time

log = logging.getLogger("tallyport")

INTERVAL_S = 60.0


class Notices:
    """Warns at most once a minute about each kind of trouble, with how often it came meanwhile."""

    def __init__(self) -> None:
        self.last = ""
        self._lock = threading.Lock()
        self._next_s: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def warn(self, kind: str, message: str) -> None:
        """``kind`` is one of a closed few; ``message`` is one line."""
        now_s = time.monotonic()
        with self._lock:
            self.last = message
            if now_s < self._next_s.get(kind, 0.0):
                self._held_back[kind] = self._held_back.get(kind, 0) + 1
                return
            self._next_s[kind] = now_s + INTERVAL_S
            more = self._held_back.pop(kind, 0)
        log.warning("%s%s", message, f" (and {more} times more before this)" if more else "")
