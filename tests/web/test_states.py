"""States, their stream, and checks, from what a worker would publish."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx

from tests.web.api_process import PARTITIONS, ApiProcess, state

WAIT_S = 60.0


class Stream:
    """Reads server-sent events one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self, *names: str) -> tuple[str, dict[str, Any], str]:
        """The next event with one of these names: name, data, id."""
        for name, data, event_id in self._events():
            if name in names:
                return name, data, event_id
        raise AssertionError("the stream has ended")

    def until(self, last: str) -> list[tuple[str, dict[str, Any], str]]:
        found: list[tuple[str, dict[str, Any], str]] = []
        for one in self._events():
            found.append(one)
            if one[0] == last:
                break
        return found

    def _events(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "event" in fields:
                yield fields["event"], json.loads(fields["data"]), fields.get("id", "")
                fields = {}


def check(api: ApiProcess, **body: Any) -> Any:
    with api.http() as client:
        answer = client.post("/v1/check", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def check_live(api: ApiProcess, **body: Any) -> Any:
    """As ``check``, once heartbeats come: they are late where a machine or Kafka stands still."""
    deadline_s = time.monotonic() + WAIT_S
    while (verdict := check(api, **body))["freshness"] != "LIVE":
        assert time.monotonic() < deadline_s, verdict
        time.sleep(0.05)
    return verdict


def live_states(api: ApiProcess) -> Any:
    """What ``/v1/state`` tells once every partition is live."""
    deadline_s = time.monotonic() + WAIT_S
    with api.http() as client:
        while (body := client.get("/v1/state").json())["freshness"] != "LIVE":
            assert time.monotonic() < deadline_s, body
            time.sleep(0.05)
    return body


def wait_for(api: ApiProcess, *keys_and_versions: tuple[str, int]) -> None:
    """Returns once these states are known, and heartbeats of every partition."""
    wanted, deadline_s = set(keys_and_versions), time.monotonic() + WAIT_S
    with api.http() as client:
        while True:
            body = client.get("/v1/state").json()
            found = {(one["key"], one["version"]) for one in body["states"]}
            if wanted <= found and len(body["heartbeats"]) == PARTITIONS:
                return
            assert time.monotonic() < deadline_s, found
            time.sleep(0.02)


def placed(given: dict[str, Any]) -> tuple[str, int]:
    """Key and version of a state."""
    return f"{given['scope']}|{given['unit']}|{given['period']}", given["version"]


async def test_states_and_checks(api: ApiProcess) -> None:
    every, allowed, full = state("port:*", 0, 50), state("port:a", 10), state("user:u", 1_000)
    with api.counted_for():
        await api.put_states(every, allowed, full)
        wait_for(api, placed(every), placed(allowed), placed(full))
        with api.http() as client:
            body = live_states(api)
            assert body["partitions"] == PARTITIONS
            assert {beat["partition"] for beat in body["heartbeats"]} == set(range(PARTITIONS))
            [one] = client.get("/v1/state?scope=port:a").json()["states"]
            assert {**one, **allowed} == one
            [other] = client.get("/v1/state?scope=port:other").json()["states"]
            assert (other["scope"], other["used"], other["hard_cap"]) == ("port:other", 0, 50)
            assert client.get("/v1/state?unit=cost").json()["states"] == []
            assert client.get("/v1/state?unit=bytes").status_code == 400
            first = client.get("/v1/state?limit=1").json()
            rest = client.get(f"/v1/state?limit=5&after={first['next']}").json()
            assert len(rest["states"]) == 2
            assert rest["next"] is None

        verdict = check_live(api, port_id="a", estimated_tokens=990)
        assert (verdict["allowed"], verdict["reason"], verdict["remaining"]) == (True, "ok", 990)
        assert [p["scope"] for p in verdict["policies"]] == ["port:a"]
        refused = check_live(api, port_id="a", estimated_tokens=991)
        assert (refused["allowed"], refused["reason"]) == (False, "estimated-exceeds-cap")
        refused = check_live(api, port_id="a", user_id="u")
        assert (refused["reason"], refused["scope"]) == ("hard-cap-exceeded", "user:u")
        assert [p["allowed"] for p in refused["policies"]] == [False, True]
        assert check_live(api, port_id="new", estimated_tokens=51)["allowed"] is False
        assert check_live(api, user_id="nobody")["reason"] == "no-policy"


def test_a_check_that_is_wrong_names_the_field(api: ApiProcess) -> None:
    with api.http() as client:
        for body, field, rule in (
            ({"estimated_tokens": -1}, "estimated_tokens", "must be at least 0"),
            ({"estimated_tokens": "5"}, "estimated_tokens", "must be a whole number"),
            ({"estimated_cost": 0.5}, "estimated_cost", "must be a string"),
            ({"estimated_cost": "1e3"}, "estimated_cost", "must be"),
            ({"estimated_cost": "-1"}, "estimated_cost", "must not be negative"),
            ({"port_id": "x" * 300}, "port_id", "must have at most 256 characters"),
            ({"tokens": 5}, "tokens", "is an unknown field"),
        ):
            answer = client.post("/v1/check", json=body)
            assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
            assert answer.json()["detail"].startswith(f"{field}: {rule}"), answer.text
        assert client.post("/v1/check", json=[]).json()["detail"] == "the body must be an object"
        assert client.post("/v1/check", content=b"[" * 5_000).status_code == 400
        assert client.post("/v1/check", content=b"\xff").status_code == 400
        kind = {"Content-Type": "text/plain"}
        assert client.post("/v1/check", content=b"{}", headers=kind).status_code == 415


async def test_the_stream_tells_all_then_changes_and_resumes(api: ApiProcess) -> None:
    first = state("org:s", 1)
    await api.put_states(first)
    wait_for(api, placed(first))
    with api.http() as client:
        with client.stream("GET", "/v1/state/stream") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            stream = Stream(response)
            told = stream.until("synced")
            assert told[0][0] == "reset"
            assert {d["partition"] for name, d, _ in told if name == "heartbeat"} == {0, 1}
            states = {d["key"]: d for name, d, _ in told if name == "state"}
            assert states["org:s|tokens|month"]["used"] == 1
            assert told[-1][1]["partitions"] == PARTITIONS
            await api.put_states(state("org:s", 2))
            _, data, last_id = stream.next("state")
            assert (data["scope"], data["used"]) == ("org:s", 2)
            _, beat, _ = stream.next("heartbeat")
            assert beat["through"] == {"0": 5, "1": 7}
        gone = {"scope": "org:s", "unit": "tokens", "period": "month", "deleted": True}
        added = state("org:t", 3)
        await api.put_states(added, gone)
        wait_for(api, placed(added))
        deadline_s = time.monotonic() + WAIT_S
        while client.get("/v1/state?scope=org:s").json()["states"]:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)
        with client.stream("GET", "/v1/state/stream", headers={"Last-Event-ID": last_id}) as again:
            told = [one for one in Stream(again).until("synced") if one[0] != "heartbeat"]
        assert [name for name, _, _ in told][-1] == "synced"
        assert "reset" not in [name for name, _, _ in told]
        changes = {d["key"]: name for name, d, _ in told if name in ("state", "deleted")}
        assert changes == {"org:t|tokens|month": "state", "org:s|tokens|month": "deleted"}
        for bad in ("x", "00000000-1-1.1", last_id.replace("-", "-9", 1)):
            headers = {"Last-Event-ID": bad}
            with client.stream("GET", "/v1/state/stream", headers=headers) as anew:
                assert Stream(anew).next("reset", "state")[0] == "reset"


async def test_what_stops_advancing_is_stale(api: ApiProcess) -> None:
    denying = state("group:g", 1, on_stale="deny")
    await api.put_states(denying)
    with api.counted_for():
        wait_for(api, placed(denying))
        assert check_live(api, group_id="g")["allowed"] is True
    deadline_s = time.monotonic() + WAIT_S
    while (verdict := check(api, group_id="g"))["freshness"] == "LIVE":
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.2)
    assert (verdict["allowed"], verdict["reason"], verdict["freshness"]) == (
        False, "stale", "STALE",
    )  # fmt: skip
    with api.counted_for():
        deadline_s = time.monotonic() + WAIT_S
        while check(api, group_id="g")["allowed"] is False:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)
