"""What is started over HTTP where it cannot be carried out: told, and the next one may begin."""

import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ledger_fixture import LedgerAddress
from tests.stream.conftest import migrated_database, url_of
from tests.web.api_process import ApiProcess

WAIT_S = 120.0
SPAN = {"from": "2026-11-01", "to": "2026-11-02"}


@pytest.fixture(scope="module")
def away(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    """An API whose ledger is away."""
    folder: Path = tmp_path_factory.mktemp("api")
    settings = {"TALLYPORT_CLICKHOUSE_URL": "http://127.0.0.1:1"}
    process = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", folder, settings)
    with process.running():
        yield process


def ended(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    begun = client.post(path, json=body)
    assert begun.status_code == 202, begun.text
    deadline = time.monotonic() + WAIT_S
    while True:
        found: dict[str, Any] = client.get(begun.headers["location"]).json()
        if found["state"] != "running":
            return found
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(("path", "body"), [("/v1/reprices", SPAN), ("/v1/replays", {})])
def test_a_ledger_that_is_away_is_told(away: ApiProcess, path: str, body: dict[str, Any]) -> None:
    with away.http() as client:
        found = ended(client, path, body)
        assert (found["state"], found["result"]) == ("failed", None)
        assert "ClickHouse at http://127.0.0.1:1 does not answer" in found["problem"]
        assert client.post(f"/v1/runs/{found['id']}/start").status_code == 409


def test_only_the_last_runs_are_remembered(away: ApiProcess) -> None:
    with away.http() as client:
        places: list[str] = []
        for _ in range(21):
            places.append(client.post("/v1/replays", json={}).headers["location"])
            client.delete(places[-1])
        assert client.get(places[0]).status_code == 404
        runs = client.get("/v1/runs").json()["runs"]
        assert (len(runs), runs[0]["id"]) == (20, places[-1].rpartition("/")[2])
        # One that was stopped late may have missed the ledger before.
        assert {one["state"] for one in runs} <= {"stopped", "failed"}


def test_an_api_that_stops_takes_its_run_along(away: ApiProcess) -> None:
    with away.http() as client:
        client.post("/v1/reprices", json=SPAN).raise_for_status()
    assert away.stop() == 0
    away.start()
    with away.http() as client:
        assert client.get("/v1/runs").json() == {"runs": []}


@pytest.fixture
def own(
    kafka: str, ledger_server: LedgerAddress, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ApiProcess]:
    """An API with a ledger, that ends at the point of the test's parameter."""
    fault = getattr(request, "param", "")
    for address in migrated_database(ledger_server):
        settings = {"TALLYPORT_CLICKHOUSE_URL": url_of(address), "FAULT_POINT": fault}
        process = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", tmp_path, settings)
        with process.running():
            yield process


def entries(client: httpx.Client) -> list[dict[str, Any]]:
    """What the log of changes says of runs, oldest first."""
    found: list[dict[str, Any]] = client.get("/v1/changes?what=run").json()["changes"]
    return found[::-1]


@pytest.mark.parametrize(("path", "body"), [("/v1/reprices", SPAN), ("/v1/replays", {})])
def test_who_ran_what_outlives_the_api(own: ApiProcess, path: str, body: dict[str, Any]) -> None:
    with own.http() as client:
        shown = ended(client, path, body)
        assert (shown["state"], shown["problem"]) == ("done", None)
        assert entries(client) == []  # a dry run changes nothing
        done = ended(client, f"/v1/runs/{shown['id']}/start", {})
        assert (done["state"], done["problem"]) == ("done", None)
    own.kill()
    own.start()
    with own.http() as client:
        began, came = entries(client)
    assert (began["who"], began["key"]) == ("local", f"{done['kind']}:{done['id']}")
    chosen = {**done["selection"], "ports": None}
    assert (began["before"], began["after"]) == (None, {"state": "running", **chosen})
    assert (came["who"], came["key"], came["before"]) == ("local", began["key"], began["after"])
    assert came["after"].items() >= {"state": "done", **chosen, "sent": 0, "problem": None}.items()


@pytest.mark.parametrize("own", ["run-begun", "run-carried-out"], indirect=True)
def test_a_kill_on_the_way_leaves_who_began_it(own: ApiProcess) -> None:
    with own.http() as client:
        shown = ended(client, "/v1/replays", {})
        client.post(f"/v1/runs/{shown['id']}/start").raise_for_status()
    assert own.process is not None
    assert own.process.wait(WAIT_S) != 0
    own.kill()
    own.settings = {**own.settings, "FAULT_POINT": ""}
    own.start()
    with own.http() as client:
        [began] = entries(client)
        assert began["after"]["state"] == "running"
        # Whatever ended it, it is looked at and started anew.
        again = ended(client, "/v1/replays", {})
        assert ended(client, f"/v1/runs/{again['id']}/start", {})["state"] == "done"
        assert [one["after"]["state"] for one in entries(client)] == ["running", "running", "done"]
