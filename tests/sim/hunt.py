"""Looks for the first run that notices each broken rule: ``python -m tests.sim.hunt NAME…``.

A process of its own because Python's hash seed must be 0, as in a campaign: with another one the
same seed is another run, and the search may take long.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable

from tests.sim.campaign import ROOT
from tests.sim.mutants import MUTANTS, first_seed_that_fails

SEEDS = 250
# Where the search begins, so that it ends soon; it goes through all of 1 … SEEDS if it must.
BEGIN = {
    "former_owners_are_not_fenced": 67,
    "one_of_two_ids_is_fenced": 24,
    "takes_what_came_before": 69,
    "a_mark_claims_what_was_only_fetched": 81,
    "a_failed_commit_goes_on": 111,
    "the_manifest_comes_first": 30,
    "a_failed_insert_is_taken_for_done": 59,
    "the_resolver_begins_at_the_start": 2,
    "the_resolver_does_not_fence": 26,
    "resolved_corrections_are_not_read_back": 122,
    "a_takeover_goes_on_after_its_release": 213,
}


def seeds(name: str) -> list[int]:
    """All seeds, the one where this mutant is known to be noticed first."""
    begin = BEGIN.get(name, 1)
    return [*range(begin, SEEDS + 1), *range(1, begin)]


def hunt(names: Iterable[str]) -> dict[str, int | None]:
    """The seed at which each mutant was noticed; None for one that went unnoticed."""
    command = [sys.executable, "-m", "tests.sim.hunt", *names]
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main() -> None:
    noticed: dict[str, int | None] = {}
    for name in sys.argv[1:]:
        with MUTANTS[name]():
            found = first_seed_that_fails(seeds(name))
        noticed[name] = found[0] if found else None
    print(json.dumps(noticed))


if __name__ == "__main__":
    main()
