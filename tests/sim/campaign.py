"""Many runs, on every processor: so many, or as many as a time box holds.

Each process takes every n-th seed. They are processes of their own because Python's hash seed must
be 0 in each: a run is the same everywhere only if sets are walked in the same order.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.sim.scenario import scenario_of
from tests.sim.simulation import simulate

ROOT = Path(__file__).parent.parent.parent
MAX_FAILURES = 3
RUNS_PER_COLLECTION = 20
END_S = 60.0
"""As long as a run may take that has begun when the time is over."""
COMMAND = (sys.executable, "-m", "tests.sim.campaign")


@dataclass
class Found:
    """What a campaign saw: ``failures`` by seed."""

    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])
    failures: dict[int, list[str]] = field(default_factory=dict[int, list[str]])


def explore(first: int, *, runs: int | None = None, seconds: float | None = None) -> Found:
    """Runs seeds from ``first`` on, on every processor: ``runs`` of them however long that takes,
    or until ``seconds`` are over.
    """
    count = len(os.sched_getaffinity(0))
    last = "" if runs is None else str(first + runs - 1)
    time_s = "" if seconds is None else str(seconds)
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    processes = [
        subprocess.Popen(
            [*COMMAND, str(first + n), str(count), last, time_s],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
        )
        for n in range(count)
    ]
    found = Found()
    try:
        for process in processes:
            output, _ = process.communicate(timeout=None if seconds is None else seconds + END_S)
            if process.returncode != 0:
                raise RuntimeError(f"a process of the campaign ended with {process.returncode}")
            body = json.loads(output)
            found.runs += body["runs"]
            found.hits.update(body["hits"])
            found.failures |= {int(seed): texts for seed, texts in body["failures"].items()}
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    return found


def run_seeds(first: int, stride: int, last: int | None, seconds: float | None) -> Found:
    """Runs ``first``, ``first + stride``, … in this process, up to ``last`` or for ``seconds``."""
    found = Found()
    start_s = time.monotonic()
    gc.collect()
    gc.freeze()
    gc.disable()  # a run leaves cycles behind, and collecting in its midst takes a third of it
    seed = first
    while len(found.failures) < MAX_FAILURES and (last is None or seed <= last):
        if seconds is not None and time.monotonic() - start_s > seconds:
            break
        outcome = simulate(scenario_of(seed))
        found.runs += 1
        found.hits.update(outcome.hits)
        if outcome.problems:
            found.failures[seed] = outcome.problems
        if found.runs % RUNS_PER_COLLECTION == 0:
            gc.collect()
        seed += stride
    return found


def main() -> None:
    first, stride, last, seconds = sys.argv[1:]
    found = run_seeds(
        int(first), int(stride), int(last) if last else None, float(seconds) if seconds else None
    )
    print(json.dumps({"runs": found.runs, "hits": found.hits, "failures": found.failures}))


if __name__ == "__main__":
    main()
