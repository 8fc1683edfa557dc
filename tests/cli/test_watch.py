"""``watch`` over HTTP; on Kafka it is in ``test_on_kafka`` and the tests of ``up``."""

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.cli.watch import states_table
from pipeline.core.budgets import StateTable
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
        assert watching.wait(60) == 0
    finally:
        watching.kill()
        watching.communicate(timeout=60)


def test_a_wrong_key_is_one_line(tallyport: Command, api: ApiStandIn) -> None:
    ended = tallyport("watch", "--once", API_URL=api.url, API_KEY="another")
    assert (ended.status, ended.err) == (1, "tallyport: the API answers 401 no such key\n")


LONGEST = f"port:{'harbor-' * 17}7"
SCOPES = ("port:harbor-7-of-the-northern-sea", "user:u", LONGEST)


def drawn(width: int, height: int) -> list[str]:
    """The lines of a table of the states of ``SCOPES``."""
    table = StateTable()
    for scope in SCOPES:
        table.put(*record(state(scope, period="rolling-30d", used=1_234_567, hard=50), 1))
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(states_table(table, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_neither_scope_nor_status_is_cut_in_a_narrow_terminal(width: int) -> None:
    lines = drawn(width, 60)
    assert max(map(len, lines)) <= width
    cells = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    told = "".join(row[0].strip() for row in cells)
    assert sorted(told.replace("user:u", "").split("port:")) == sorted(
        ["", *(scope.removeprefix("port:") for scope in SCOPES if scope != "user:u")]
    )
    assert "".join(lines).count("hard-cap-exceeded") == len(SCOPES)
    assert ("resets_at" in "".join(lines)) is (width > 120)
    assert ("used" in "".join(lines)) is (width >= 80)


def test_a_table_of_long_scopes_stays_on_the_screen() -> None:
    lines = drawn(80, 10)
    assert len(lines) <= 10
    assert "3 budget states" in lines[0]
    assert "shown" in lines[0]
