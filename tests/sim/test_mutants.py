"""The simulator can fail: it notices every rule that is broken, within so many seeds."""

import os
import subprocess
import sys

import pytest

from tests.sim.campaign import ROOT
from tests.sim.directed import DIRECTED
from tests.sim.mutants import MUTANTS, first_seed_that_fails
from tests.sim.scenario import Scenario, scenario_of
from tests.sim.shrink import shrink
from tests.sim.simulation import simulate

SEEDS = 250
# Where the search begins, so that it ends soon; it goes through all of 1 … SEEDS if it must.
BEGIN = {
    "former_owners_are_not_fenced": 54,
    "one_of_two_ids_is_fenced": 24,
    "takes_what_came_before": 69,
    "a_mark_claims_what_was_only_fetched": 58,
    "a_failed_commit_goes_on": 111,
    "the_manifest_comes_first": 30,
    "a_failed_insert_is_taken_for_done": 59,
    "the_resolver_begins_at_the_start": 2,
    "the_resolver_does_not_fence": 26,
    "resolved_corrections_are_not_read_back": 122,
    "a_takeover_goes_on_after_its_release": 39,
}


def seeds(name: str) -> list[int]:
    begin = BEGIN.get(name, 1)
    return [*range(begin, SEEDS + 1), *range(1, begin)]


def is_noticed(name: str, seed: int) -> bool:
    """Whether this one run notices, in a process whose sets are walked in the known order."""
    command = [sys.executable, "-m", "tests.sim.replay", str(seed), "--mutant", name]
    run = subprocess.run([*command, "--no-shrink"], cwd=ROOT, capture_output=True, check=False)
    return run.returncode == 1 and bool(Scenario.from_json(run.stdout.decode()).inputs)


@pytest.mark.parametrize("name", sorted(MUTANTS.keys() - DIRECTED.keys()))
@pytest.mark.timeout(300)
def test_a_broken_rule_is_noticed(name: str) -> None:
    if name in BEGIN and is_noticed(name, BEGIN[name]):
        return
    with MUTANTS[name]():
        found = first_seed_that_fails(seeds(name))
    assert found is not None, f"{name} went unnoticed in {SEEDS} runs"


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
