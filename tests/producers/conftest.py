"""Both sides a transport can go to, and meters that are closed at the end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from producers import Meter
from tests.producers.sides import HttpSide, KafkaSide, Side


@pytest.fixture(params=["http", "kafka"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    found = _side(request.param, request, tmp_path / "spool")
    yield found
    found.close()


def _side(name: str, request: pytest.FixtureRequest, spool: Path) -> Side:
    if name == "http":
        return HttpSide(spool)
    kafka, prefix = request.getfixturevalue("kafka"), request.getfixturevalue("topic_prefix")
    return KafkaSide(kafka, prefix, spool)


@pytest.fixture
def http_side(tmp_path: Path) -> Iterator[HttpSide]:
    found = HttpSide(tmp_path / "spool")
    yield found
    found.close()


@pytest.fixture
def meter_of() -> Iterator[Callable[[Side], Meter]]:
    """Makes a meter from a side's settings."""
    made: list[Meter] = []

    def make(side: Side) -> Meter:
        made.append(Meter.from_env(side.environ))
        return made[-1]

    yield make
    for meter in made:
        meter.close(1.0)
