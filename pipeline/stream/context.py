"""What every stage of one worker shares."""

from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.core.event_codec import TimeLimits
from pipeline.core.prices import PriceVersion
from pipeline.settings import Settings
from pipeline.stream.clock import BrokerClock
from pipeline.stream.topics import Topics


class Rates(Protocol):
    """The price version in force and how fresh it is known to be."""

    @property
    def version(self) -> PriceVersion:
        """The prices of everything read so far."""
        ...

    async def confirmed_within(self, wait_s: float, lead_s: float) -> bool:
        """Waits up to ``wait_s``; whether the end of the rates topic was seen no longer than
        ``lead_s`` ago by then."""
        ...


@dataclass(frozen=True, slots=True)
class StreamContext:
    """``client`` holds aiokafka's connection arguments; ``partitions`` of ``usage.events``."""

    settings: Settings
    client: dict[str, Any]
    topics: Topics
    partitions: int
    epoch: int
    rates: Rates
    clock: BrokerClock

    @property
    def limits(self) -> TimeLimits:
        """How old and how far ahead an event may be."""
        settings = self.settings
        return TimeLimits.of(settings.max_event_age_days, settings.max_future_skew_s)
