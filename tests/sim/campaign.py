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
GRACE_S = 60.0


@dataclass
class Found:
    """What a campaign saw: ``failures`` by seed."""

    runs: int = 0
    hits: Counter[str] = field(default_factory=Counter[str])
    failures: dict[int, list[str]] = field(default_factory=dict[int, list[str]])


def explore(first: int, seconds: float) -> Found:
    """Runs seeds from ``first`` on until ``seconds`` are over, on every processor."""
    count = len(os.sched_getaffinity(0))
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim.campaign", str(first + n), str(count), str(seconds)],
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
        )
        for n in range(count)
    ]
    found = Found()
    try:
        for process in processes:
            output, _ = process.communicate(timeout=seconds + GRACE_S)
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


def run_seeds(first: int, stride: int, seconds: float) -> Found:
    """Runs ``first``, ``first + stride``, … in this process."""
    found = Found()
    end_s = time.monotonic() + seconds
    gc.collect()
    gc.freeze()
    gc.disable()  # a run leaves cycles behind, and collecting in its midst takes a third of it
    seed = first
    while time.monotonic() < end_s and len(found.failures) < MAX_FAILURES:
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
    first, stride, seconds = sys.argv[1:]
    found = run_seeds(int(first), int(stride), float(seconds))
    print(json.dumps({"runs": found.runs, "hits": found.hits, "failures": found.failures}))


if __name__ == "__main__":
    main()
