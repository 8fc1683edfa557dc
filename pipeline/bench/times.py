"""Durations that a benchmark has taken, and what is told of them."""

import math
from dataclasses import dataclass

STALL_S = 0.5
_BARS = 40


@dataclass(frozen=True, slots=True)
class Times:
    """Durations in seconds, sorted."""

    seconds: list[float]

    def at(self, percent: float) -> float:
        """The percentile, nearest rank."""
        last = len(self.seconds) - 1
        return self.seconds[min(last, int(len(self.seconds) * percent / 100))]

    def to_json(self, unit: str, per_s: float) -> dict[str, float]:
        """p50, p99 and how many, in ``unit``."""
        row = {f"p{p}_{unit}": round(self.at(p) * per_s, 2) for p in (50, 99)}
        return {**row, "count": len(self.seconds)}

    @property
    def stalls(self) -> int:
        """How many took longer than ``STALL_S``."""
        return sum(seconds > STALL_S for seconds in self.seconds)

    def histogram(self) -> dict[str, int]:
        """Upper bound in ms → how many were under it and not under the one before.

        Bounds grow by a quarter of a power of two; empty ones are left out.
        """
        counts: dict[str, int] = {}
        for seconds in self.seconds:
            step = math.ceil(4 * math.log2(max(1.0, 1000 * seconds)))
            bound = f"{2 ** (step / 4):.1f}"
            counts[bound] = counts.get(bound, 0) + 1
        return counts


def bars(histogram: dict[str, int]) -> list[str]:
    """One line for each bound, with a bar as long as its count beside the largest."""
    most = max(histogram.values(), default=1)
    return [
        f"< {bound:>7} ms  {count:>7}  {'█' * math.ceil(_BARS * count / most)}"
        for bound, count in histogram.items()
    ]
