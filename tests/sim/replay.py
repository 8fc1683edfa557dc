"""Replays runs of the simulator: ``python -m tests.sim.replay 123`` (or ``make sim SEED=123``).

    SEED                 one run; when it fails, its inputs are shrunk and printed
    --file FILE          the same for a list of inputs as printed
    --seconds S          as many new runs as S seconds allow, on every processor, from --first on
    --mutant NAME        with one rule of the pipeline broken (see tests/sim/mutants.py)
    --no-shrink          prints the failing list as it is

Exit status 0: everything agreed; 1: something differs.
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from tests.sim.campaign import explore
from tests.sim.mutants import MUTANTS
from tests.sim.scenario import Scenario, scenario_of
from tests.sim.shrink import shrink
from tests.sim.simulation import simulate

COMMAND = "python -m tests.sim.replay"


def main() -> int:
    arguments = _parser().parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of strings would be walked in another order by each process.
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.sim.replay", *sys.argv[1:]], environ
        )
    if arguments.seconds:
        return _explore(arguments.first, arguments.seconds)
    if arguments.file is not None:
        scenario = Scenario.from_json(arguments.file.read_text())
    else:
        scenario = scenario_of(arguments.seed)
    with MUTANTS[arguments.mutant]() if arguments.mutant else nullcontext():
        return _replay(scenario, arguments.no_shrink)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--first", type=int, default=int(time.time()) * 1_000)
    parser.add_argument("--mutant", choices=sorted(MUTANTS))
    parser.add_argument("--no-shrink", action="store_true")
    return parser


def _replay(scenario: Scenario, no_shrink: bool) -> int:
    outcome = simulate(scenario)
    if not outcome.problems:
        print(f"seed {scenario.knobs.seed}: everything agrees after {outcome.virtual_s:.1f} s")
        return 0
    if not no_shrink:
        count = len(scenario.inputs)
        scenario = shrink(scenario, lambda one: bool(simulate(one).problems))
        outcome = simulate(scenario)
        print(f"shrunk from {count} inputs to {len(scenario.inputs)}", file=sys.stderr)
    print(scenario.to_json())
    for problem in outcome.problems:
        print(problem, file=sys.stderr)
    return 1


def _explore(first: int, seconds: float) -> int:
    found = explore(first, seconds=seconds)
    print(f"{found.runs} runs from seed {first} on, {len(found.failures)} failed")
    for name, count in sorted(found.hits.items()):
        print(f"{count:8} {name}")
    for seed, problems in found.failures.items():
        print(f"seed {seed} fails; replay it with: {COMMAND} {seed}", file=sys.stderr)
        print("\n".join(f"    {problem}" for problem in problems), file=sys.stderr)
    return 1 if found.failures or not found.runs else 0


if __name__ == "__main__":
    sys.exit(main())
