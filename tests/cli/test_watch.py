"""``watch`` over HTTP; on Kafka it is in ``test_on_kafka`` and the tests of ``up``."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Command, environment
from tests.producers.api_stand_in import KEY, ApiStandIn
from tests.producers.states import beat, record, state


@pytest.fixture
def api() -> Iterator[ApiStandIn]:
    running = ApiStandIn()
    running.start()
    running.put_state(0, *record(state("port:a", used=10, hard=100), 1))
    running.put_state(1, *record(state("user:u", used=50, hard=50), 1))
    running.put_state(1, *beat(1))
    yield running
    running.stop()


def test_once_shows_what_is_there(tallyport: Command, api: ApiStandIn) -> None:
    ended = tallyport("watch", "--once", "--json", API_URL=api.url, API_KEY=KEY)
    assert ended.status == 0, ended.err
    found = [json.loads(line) for line in ended.out.splitlines()]
    assert [(one["scope"], one["used"]) for one in found] == [("port:a", 10), ("user:u", 50)]
    assert "hard-cap-exceeded" in tallyport("watch", "--once", API_URL=api.url, API_KEY=KEY).out
    other = tallyport("watch", "--once", "--json", "port:a", API_URL=api.url, API_KEY=KEY)
    assert len(other.out.splitlines()) == 1


def test_it_follows_every_change_through_a_restart_of_the_api(
    api: ApiStandIn, tmp_path: Path
) -> None:
    watching = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "watch", "--json"],
        cwd=tmp_path,
        env=environment(API_URL=api.url, API_KEY=KEY),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout is not None
        lines = watching.stdout

        def told() -> tuple[Any, ...]:
            one = json.loads(lines.readline())
            return one["scope"], one.get("used"), one.get("deleted", False)

        assert [told(), told()] == [("port:a", 10, False), ("user:u", 50, False)]
        api.put_state(0, *record(state("port:a", used=20, hard=100), 2))
        assert told() == ("port:a", 20, False)
        api.put_state(0, *record(state("port:a", used=10, hard=100), 1))  # an older version
        api.put_state(1, b"user:u|tokens|month", None)
        assert told() == ("user:u", None, True)
        api.stop()
        api.put_state(0, *record(state("port:a", used=30, hard=100), 3))
        api.start()
        assert told() == ("port:a", 30, False)
        watching.terminate()
        assert watching.wait(20) == 0
    finally:
        watching.kill()
        watching.communicate(timeout=60)


def test_a_wrong_key_is_one_line(tallyport: Command, api: ApiStandIn) -> None:
    ended = tallyport("watch", "--once", API_URL=api.url, API_KEY="another")
    assert (ended.status, ended.err) == (1, "tallyport: the API answers 401 no such key\n")
