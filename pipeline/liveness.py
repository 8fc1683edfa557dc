"""The watchdog of a process: a thread that notices when something waits and nothing moves.

Whoever does work shows where it stands and what waits for it. The watchdog looks twice a second,
from a thread of its own, so that a blocked event loop is noticed as well. What has stood still for
``STALL_S`` while something waited is a problem, told by ``/health`` and a metric; after the bound
given with the watch the process is beyond its own help and ends.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline import metrics
from pipeline.core.errors import TallyportError

STALL_S = 8.0
LOOK_INTERVAL_S = 0.5
# Longer between two looks means that this process itself did not run, as after SIGSTOP.
LOST_TIME_S = 3.0
GRACE_S = 10.0

log = logging.getLogger(__name__)


class Stalled(TallyportError):
    """Something stands still and does not recover by itself."""


class Sighting(NamedTuple):
    """Where something stands, and what waits for it to move; empty when nothing does.

    ``position`` is anything that compares; as soon as it differs, it has moved.
    """

    position: object
    waiting: str


Look = Callable[[], Mapping[str, Sighting]]
"""What is seen now, by name; it is called from the watchdog's thread and must not block."""


class _Watch(NamedTuple):
    what: str
    look: Look
    give_up_s: float
    restart_helps: bool


class _Stand(NamedTuple):
    sighting: Sighting
    since_s: float


class Watchdog:
    """Watches until it is closed. ``give_up`` is told the first line of what is beyond help.

    ``give_up`` is called from the watchdog's thread. Times are seconds of the monotonic clock.
    """

    def __init__(
        self, give_up: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._give_up: Callable[[str], None] | None = give_up
        self._clock = clock
        self._watches: list[_Watch] = []
        self._stands: dict[tuple[str, str], _Stand] = {}
        self._looked_s = clock()
        self._problems: list[str] = []
        self._own_problems: list[str] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def watch(self, what: str, look: Look, give_up_s: float, *, restart_helps: bool = True) -> None:
        """Looks from now on. ``what`` is the metric's label: loop, fetch, price, …

        ``restart_helps`` is false where the cause lies in another process.
        """
        metrics.STALLED_SECONDS.labels(what).set(0)
        self._watches = [*self._watches, _Watch(what, look, give_up_s, restart_helps)]

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(LOOK_INTERVAL_S * 4)

    def problems(self) -> list[str]:
        """What stands still while something waits for it, one line each."""
        return self._problems

    def own_problems(self) -> list[str]:
        """Those of them that a restart of this process would cure."""
        return self._own_problems

    def look(self) -> None:
        """One look at everything."""
        now_s = self._clock()
        lost_s = now_s - self._looked_s
        self._looked_s = now_s
        if lost_s > LOST_TIME_S:
            self._stands = {
                place: stand._replace(since_s=stand.since_s + lost_s)
                for place, stand in self._stands.items()
            }
        problems: list[tuple[str, bool]] = []
        stands: dict[tuple[str, str], _Stand] = {}
        for watch in self._watches:
            longest_s = 0.0
            for name, sighting in _seen(watch).items():
                stand = self._stand(watch.what, name, sighting, now_s)
                stands[watch.what, name] = stand
                still_s = now_s - stand.since_s
                longest_s = max(longest_s, still_s)
                if still_s >= STALL_S:
                    line = f"{name} has not moved for {still_s:.0f} s: {sighting.waiting}"
                    problems.append((line, watch.restart_helps))
                    if still_s >= watch.give_up_s:
                        self._end(line)
            metrics.STALLED_SECONDS.labels(watch.what).set(longest_s)
        self._stands = stands
        self._problems = [line for line, _ in problems]
        self._own_problems = [line for line, own in problems if own]

    def _stand(self, what: str, name: str, sighting: Sighting, now_s: float) -> _Stand:
        former = self._stands.get((what, name))
        if former is None or not sighting.waiting or not former.sighting.waiting:
            return _Stand(sighting, now_s)
        if former.sighting.position != sighting.position:
            return _Stand(sighting, now_s)
        return former

    def _end(self, line: str) -> None:
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up(line)

    def _run(self) -> None:
        while not self._closed.wait(LOOK_INTERVAL_S):
            self.look()


def _seen(watch: _Watch) -> Mapping[str, Sighting]:
    try:
        return watch.look()
    except RuntimeError as error:  # something changed while another thread looked at it
        log.debug("watchdog: %s could not be seen: %s", watch.what, error)
        return {}


def loop_pulse(loop: asyncio.AbstractEventLoop, name: str) -> Look:
    """Sees an event loop answer; one that is blocked, or gone, does not."""
    beats = 0

    def beat() -> None:
        nonlocal beats
        beats += 1

    def look() -> Mapping[str, Sighting]:
        with contextlib.suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(beat)
        return {name: Sighting(beats, "its event loop does not answer")}

    return look


def end_through(
    loop: asyncio.AbstractEventLoop, fail: Callable[[BaseException], None]
) -> Callable[[str], None]:
    """A ``give_up`` that lets ``fail`` end the process from the event loop, in order.

    Where that takes longer than ``GRACE_S``, as in a loop that is blocked, the process ends at
    once, with its line on stderr and status 1.
    """

    def give_up(line: str) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(fail, Stalled(line))
        end_within(GRACE_S, line)

    return give_up


def end_within(seconds: float, line: str) -> None:
    """Ends this process after ``seconds`` at the latest, with ``line`` on stderr and status 1.

    For one that is on its way to its end already and may hang on it.
    """
    arguments = (seconds, line)
    threading.Thread(target=_end_hard, args=arguments, name="last resort", daemon=True).start()


def _end_hard(seconds: float, line: str) -> None:
    time.sleep(seconds)
    print(f"tallyport: {line}", file=sys.stderr, flush=True)
    os._exit(1)
