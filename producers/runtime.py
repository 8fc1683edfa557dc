"""What a meter is in one process: its connection, spool, gate, prices and threads."""

import contextlib
import threading
import time
from collections.abc import Callable

from producers.courier import FIRST_PAUSE_S, LONGEST_PAUSE_S, Courier
from producers.gate import Gate
from producers.notices import Notices
from producers.prices import Prices
from producers.settings import MeterSettings
from producers.spool import Spool, spool_root
from producers.stats import LOST_CLOSED, Counters
from producers.transports.transport import Connect, Follower, Unavailable

Clock = Callable[[], float]

_abandoned: list[object] = []
"""What belongs to a parent process; never freed here, as freeing would close it."""


class Runtime:
    """Started once, closed once; a child process makes its own.

    Whatever ``connect`` raises is raised here, before any thread runs.
    """

    def __init__(
        self,
        settings: MeterSettings,
        connect: Connect,
        clock: Clock,
        counters: Counters,
        notices: Notices,
    ) -> None:
        self.gate = Gate(settings.on_stale, clock)
        self.prices = Prices()
        self._counters = counters
        self._notices = notices
        self._transport = connect()
        self.spool = self._open_spool(settings)
        self.courier = Courier(self.spool, self._transport, self.gate, counters, notices)
        self._stop = threading.Event()
        self._threads = [self._thread("tallyport-send", self.courier.run)]
        self._threads += [
            self._thread(f"tallyport-follow-{number}", self._forever(follower))
            for number, follower in enumerate(self._transport.followers(self.gate, self.prices))
        ]

    def start(self) -> None:
        """Starts the threads."""
        for thread in self._threads:
            thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Waits until states, and with them if possible prices, have been read."""
        end_s = time.monotonic() + timeout_s
        if not self.gate.wait_live(timeout_s):
            return False
        self.prices.wait(max(0.0, end_s - time.monotonic()))
        return True

    def close(self, timeout_s: float) -> bool:
        """Sends what is left, for as long as ``timeout_s``, and ends; whether all was sent.

        The rest stays on disk for the next process; without a disk it is lost and counted.
        """
        is_empty = self.courier.flush(timeout_s)
        self._stop.set()
        self.courier.wake()
        with contextlib.suppress(Exception):
            self._transport.close()
        for thread in self._threads:
            thread.join(timeout_s + 1.0)
        waiting = self.spool.waiting
        if not self.spool.is_on_disk and waiting:
            self._counters.lose(LOST_CLOSED, waiting)
        if not any(thread.is_alive() for thread in self._threads):
            self.spool.close()
        return is_empty

    def abandon(self) -> None:
        """In a child process: let go of what belongs to the parent, and touch nothing of it."""
        _abandoned.append(self)
        with contextlib.suppress(Exception):
            self._transport.abandon()
            self.spool.abandon()

    def _open_spool(self, settings: MeterSettings) -> Spool:
        if not settings.keeps_on_disk:
            return Spool(None)
        try:
            return Spool(spool_root(settings.spool_dir, settings.destination))
        except OSError as error:
            self._notices.warn(
                "spool", f"unsent events wait in memory only, no folder can be used: {error}"
            )
            return Spool(None)

    def _thread(self, name: str, work: Callable[[threading.Event], None]) -> threading.Thread:
        return threading.Thread(target=work, args=(self._stop,), name=name, daemon=True)

    def _forever(self, follower: Follower) -> Callable[[threading.Event], None]:
        def follow(stop: threading.Event) -> None:
            pause_s = FIRST_PAUSE_S
            while not stop.is_set():
                started_s = time.monotonic()
                asked_s: float | None = None
                try:
                    follower(stop)
                except Unavailable as error:
                    if stop.is_set():
                        return
                    asked_s = error.retry_after_s
                    self._notices.warn("follow", f"budgets cannot be followed: {error}")
                except Exception as error:  # a fault in a transport must not end the follower
                    self._notices.warn("follow", f"budgets cannot be followed: {error!r}")
                if time.monotonic() - started_s > LONGEST_PAUSE_S:
                    pause_s = FIRST_PAUSE_S
                stop.wait(max(pause_s, asked_s or 0.0))
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

        return follow
