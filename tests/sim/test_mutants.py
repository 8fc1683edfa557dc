"""The simulator can fail: it notices every rule that is broken, within so many seeds."""

import os
import subprocess
import sys

import pytest

from tests.sim.campaign import ROOT
from tests.sim.directed import DIRECTED
from tests.sim.hunt import SEEDS, hunt, seeds
from tests.sim.mutants import MUTANTS, first_seed_that_fails
from tests.sim.scenario import Scenario, scenario_of
from tests.sim.shrink import shrink
from tests.sim.simulation import simulate

SEARCHED = sorted(MUTANTS.keys() - DIRECTED.keys())


@pytest.fixture(scope="module")
def noticed() -> dict[str, int | None]:
    return hunt(SEARCHED)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.timeout(1_500)
def test_a_broken_rule_is_noticed(name: str, noticed: dict[str, int | None]) -> None:
    assert noticed[name] is not None, f"{name} went unnoticed in {SEEDS} runs"


def fails(scenario: Scenario) -> bool:
    return bool(simulate(scenario).problems)


@pytest.mark.parametrize("name", sorted(DIRECTED))
def test_a_rule_that_is_seldom_needed_is_noticed_where_it_is(name: str) -> None:
    assert not fails(DIRECTED[name])
    with MUTANTS[name]():
        assert fails(DIRECTED[name])


def test_a_failing_list_is_shrunk() -> None:
    with MUTANTS["ids_are_not_restored"]():
        found = first_seed_that_fails(seeds("ids_are_not_restored"))
        assert found is not None
        whole = scenario_of(found[0])
        small = shrink(whole, fails, max_runs=60)
        assert fails(small)
    assert not fails(small)
    assert len(small.inputs) <= len(whole.inputs) // 2


def test_replay_reports() -> None:
    command = [sys.executable, "-m", "tests.sim.replay"]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    whole = subprocess.run([*command, "1"], cwd=ROOT, env=environ, capture_output=True)
    assert whole.returncode == 0, whole.stderr
    assert b"everything agrees" in whole.stdout
    broken = subprocess.run(
        [*command, "3", "--mutant", "unpriced_is_zero", "--no-shrink"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
    )
    assert broken.returncode == 1
    assert Scenario.from_json(broken.stdout.decode()).inputs
