"""The events of the benchmarks of the stream: how many, and made of what."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from producers.steady import steady

PORTS, USERS = 200, 5_000


@dataclass(frozen=True, slots=True)
class Load:
    """How many events, of how many ports and users."""

    events: int
    ports: int = PORTS
    users: int = USERS

    def made(
        self, seed: int | None = None, end: datetime | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Their (key, value) pairs, up to ``end`` (now without one); another seed each time
        without one, so that no run's events are duplicates of another's."""
        return steady(
            self.events,
            time.time_ns() % 2**32 if seed is None else seed,
            ports=self.ports,
            users=self.users,
            end=end or datetime.now(UTC),
        )
