"""Fixtures of every test: the real Kafka and ClickHouse, and an environment without settings."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from pipeline.settings import PREFIX

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_FIXTURES = ("kafka_fixture", "ledger_fixture")
pytest_plugins = [
    f"tests.{name}" for name in _FIXTURES if (Path(__file__).parent / f"{name}.py").exists()
]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the machine that runs the tests decide about servers, not about behaviour."""
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
