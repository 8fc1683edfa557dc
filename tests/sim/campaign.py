"""Many runs, on every processor, within a time box.

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
GRACE_S = 90.0
COMMAND = (sys.executable, "-m", "tests.sim.campaign")


@dataclass
class Found:
    """What a campaign saw: ``failures`` by seed."""

    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])
    failures: dict[int, list[str]] = field(default_factory=dict[int, list[str]])


def explore(first: int, seconds: float, least_runs: int = 0) -> Found:
    """Runs seeds from ``first`` on until ``seconds`` are over, on every processor.

    Where others keep the processors busy it goes on until ``least_runs``, at most ``GRACE_S`` more.
    """
    count = len(os.sched_getaffinity(0))
    least = str(-(-least_runs // count))
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    processes = [
        subprocess.Popen(
            [*COMMAND, str(first + n), str(count), str(seconds), least],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
        )
        for n in range(count)
    ]
    found = Found()
    try:
        for process in processes:
            output, _ = process.communicate(timeout=seconds + 2 * GRACE_S)
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


def run_seeds(first: int, stride: int, seconds: float, least_runs: int) -> Found:
    """Runs ``first``, ``first + stride``, … in this process."""
    found = Found()
    start_s = time.monotonic()
    gc.collect()
    gc.freeze()
    gc.disable()  # a run leaves cycles behind, and collecting in its midst takes a third of it
    seed = first
    while len(found.failures) < MAX_FAILURES:
        spent_s = time.monotonic() - start_s
        if spent_s > seconds and (found.runs >= least_runs or spent_s > seconds + GRACE_S):
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
    first, stride, seconds, least_runs = sys.argv[1:]
    found = run_seeds(int(first), int(stride), float(seconds), int(least_runs))
    print(json.dumps({"runs": found.runs, "hits": found.hits, "failures": found.failures}))


if __name__ == "__main__":
    main()
