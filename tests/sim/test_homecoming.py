"""Events that come home late: counted once or rejected, to the millisecond."""

from bisect import bisect_left

from tests.sim.directed import sent_twice_and_late_home
from tests.sim.mutants import MUTANTS
from tests.sim.oracle import DAY_MS
from tests.sim.simulation import Outcome, simulate

# The run begins at midday, and nine days after the day began ids of it may be forgotten.
WAITS_MS = range(8 * DAY_MS, 9 * DAY_MS)


def late_home(away_ms: int) -> Outcome:
    return simulate(sent_twice_and_late_home(away_ms))


def is_rejected(away_ms: int) -> bool:
    return bool(late_home(away_ms).hits["fate-rejected"])


def test_a_copy_is_a_duplicate_for_as_long_as_all_ids_of_its_day_are_remembered() -> None:
    first = bisect_left(WAITS_MS, True, key=is_rejected)
    assert 0 < first < len(WAITS_MS)
    last_ms, too_late_ms = WAITS_MS[first - 1], WAITS_MS[first]
    last, too_late = late_home(last_ms), late_home(too_late_ms)
    assert (last.problems, too_late.problems) == ([], [])
    assert (last.hits["fate-duplicate"], too_late.hits["fate-duplicate"]) == (1, 0)
    with MUTANTS["what_comes_home_late_is_counted"]():
        assert late_home(last_ms).problems == []
        assert late_home(too_late_ms).problems
