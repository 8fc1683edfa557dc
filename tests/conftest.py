"""Fixtures of every test: the real Kafka and ClickHouse, and an environment without settings.

And how the tests are shared out among processes, so that all of them end at about the same time.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from pipeline.settings import PREFIX

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

HERE = Path(__file__).parent
_FIXTURES = ("day_fixture", "kafka_fixture", "ledger_fixture", "native_fixture")
pytest_plugins = [f"tests.{name}" for name in _FIXTURES if (HERE / f"{name}.py").exists()]

TOGETHER = ("page", "clients")
"""Folders whose files share what takes long to set up, so one process takes all of them."""
LONGEST_FIRST = (
    "chaos",
    "stream/test_liveness.py",
    "page",
    "e2e/test_up.py",
    "e2e/test_audit.py",
    "e2e/test_rebuild.py",
    "ledger/test_faults.py",
    "stream/test_corruption.py",
    "corrections/test_faults.py",
    "sim/test_runs.py",
    "ledger/test_sink.py",
    "stream/test_worker.py",
    "stream/test_worker_crash.py",
    "e2e/test_retention.py",
    "e2e/test_notices.py",
    "test_bench_ledger.py",
    "producers/test_processes.py",
    "stream/test_torn_tail.py",
    "e2e/test_full_disk.py",
    "sim/test_mutants.py",
)
"""What begins first; the order of the rest matters little."""
assert all((HERE / name).exists() for name in (*TOGETHER, *LONGEST_FIRST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, each file's and each folder's tests in their own order."""
    ranks = {name: rank for rank, name in enumerate(LONGEST_FIRST)}

    def rank(item: pytest.Item) -> int:
        place = item.path.relative_to(HERE)
        return ranks.get(str(place), ranks.get(place.parts[0], len(ranks)))

    items.sort(key=rank)


class _ByFile(LoadFileScheduling):
    """One process takes a file, or a folder of ``TOGETHER``."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        folder = file.removeprefix("tests/").partition("/")[0]
        return folder if folder in TOGETHER else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByFile | None:
    """Takes the place of ``--dist loadfile``."""
    return _ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the machine that runs the tests decide about servers, not about behaviour."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
