"""Hundreds of seeded runs against the oracle, and the proof that they are not vacuous."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.sim.campaign import ROOT, Found, explore
from tests.sim.replay import COMMAND
from tests.sim.scenario import POINTS, RESOLVER_POINTS, Scenario, scenario_of
from tests.sim.simulation import simulate

FIRST_SEED = 1
RUNS = 600
"""The same ones everywhere, however fast the machine is; ``make sim`` looks for others."""
CORRECTION_FATES = (
    "accepted",
    "duplicate",
    "unknown-event",
    "unknown-rate",
    "already-void",
    "wrong-currency",
    "inconsistent-tokens",
    "malformed-json",
    "not-an-object",
    "missing-field",
    "wrong-type",
    "out-of-range",
)
LEAST_HITS = {
    "fate-accepted": 3_000,
    "fate-rejected": 1_000,
    "fate-duplicate": 300,
    "fate-forwarded": 200,
    "fate-unpriced": 100,
    **{f"killed-at-{point}": 1 for point in POINTS},
    **{f"frozen-at-{point}": 1 for point in POINTS},
    **dict.fromkeys(
        (
            "killed-worker",
            "frozen-worker",
            "stopped-worker",
            "joined-worker",
            "rebalance",
            "dropped-slice",
            "dropped-at-rebalance",
            "stale-slice:usage.events",
            "stale-slice:tallyport.partials",
            "sought-back",
            "outage",
            "lost-produce-executed",
            "lost-produce-not-executed",
            "lost-commit-executed",
            "lost-commit-not-executed",
            "clock-forward",
            "clock-back",
            "broker-clock-forward",
            "broker-clock-back",
            "days-passed",
            "policy-deleted",
            "policy-invalid",
            "compacted:tallyport.totals",
            "compacted:tallyport.ids",
            "compacted:budget.state",
            "compacted:budget.policies",
            "retained:usage.events",
            "retained:usage.priced",
            "retained:tallyport.partials",
            "frozen-sink",
            "ledger-outage",
            "lost-insert-executed:ledger_entries",
            "lost-insert-not-executed:ledger_entries",
            "lost-insert-executed:sink_manifests",
            "killed-at-sink-before-insert",
            "killed-at-sink-after-insert",
            "killed-at-sink-before-manifest",
            "killed-at-sink-after-manifest",
            "killed-at-sink-before-commit",
            "killed-at-sink-after-commit",
            "killed-at-corrections-committed",
            *(f"killed-at-{point}" for point in RESOLVER_POINTS),
            *(f"correction-{fate}" for fate in CORRECTION_FATES),
            "correction-after-another",
        ),
        1,
    ),
}


@pytest.fixture(scope="module")
def found() -> Found:
    return explore(FIRST_SEED, runs=RUNS)


@pytest.mark.timeout(1_500)
def test_every_run_agrees_with_the_oracle(found: Found) -> None:
    print(f"\n{found.runs} simulated runs from seed {FIRST_SEED} on")
    told = [
        f"seed {seed}: {problems[0]}\n    replay and shrink it with: {COMMAND} {seed}"
        for seed, problems in found.failures.items()
    ]
    assert not told, "\n".join(told)
    assert found.runs == RUNS


def test_every_fault_and_every_fate_occurred(found: Found) -> None:
    lacking = {
        name: (found.hits[name], n) for name, n in LEAST_HITS.items() if found.hits[name] < n
    }
    assert not lacking, f"hits, at least: {lacking}"


def replayed(seed: int, hash_seed: str) -> str:
    code = (
        "from tests.sim.scenario import scenario_of\n"
        "from tests.sim.simulation import simulate\n"
        f"print(simulate(scenario_of({seed})).digest)"
    )
    environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, check=True
    )
    return run.stdout.decode()


def test_a_run_is_a_function_of_its_seed() -> None:
    """In the same process, after other runs, and in another process."""
    first = simulate(scenario_of(7))
    simulate(scenario_of(8))
    again = simulate(scenario_of(7))
    assert (first.digest, first.hits, first.steps) == (again.digest, again.hits, again.steps)
    assert first.digest != simulate(scenario_of(9)).digest
    assert replayed(7, "0") == replayed(7, "0")


def test_a_scenario_survives_being_printed() -> None:
    for seed in range(20):
        scenario = scenario_of(seed)
        assert Scenario.from_json(scenario.to_json()) == scenario


def test_seeds_differ_in_what_they_do() -> None:
    seen = Counter(one["do"] for seed in range(300) for one in scenario_of(seed).inputs)
    assert len(seen) >= 29
