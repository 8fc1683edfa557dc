"""What the sink says about itself to whoever asks after its health, and to its watchdog."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.liveness import Sighting, Watchdog


@dataclass
class SinkStatus:
    """Written by the sink, read by others, from other threads too.

    ``lag`` counts the blocks (and transaction markers) of each priced partition that the ledger
    does not hold yet. ``doing`` is what the sink does besides taking blocks; empty while it only
    does that. ``trouble`` is why the last round failed, until one succeeds. ``is_ready`` once the
    first positions were read.
    """

    lag: dict[int, int] = field(default_factory=dict[int, int])
    doing: str = "it reads its positions from the ledger"
    trouble: str = ""
    is_ready: bool = False
    rows_written: int = 0
    rounds: int = 0
    failures: int = 0
    watchdog: Watchdog | None = None

    def note_round(self, rows: int) -> None:
        """A round was written and vouched for."""
        self.rows_written += rows
        self.rounds += 1
        self.trouble = ""

    def problems(self) -> list[str]:
        """One line for each reason why the sink is not well; empty when it is."""
        early = [] if self.is_ready else [f"the sink is not ready: {self._again(self.doing)}"]
        return early + ([] if self.watchdog is None else self.watchdog.problems())

    def own_problems(self) -> list[str]:
        """Those that a restart of the sink would cure."""
        return [] if self.watchdog is None else self.watchdog.own_problems()

    def look(self) -> Mapping[str, Sighting]:
        """For the watchdog: a round that is written, or nothing that waits, is an advance."""
        waiting = sum(self.lag.values())
        said = self._again(self.doing or ("the ledger lacks them" if waiting else ""))
        if waiting:
            said = f"{waiting} blocks wait; {said}"
        return {"the sink": Sighting(self.rounds, said)}

    def _again(self, said: str) -> str:
        return f"{said}, again after: {self.trouble}" if said and self.trouble else said
