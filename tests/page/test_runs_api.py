"""Dry runs, and what is started from them, over HTTP on a real deployment: rights and rules."""

import json
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.page.site import Site

TRIES = 10
"""A run may end before it is stopped or asked about, where this process is kept from asking."""


def ended(site: Site, client: httpx.Client, begun: httpx.Response) -> dict[str, Any]:
    """The run that an answer began, once it has ended."""
    assert begun.status_code == 202, begun.text
    where = begun.headers["location"]
    assert where == f"/v1/runs/{begun.json()['id']}"
    site.wait(lambda: client.get(where).json()["state"] != "running")
    found: dict[str, Any] = client.get(where).json()
    return found


def days(back: int = 9, ahead: int = 1) -> dict[str, str]:
    today = datetime.now(UTC).date()
    return {
        "from": (today - timedelta(days=back)).isoformat(),
        "to": (today + timedelta(days=ahead)).isoformat(),
    }


def unpriced_calls(client: httpx.Client, port: str) -> Any:
    [row] = client.get(f"/v1/usage?port_id={port}").json()["rows"] or [{}]
    return row.get("requests"), row.get("unpriced_requests")


def test_a_reprice_is_shown_then_started(site: Site, client: httpx.Client) -> None:
    name = uuid.uuid4().hex[:8]
    model, ports = f"--new {name}", [f"dock-{name}-{n}" for n in (1, 2)]
    moments = [datetime.now(UTC) - timedelta(days=n, minutes=1) for n in range(3)]
    for port in ports:
        for moment in moments:
            site.send(port_id=port, model=model, input_tokens=1_000_000,
                      occurred_at=moment.isoformat())  # fmt: skip
    site.wait(lambda: all(unpriced_calls(client, port) == (3, 3) for port in ports))
    rate = {
        "provider": "openai", "model": model, "currency": "USD", "backdated": True,
        "effective_from": f"{days()['from']}T00:00:00Z", "per_million": {"input_tokens": "0.1"},
    }  # fmt: skip
    client.put("/v1/prices", json=rate).raise_for_status()
    chosen = {**days(), "model": model, "reason": "a rate was missing"}
    shown = ended(site, client, client.post("/v1/reprices", json=chosen))
    assert (shown["state"], shown["dry_run"], shown["started_by"]) == ("done", True, "key:ada")
    assert shown["problem"] is None
    assert shown["progress"] == {"done": 6, "total": 6}
    result = shown["result"]
    expected = sorted((moment.date().isoformat(), port) for port in ports for moment in moments)
    assert [(row["date"], row["port_id"]) for row in result["changes"]] == expected
    assert {row["cost_delta"] for row in result["changes"]} == {"0.1"}
    total = result["total"]
    assert (total["events"], total["cost_after"], total["unpriced_after"]) == (6, "0.6", 0)
    assert (result["rows"], result["sent"]) == (6, 0)
    assert all(unpriced_calls(client, port) == (3, 3) for port in ports)

    done = ended(site, client, client.post(f"/v1/runs/{shown['id']}/start"))
    assert (done["state"], done["problem"], done["dry_run"]) == ("done", None, False)
    assert (done["result"]["sent"], done["result"]["in_ledger"]) == (6, True)
    assert all(unpriced_calls(client, port) == (3, 0) for port in ports)
    assert client.post(f"/v1/runs/{done['id']}/start").status_code == 409
    # Started twice it finds nothing left to do.
    again = ended(site, client, client.post(f"/v1/runs/{shown['id']}/start"))
    assert (again["result"]["sent"], again["result"]["left"]["unchanged"]) == (0, 6)
    reasons = {one["reason"] for one in _reasons(site, ports[0])}
    assert reasons == {"", "a rate was missing (key:ada)"}


def _reasons(site: Site, port: str) -> list[dict[str, str]]:
    from pipeline.ledger.client import connect

    assert site.address is not None
    client = connect(site.address)
    asked = "SELECT correction_reason FROM usage_ledger WHERE port_id = {port:String}"
    rows = client.query(asked, parameters={"port": port}).result_rows
    client.close()
    return [{"reason": row[0]} for row in rows]


def test_one_at_a_time_and_nothing_that_was_not_shown(site: Site, client: httpx.Client) -> None:
    chosen = {**days(), "model": "of nobody"}
    for _ in range(TRIES):
        begun = client.post("/v1/reprices", json=chosen)
        where = begun.headers["location"]
        asked = (("/v1/reprices", chosen), ("/v1/replays", {"port_id": "nobody"}),
                 (f"{where}/start", None))  # fmt: skip
        answers = [client.post(path, json=body) for path, body in asked]
        if client.get(where).json()["state"] == "running":
            break
        site.wait(lambda: not any(map(is_running, client.get("/v1/runs").json()["runs"])))
    assert [(one.status_code, one.json().get("status")) for one in answers] == [(409, 409)] * 3
    ended(site, client, begun)


def is_running(run: dict[str, Any]) -> bool:
    return run["state"] == "running"


def test_records_of_one_port_are_sent_again(site: Site, client: httpx.Client) -> None:
    port = f"lock-{uuid.uuid4().hex[:8]}"
    own = [json.dumps({"port_id": port, "event_id": str(n)}).encode() for n in range(3)]
    # An envelope that names one port around an event of another is the event's.
    envelope = {
        "specversion": "1.0", "id": "1", "source": "/x", "type": "x", "port_id": port,
        "data": {
            "event_id": "9", "port_id": "harbor-1", "provider": "openai", "model": "gpt-5",
            "occurred_at": (datetime.now(UTC) + timedelta(days=9)).isoformat(),
        },
    }  # fmt: skip
    site.reject(*own)
    site.reject(json.dumps(envelope).encode(), content_type="application/cloudevents+json")
    site.wait(lambda: _rejected(client)[port] == 4)
    body = {"port_id": port}
    shown = ended(site, client, client.post("/v1/replays", json=body))
    assert (shown["result"]["chosen"], shown["result"]["sent"]) == (3, 3)
    assert shown["result"]["expected"] == {"missing-field": 3}
    assert shown["selection"]["to"] is not None  # what is rejected later is not sent unseen
    done = ended(site, client, client.post(f"/v1/runs/{shown['id']}/start"))
    assert (done["result"]["sent"], done["result"]["dry_run"]) == (3, False)
    site.wait(lambda: _rejected(client)[port] == 7)
    other = {"port_id": port, "reasons": ["too-old"]}
    assert ended(site, client, client.post("/v1/replays", json=other))["result"]["chosen"] == 0
    again = ended(site, client, client.post("/v1/replays", json={**body, "again": True}))
    assert again["result"]["sent"] == 3


def _rejected(client: httpx.Client) -> Counter[str]:
    records = client.get("/v1/rejected?limit=200").json()["records"]
    return Counter(one["port_id"] for one in records)


@pytest.mark.parametrize("key", ["rita", "service"])
def test_other_roles_may_not(site: Site, key: str) -> None:
    with site.http(key) as client:
        for method, path in (
            ("POST", "/v1/reprices"), ("POST", "/v1/replays"), ("GET", "/v1/runs"),
            ("GET", "/v1/runs/x"), ("DELETE", "/v1/runs/x"), ("POST", "/v1/runs/x/start"),
        ):  # fmt: skip
            assert client.request(method, path).status_code == 403


def test_a_key_for_some_ports_gets_at_these(site: Site, client: httpx.Client) -> None:
    alien = ended(site, client, client.post("/v1/replays", json={"port_id": "harbor-1"}))
    with site.http("harbor") as own:
        for path, body in (("reprices", days()), ("replays", {})):
            refused = own.post(f"/v1/{path}", json={**body, "port_id": "harbor-1"})
            assert (refused.status_code, refused.json()["field"]) == (403, "port_id")
            found = ended(site, own, own.post(f"/v1/{path}", json=body))
            assert (found["state"], found["selection"]["port_id"]) == ("done", "harbor-7")
        assert {one["started_by"] for one in own.get("/v1/runs").json()["runs"]} == {"key:harbor"}
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/start")):
            answer = own.request(method, f"/v1/runs/{alien['id']}{path}")
            assert answer.status_code == 404
        found = ended(site, own, own.post("/v1/replays", json={}))
        ended(site, own, own.post(f"/v1/runs/{found['id']}/start"))
        ended(site, client, client.post(f"/v1/runs/{alien['id']}/start"))
        # In the log of changes, too, each sees what its ports allow.
        seen = own.get("/v1/changes?what=run").json()["changes"]
    assert [(one["who"], one["after"]["ports"]) for one in seen] == [
        ("key:harbor", ["harbor-7"]), ("key:harbor", ["harbor-7"]),
    ]  # fmt: skip
    every = client.get("/v1/changes?what=run").json()["changes"]
    assert {"key:ada", "key:harbor"} <= {one["who"] for one in every}
    # Who may see every port sees what others began.
    assert "key:harbor" in {one["started_by"] for one in client.get("/v1/runs").json()["runs"]}


def test_a_run_is_stopped(site: Site, client: httpx.Client) -> None:
    for _ in range(TRIES):
        begun = client.post("/v1/reprices", json=days())
        assert client.delete(begun.headers["location"]).status_code == 204
        found = client.get(begun.headers["location"]).json()
        if found["state"] != "done":
            break
    assert (found["state"], found["result"]) == ("stopped", None)
    assert found["ended_at"] is not None
    assert client.post(f"{begun.headers['location']}/start").status_code == 409
    assert ended(site, client, client.post("/v1/reprices", json=days()))["state"] == "done"
    assert client.delete(begun.headers["location"]).status_code == 204


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("reprices", {"from": "2026-01-02"}, "to"),
        ("reprices", {"from": "2026-01-02", "to": "2026-01-02"}, "from"),
        ("reprices", {"from": "yesterday at noon", "to": "2026-01-02"}, "from"),
        ("reprices", {"from": "2024-01-02", "to": "2026-01-02"}, "to"),
        ("reprices", {"from": "0001-01-02", "to": "0001-02-02"}, "from"),
        ("reprices", {**days(), "modell": "x"}, "modell"),
        ("reprices", {**days(), "model": "a\nb"}, "model"),
        ("reprices", {**days(), "model": "x" * 129}, "model"),
        ("reprices", {**days(), "reason": "\x00"}, "reason"),
        ("reprices", {**days(), "rate_id": "a\tb"}, "rate_id"),
        ("reprices", {**days(), "rate_id": ""}, "rate_id"),
        ("replays", {"reasons": ["no-such"]}, "reasons"),
        ("replays", {"reasons": "too-old"}, "reasons"),
        ("replays", {"port_id": ""}, "port_id"),
        ("replays", {"from": "2026-01-03", "to": "2026-01-02"}, "from"),
        ("replays", [], None),
    ],
)
def test_bad_input(client: httpx.Client, path: str, body: Any, field: str | None) -> None:
    answer = client.post(f"/v1/{path}", json=body)
    assert (answer.status_code, answer.json().get("field")) == (400, field), answer.text
