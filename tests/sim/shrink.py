"""Makes a failing list of inputs small: leaves inputs out as long as the run still fails.

Runs are functions of the list, so the plain method does: halves, then quarters, and so on down to
single inputs, again from the start whenever something could be left out.
"""

from collections.abc import Callable
from dataclasses import replace

from tests.sim.scenario import Input, Scenario

MAX_RUNS = 400


def shrink(
    scenario: Scenario, fails: Callable[[Scenario], bool], max_runs: int = MAX_RUNS
) -> Scenario:
    """A scenario that fails as ``scenario`` does, from which hardly an input can be left out."""
    left = max_runs

    def still_fails(inputs: tuple[Input, ...]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and fails(replace(scenario, inputs=inputs))

    inputs = scenario.inputs
    size = max(1, len(inputs) // 2)
    while True:
        smaller = _without_one_chunk(inputs, size, still_fails)
        if smaller is not None:
            inputs = smaller
            size = max(1, min(size, len(inputs) // 2))
        elif size == 1 or left <= 0:
            break
        else:
            size //= 2
    for workers in range(1, scenario.workers):
        fewer = replace(scenario, inputs=inputs, workers=workers)
        if fails(fewer):
            return fewer
    return replace(scenario, inputs=inputs)


def _without_one_chunk(
    inputs: tuple[Input, ...], size: int, fails: Callable[[tuple[Input, ...]], bool]
) -> tuple[Input, ...] | None:
    # From the end, as what comes late is least likely to matter.
    for start in range(((len(inputs) - 1) // size) * size, -1, -size):
        candidate = inputs[:start] + inputs[start + size :]
        if candidate and fails(candidate):
            return candidate
    return None
