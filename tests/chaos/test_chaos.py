"""A short chaos run on one broker and one on three; `make chaos` runs as long as wanted."""

import os
import shlex
from pathlib import Path

import pytest

from tests.chaos.engine import Engine, Plan
from tests.chaos.faults import all_faults, fault_points
from tests.chaos.report import Report

SEED = int(os.environ.get("CHAOS_SEED", "20261122"))
ONE_BROKER = (
    "worker-pause",
    "workers-kill",
    "worker-add",
    "broker-kill",
    "power-cut",
    "sink-pause",
    "sink-kill",
    "at sink-after-insert",
    "at sink-before-manifest",
    "at resolver-judged",
    "at corrections-committed",
    "ledger-kill",
)
THREE_BROKERS = (
    "broker-kill events-leader",
    "broker-kill controller",
    "brokers-kill most",
    "worker-kill",
    "at sink-after-manifest",
    "sink-kill",
    "ledger-kill",
)


async def run(plan: Plan, folder: Path) -> Report:
    report = await Engine(plan, folder, print).run()
    print(*report.lines(), sep="\n")
    return report


def least_kills(kind: str) -> int:
    """How many processes get SIGKILL by one fault, whatever the other lane does meanwhile."""
    if kind in ("workers-kill", "brokers-kill most"):
        return 2
    return 1 if "kill" in kind or kind.startswith(("at ", "power-cut")) else 0


def test_there_is_a_fault_for_every_named_point() -> None:
    points = fault_points()
    assert {"price-begun", "merge-computed", "sink-after-insert"} <= set(points)
    assert {"corrections-committed", "resolver-judged"} <= set(points)
    for size in (1, 3):
        kinds = [fault.kind for fault in all_faults(size)]
        assert len(kinds) == len(set(kinds))
        assert {f"at {point}" for point in points} <= set(kinds)


@pytest.mark.timeout(1_500)
@pytest.mark.parametrize(("brokers", "kinds"), [(1, ONE_BROKER), (3, THREE_BROKERS)])
async def test_everything_agrees_after_faults(
    brokers: int, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    report = await run(Plan(SEED, brokers, kinds=kinds), tmp_path)
    again = f"python -m tests.chaos --once --seed {SEED} --brokers {brokers}"
    assert report.ok, [*report.problems, f"run it again: {again} {shlex.join(kinds)}"]
    assert sorted(fault.kind for fault in report.faults) == sorted(kinds)
    for fault in report.faults:
        assert fault.kills >= least_kills(fault.kind), fault
    assert report.audit["compared"]["ledger rows"] > 1_000
    assert report.audit["compared"]["correction entries"] > 20
