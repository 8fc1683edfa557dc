"""Carries events from the spool to the deployment, in order, until each is acknowledged."""

import os
import threading
import time
from collections.abc import Callable, Sequence

from producers.gate import Gate
from producers.notices import Notices
from producers.reservations import Hold
from producers.segment import Entry
from producers.spool import Orphan, Queue, Spool
from producers.stats import LOST_DAMAGED, Counters, LostReason
from producers.transports.transport import Outcome, Transport, Unavailable

MAX_ENTRIES = 1_000
MAX_BYTES = 900_000
"""Of a batch; the API takes no more than 1,000 events and 1 MiB."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_ASKED_PAUSE_S = 60.0
ADOPT_S = 10.0
"""How often it looks for what processes that died have left."""

TakeTag = Callable[[int], object]


class Courier:
    """One thread runs ``run``; the others hand events over with ``submit``."""

    def __init__(
        self, spool: Spool, transport: Transport, gate: Gate, counters: Counters, notices: Notices
    ) -> None:
        self._spool = spool
        self._transport = transport
        self._gate = gate
        self._counters = counters
        self._notices = notices
        self._orphans: list[Orphan] = []
        self._adopt_at_s = 0.0
        self._pause_s = FIRST_PAUSE_S
        self._is_idle = False
        self._wake = threading.Event()
        self._emptied = threading.Condition()

    def submit(self, key: bytes, value: bytes, hold: Hold | None) -> LostReason | None:
        """Takes an event; it outlives this process from now on. Returns why it is lost, if so."""
        trouble = self._spool.append(key, value, hold)
        if self._is_idle:
            self._is_idle = False
            self._wake.set()
        return trouble

    def flush(self, timeout_s: float) -> bool:
        """Waits until everything submitted has been answered; whether it has."""
        with self._emptied:
            return self._emptied.wait_for(lambda: not self._spool.waiting, timeout_s)

    def wake(self) -> None:
        """Makes ``run`` look at ``stop``."""
        self._wake.set()

    def run(self, stop: threading.Event) -> None:
        """Sends what there is until ``stop`` is set."""
        try:
            if not stop.is_set():
                self._open()
            while not stop.is_set():
                self._adopt_when_due()
                has_sent = bool(self._send(self._spool, self._spool.take_tag, stop))
                if not self._send_orphans(stop) and not has_sent:
                    self._rest(stop)
        finally:
            for orphan in self._orphans:
                orphan.close()

    def _open(self) -> None:
        try:
            self._transport.open()
        except Exception as error:  # delivering tries again
            self._notices.warn("send", f"events wait to be sent: {error!r}")

    def _rest(self, stop: threading.Event) -> None:
        with self._emptied:
            self._emptied.notify_all()
        self._spool.prepare()
        self._is_idle = True
        if not self._spool.waiting and not stop.is_set():
            self._wake.wait(ADOPT_S)
        self._is_idle = False
        self._wake.clear()

    def _send_orphans(self, stop: threading.Event) -> bool:
        if not self._orphans:
            return False
        orphan = self._orphans[0]
        answered = self._send(orphan, lambda _: None, stop)
        if answered:
            self._counters.add("adopted", answered)
        elif not stop.is_set():
            orphan.remove()
            self._orphans.pop(0)
        return True

    def _adopt_when_due(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._adopt_at_s:
            self._adopt_at_s = now_s + ADOPT_S
            self._orphans += self._spool.orphans()

    def _send(self, queue: Queue, take_tag: TakeTag, stop: threading.Event) -> int:
        """Sends the first batch of a queue and stays with it until all of it is answered.

        Returns how many events were: fewer than the batch only when ``stop`` is set.
        """
        entries = queue.peek(MAX_ENTRIES, MAX_BYTES)
        if queue.damaged:
            self._counters.lose(LOST_DAMAGED, queue.damaged)
            queue.damaged = 0
        waiting = list(enumerate(entries))
        while waiting and not stop.is_set():
            outcomes = self._deliver([entry for _, entry in waiting], stop)
            unanswered: list[tuple[int, Entry]] = []
            for (index, entry), outcome in zip(waiting, outcomes, strict=True):
                if outcome is None:
                    unanswered.append((index, entry))
                else:
                    self._settle(outcome, take_tag(index))
            waiting = unanswered
        # What comes after an event without an answer is sent again with it; the worker drops it.
        answered = waiting[0][0] if waiting else len(entries)
        if answered:
            queue.finish(entries[:answered])
            self._spool.prepare()
        return answered

    def _deliver(self, entries: Sequence[Entry], stop: threading.Event) -> Sequence[Outcome | None]:
        asked_s: float | None = None
        try:
            outcomes = self._transport.deliver(entries, stop)
            if None not in outcomes:
                self._pause_s = FIRST_PAUSE_S
                return outcomes
        except Unavailable as error:
            outcomes, asked_s = [None] * len(entries), error.retry_after_s
            self._notices.warn("send", f"events wait to be sent: {error}")
        except Exception as error:  # a fault in a transport must not end the only sender
            outcomes = [None] * len(entries)
            self._notices.warn("send", f"events wait to be sent: {error!r}")
        self._pause(asked_s, stop)
        return outcomes

    def _pause(self, asked_s: float | None, stop: threading.Event) -> None:
        pause_s = self._pause_s * (1.0 - os.urandom(1)[0] / 512)  # not all processes at once
        if asked_s is not None:
            pause_s = max(pause_s, min(asked_s, LONGEST_ASKED_PAUSE_S))
        self._pause_s = min(self._pause_s * 2, LONGEST_PAUSE_S)
        stop.wait(pause_s)

    def _settle(self, outcome: Outcome, tag: object) -> None:
        hold = tag if isinstance(tag, Hold) else None
        if outcome.reason is not None:
            self._counters.reject(outcome.reason)
            self._notices.warn(
                "rejected", f"an event was refused: {outcome.reason}: {outcome.detail}"
            )
            if hold is not None:
                self._gate.release(hold)
            return
        self._counters.add("sent")
        if hold is not None:
            if outcome.offset >= 0:
                self._gate.sent(hold, outcome.partition, outcome.offset)
            else:
                self._gate.release(hold)
