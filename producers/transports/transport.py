"""What a transport does for the SDK, whichever way it goes."""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from producers.prices import Prices
from producers.segment import Entry
from producers.stats import RejectedReason

GROUP = "tallyport-sdk"
"""The consumer group that readers of states and rates name; they commit nothing in it."""

Follower = Callable[[threading.Event], None]
"""Follows something until the event is set. Raises ``Unavailable``; it is then started again."""


class Unavailable(Exception):
    """The other side cannot be used now; the message is one line.

    ``retry_after_s`` is what it asked for, None when it did not; ``status`` is that of its HTTP
    answer, None where it gave none.
    """

    def __init__(
        self, message: str, retry_after_s: float | None = None, status: int | None = None
    ) -> None:
        super().__init__(" ".join(message.split())[:300])
        self.retry_after_s = retry_after_s
        self.status = status


class Outcome(NamedTuple):
    """What became of one event: where it stands, or with ``reason`` why it was refused."""

    partition: int = -1
    offset: int = -1
    reason: RejectedReason | None = None
    detail: str = ""


class StateTaker(Protocol):
    """What is told of the records of ``budget.state``, in the order of each partition."""

    def begin(self, partitions: int) -> None:
        """All states of so many partitions are about to be sent."""
        ...

    def take(self, partition: int, key: bytes | str, value: bytes | None) -> None:
        """Takes one record, a heartbeat or a state; None where it was taken away."""
        ...

    def caught_up(self, partitions: int | None = None) -> None:
        """All states that were there at ``begin`` have been taken."""
        ...


class Transport(Protocol):
    """A connection of one process. It is used by the threads it was made for, and by no child."""

    def open(self) -> None:
        """Begins to connect, so that the first event need not wait for it; does not wait itself.

        Called once, before anything is delivered and by the thread that delivers.
        """
        ...

    def deliver(self, entries: Sequence[Entry], stop: threading.Event) -> Sequence[Outcome | None]:
        """Sends events in order and waits for what becomes of each; None means: send it again.

        Returns early when ``stop`` is set. Raises ``Unavailable`` when none was taken.
        """
        ...

    def followers(self, gate: StateTaker, prices: Prices | None) -> Sequence[Follower]:
        """What keeps the gate and the prices up to date, each to be run in a thread; without
        prices only the gate."""
        ...

    def close(self) -> None:
        """Ends the connection; what was not delivered is not."""
        ...

    def abandon(self) -> None:
        """In a child process: never touch again what belongs to the parent."""
        ...


Connect = Callable[[], Transport]
"""Makes a transport for this process; connects when it is used."""
