"""Fixtures of every test: the real Kafka and ClickHouse, and an environment without settings."""

import os
from pathlib import Path

import pytest

from pipeline.settings import PREFIX

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
