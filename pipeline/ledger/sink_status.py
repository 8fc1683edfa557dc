"""What the sink says about itself to whoever asks after its health."""

from dataclasses import dataclass, field
from time import monotonic

STALLED_AFTER_S = 30.0


@dataclass
class SinkStatus:
    """Written by the sink, read by others. Times are of the monotonic clock, in seconds.

    ``lag`` counts the blocks (and transaction markers) of each priced partition that the ledger
    does not hold yet. ``last_advanced_s`` is when rows were last written, or nothing was to be
    written.
    """

    last_advanced_s: float = field(default_factory=monotonic)
    lag: dict[int, int] = field(default_factory=dict[int, int])
    rows_written: int = 0
    rounds: int = 0
    failures: int = 0

    def note_round(self, rows: int) -> None:
        """A round was written and vouched for."""
        self.last_advanced_s = monotonic()
        self.rows_written += rows
        self.rounds += 1

    def note_idle(self) -> None:
        """Everything that is there is in the ledger."""
        self.last_advanced_s = monotonic()

    def problems(self) -> list[str]:
        """One line for each reason why the sink is not well; empty when it is."""
        still_s = monotonic() - self.last_advanced_s
        waiting = sum(self.lag.values())
        if still_s > STALLED_AFTER_S:
            return [f"the sink has not advanced for {still_s:.0f} s; {waiting} blocks wait"]
        return []
