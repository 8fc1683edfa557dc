"""Budgets, prices, changes and keys over HTTP, on a real Kafka; and TLS."""

import asyncio
import json
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from pipeline.web.key_file import create_key, read_keys, revoke_key
from tests.web.api_process import ApiProcess, event, state

MONTH = "/v1/budgets/port:harbor-7/tokens/month"
WAIT_S = 60.0


@pytest.fixture
def client(api: ApiProcess) -> Iterator[httpx.Client]:
    with api.http() as found:
        yield found


def test_a_port_without_a_policy_reads_as_the_default(client: httpx.Client) -> None:
    answer = client.get("/v1/budgets/port:unset/tokens/month")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["enabled"], body["soft_cap"], body["hard_cap"]) == (False, 100_000, 500_000)
    assert client.get("/v1/budgets/port:unset/cost/month").status_code == 404
    patched = client.patch("/v1/budgets/port:unset/tokens/month", json={"hard_cap": 50_000})
    assert patched.status_code == 201
    body = patched.json()
    assert (body["enabled"], body["soft_cap"], body["hard_cap"]) == (True, None, 50_000)


def test_policies_are_put_patched_listed_and_deleted(client: httpx.Client) -> None:
    made = client.put(MONTH, json={"hard_cap": 500})
    assert made.status_code == 201, made.text
    tag = made.headers["etag"]
    assert client.get(MONTH).headers["etag"] == tag
    assert client.get(MONTH, headers={"If-None-Match": tag}).status_code == 304
    again = client.put(MONTH, json={"scope": "port:harbor-7", "hard_cap": 500})
    assert (again.status_code, again.headers["etag"]) == (200, tag)
    changed = client.patch(MONTH, json={"soft_cap": 100}, headers={"If-Match": tag})
    assert (changed.json()["soft_cap"], changed.json()["hard_cap"]) == (100, 500)
    late = client.patch(MONTH, json={"soft_cap": 50}, headers={"If-Match": tag})
    assert late.status_code == 412
    assert client.put(MONTH, json={}, headers={"If-None-Match": "*"}).status_code == 412
    cleared = client.patch(MONTH, json={"soft_cap": None}).json()
    assert cleared["soft_cap"] is None
    listed = client.get("/v1/budgets?scope=port:harbor-7").json()["policies"]
    assert listed == [cleared]
    assert client.delete(MONTH).status_code == 204
    assert client.delete(MONTH).status_code == 404
    assert client.get("/v1/budgets?scope=port:harbor-7").json()["policies"] == []


def test_ids_with_slashes_and_bars_are_budgets_too(client: httpx.Client) -> None:
    path = "/v1/budgets/user:a%2Fb%7Cc%25/cost/day"
    made = client.put(path, json={"hard_cap": "0.50"})
    assert made.status_code == 201, made.text
    assert (made.json()["scope"], made.json()["hard_cap"]) == ("user:a/b|c%", "0.5")
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/budgets/port:/tokens/month", {}, "scope"),
        ("/v1/budgets/team:x/tokens/month", {}, "scope"),
        ("/v1/budgets/port:x/bytes/month", {}, "unit"),
        ("/v1/budgets/port:x/tokens/year", {}, "period"),
        ("/v1/budgets/port:x/tokens/month", {"hardcap": 5}, "hardcap"),
        ("/v1/budgets/port:x/tokens/month", {"hard_cap": -5}, "hard_cap"),
        ("/v1/budgets/port:x/tokens/month", {"hard_cap": "5"}, "hard_cap"),
        ("/v1/budgets/port:x/tokens/month", {"hard_cap": 5, "soft_cap": 6}, "soft_cap"),
        ("/v1/budgets/port:x/tokens/month", {"scope": "port:y"}, "scope"),
        ("/v1/budgets/port:x/cost/month", {"hard_cap": 1.5}, "hard_cap"),
    ],
)
def test_a_bad_policy_names_the_field(
    client: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    answer = client.put(path, json=body)
    assert (answer.status_code, answer.json().get("field")) == (400, field), answer.text


def test_prices_are_published_explained_and_logged(client: httpx.Client) -> None:
    rate = {
        "rate_id": f"r-{uuid.uuid4().hex}",
        "provider": "acme",
        "model": "m-1",
        "effective_from": "2026-01-01T00:00:00Z",
        "backdated": True,
        "per_million": {"input_tokens": "2", "output_tokens": "8"},
    }
    published = client.put("/v1/prices", json=rate)
    assert published.status_code == 200, published.text
    assert published.json()["written"] == 1
    assert client.put("/v1/prices", json=rate).json()["written"] == 0
    listed = client.get("/v1/prices").json()
    assert rate["rate_id"] in [one["rate"]["rate_id"] for one in listed["rates"]]
    assert listed["ignored"] == []
    explained = client.get("/v1/prices?provider=acme&model=m-1").json()["explanation"]
    assert (explained["rate_id"], explained["dearest_token_price"]) == (rate["rate_id"], "0.000008")
    late = {**rate, "rate_id": "late", "backdated": False}
    assert "at least 60 s" in client.put("/v1/prices", json=late).json()["detail"]
    assert client.put("/v1/prices", json={"rates": []}).status_code == 400
    assert client.get("/v1/prices?provider=acme").status_code == 400
    book = client.get("/v1/prices/book")
    assert book.headers["etag"] == f'"{listed["book"]["digest"]}"'
    same = client.get("/v1/prices/book", headers={"If-None-Match": book.headers["etag"]})
    assert same.status_code == 304


def test_changes_say_who_and_what(client: httpx.Client) -> None:
    path = "/v1/budgets/org:logged/tokens/day"
    client.put(path, json={"hard_cap": 1})
    client.patch(path, json={"hard_cap": 2})
    client.delete(path)
    found = client.get("/v1/changes?limit=3&what=policy").json()["changes"]
    caps = [[side and side["hard_cap"] for side in (one["before"], one["after"])] for one in found]
    assert caps == [[2, None], [1, 2], [None, 1]]
    assert {one["who"] for one in found} == {"local"}
    assert {one["key"] for one in found} == {"org:logged|tokens|day"}
    paged: list[Any] = []
    cursor = ""
    while cursor is not None:
        page = client.get(f"/v1/changes?limit=2{cursor and '&cursor='}{cursor}").json()
        paged += page["changes"]
        cursor = page["next"]
    assert len(paged) == len(client.get("/v1/changes?limit=1000").json()["changes"]) >= 3
    assert client.get("/v1/changes?cursor=x").status_code == 400


def test_a_page_of_changes_of_one_kind_is_full_of_them(client: httpx.Client) -> None:
    for name in ("first", "second"):
        client.put(f"/v1/names/port:{name}", json={"display_name": name}).raise_for_status()
    for hard_cap in range(1, 4):
        policy = {"hard_cap": hard_cap}
        client.put("/v1/budgets/port:kinds/tokens/day", json=policy).raise_for_status()
    page = client.get("/v1/changes?what=name&limit=1").json()
    assert [one["key"] for one in page["changes"]] == ["port:second"]
    older = client.get(f"/v1/changes?what=name&limit=1&cursor={page['next']}").json()
    assert [one["key"] for one in older["changes"]] == ["port:first"]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


def make(path: Path, name: str, role: str, **options: Any) -> str:
    return create_key(path, name, role, who="cli:test", now=datetime.now(UTC), **options)[1]


@pytest.fixture(scope="module")
def keyed(
    kafka: str, tmp_path_factory: pytest.TempPathFactory, keys_file: Path
) -> Iterator[ApiProcess]:
    make(keys_file, "root", "admin")
    process = ApiProcess(
        kafka,
        f"t{uuid.uuid4().hex[:10]}.",
        tmp_path_factory.mktemp("keyed"),
        {"TALLYPORT_API_KEYS_FILE": str(keys_file), "TALLYPORT_API_HOST": "0.0.0.0"},
    )
    with process.running():
        process.url = process.url.replace("0.0.0.0", "127.0.0.1")
        yield process


def ask(api: ApiProcess, key: str | None, method: str, path: str, **options: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
    with api.http(headers=headers) as client:
        return client.request(method, path, **options)


def opens(api: ApiProcess, key: str, wanted: bool) -> None:
    """Waits until the API has looked at the file again."""
    deadline_s = time.monotonic() + WAIT_S
    while (ask(api, key, "GET", "/v1/state").status_code == 200) is not wanted:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_keys_are_taken_up_and_revoked_without_a_restart(
    keyed: ApiProcess, keys_file: Path
) -> None:
    for wrong in (None, "x", "tp_000000000000_" + "0" * 64, "Bearer"):
        answer = ask(keyed, wrong, "GET", "/v1/state")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert ask(keyed, None, "GET", "/health/live").status_code == 200
    key = make(keys_file, "later", "read")
    assert keys_file.stat().st_mode & 0o777 == 0o600
    assert key.rpartition("_")[2] not in keys_file.read_text()
    opens(keyed, key, True)
    assert ask(keyed, key[:-1] + ("0" if key[-1] != "0" else "1"), "GET", "/v1/state"
               ).status_code == 401  # fmt: skip
    assert ask(keyed, key, "POST", "/v1/events", json=event()).status_code == 403
    assert ask(keyed, key, "PUT", MONTH, json={}).status_code == 403
    assert ask(keyed, key, "GET", "/v1/budgets").status_code == 200
    revoke_key(keys_file, "later", who="cli:test", now=datetime.now(UTC))
    opens(keyed, key, False)
    keys_file.write_text(keys_file.read_text())
    assert key not in keyed.errors


async def test_a_stream_ends_with_the_key_it_was_opened_with(
    keyed: ApiProcess, keys_file: Path
) -> None:
    keys = {name: make(keys_file, name, "read") for name in ("brief", "lasting")}
    for key in keys.values():
        opens(keyed, key, True)
    heard: dict[str, int] = dict.fromkeys(keys, 0)
    ended: list[str] = []

    async def follow(name: str, client: httpx.AsyncClient) -> None:
        headers = {"Authorization": f"Bearer {keys[name]}"}
        async with client.stream("GET", "/v1/state/stream", headers=headers) as response:
            async for _ in response.aiter_raw():
                heard[name] += 1
        ended.append(name)

    async def beat_until(is_reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not is_reached():
                await keyed.beat()
                await asyncio.sleep(0.05)

    async with httpx.AsyncClient(base_url=keyed.url, timeout=WAIT_S) as client:
        following = [asyncio.create_task(follow(name, client)) for name in keys]
        await beat_until(lambda: all(heard.values()))
        revoke_key(keys_file, "brief", who="cli:test", now=datetime.now(UTC))
        await beat_until(lambda: bool(ended))
        so_far = heard["lasting"]
        await beat_until(lambda: heard["lasting"] > so_far)
        assert ended == ["brief"]
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)


def test_a_damaged_file_leaves_the_keys_as_they_were(keyed: ApiProcess, keys_file: Path) -> None:
    key = make(keys_file, "steady", "admin")
    opens(keyed, key, True)
    good = keys_file.read_text()
    # In one step: for a moment the file would be empty, which is valid and revokes every key.
    damaged = keys_file.with_name("damaged.json")
    damaged.write_text("{")
    damaged.replace(keys_file)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while ask(keyed, None, "GET", "/health/ready").status_code != 503:
            assert ask(keyed, key, "GET", "/v1/state").status_code == 200
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        keys_file.write_text(good)


def test_a_key_for_a_port_sends_and_sees_that_port_alone(
    keyed: ApiProcess, keys_file: Path
) -> None:
    ingest = make(keys_file, "p1-ingest", "ingest", ports=["p1"])
    admin = make(keys_file, "p1-admin", "admin", ports=["p1"])
    opens(keyed, admin, True)
    mixed = [event(port_id="p1"), event(port_id="p2")]
    answer = ask(keyed, ingest, "POST", "/v1/events", json=mixed)
    assert answer.status_code == 207
    assert [one["reason"] for one in answer.json()["results"]] == [None, "forbidden-port"]
    assert ask(keyed, ingest, "POST", "/v1/events", json=mixed[1]).status_code == 403
    states = (state("port:p1", 1), state("port:p2", 2), state("all", 1_000))
    asyncio.run(keyed.put_states(*states))
    with keyed.counted_for():
        opens(keyed, ingest, True)
        deadline_s = time.monotonic() + WAIT_S
        while not (found := ask(keyed, ingest, "GET", "/v1/state").json()["states"]):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert [one["scope"] for one in found] == ["port:p1"]
        while (verdict := ask(keyed, ingest, "POST", "/v1/check", json={"port_id": "p1"}).json())[
            "allowed"
        ]:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert (verdict["scope"], verdict["used"]) == ("all", None)
        assert [one["scope"] for one in verdict["policies"]] == ["port:p1"]
    assert ask(keyed, ingest, "POST", "/v1/check", json={"port_id": "p2"}).status_code == 403
    assert ask(keyed, admin, "PUT", "/v1/budgets/port:p2/tokens/day", json={}).status_code == 403
    assert ask(keyed, admin, "PUT", "/v1/budgets/port:*/tokens/day", json={}).status_code == 403
    assert ask(keyed, admin, "PUT", "/v1/prices", json={}).status_code == 403
    assert ask(keyed, admin, "PUT", "/v1/budgets/port:p1/tokens/day", json={}).status_code == 201
    changes = ask(keyed, admin, "GET", "/v1/changes").json()["changes"]
    assert [(one["who"], one["key"]) for one in changes] == [("key:p1-admin", "port:p1|tokens|day")]


def test_rates_of_a_key_and_of_its_users(keyed: ApiProcess, keys_file: Path) -> None:
    slow = make(keys_file, "slow", "ingest", rate="2/min")
    per_user = make(keys_file, "per-user", "ingest", user_rate="1/h")
    deadline_s = time.monotonic() + WAIT_S
    while ask(keyed, per_user, "GET", "/v1/state").status_code != 200:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    statuses = [ask(keyed, slow, "GET", "/v1/state").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = ask(keyed, slow, "GET", "/v1/state")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    check = {"user_id": "u1"}
    assert ask(keyed, per_user, "POST", "/v1/check", json=check).status_code == 200
    assert ask(keyed, per_user, "POST", "/v1/check", json=check).status_code == 429
    other = ask(keyed, per_user, "POST", "/v1/check", json={"user_id": "u2"})
    assert other.status_code == 200


def test_changes_of_keys_are_in_the_log(keyed: ApiProcess, keys_file: Path) -> None:
    make(keys_file, "passing", "read")
    revoke_key(keys_file, "passing", who="cli:test", now=datetime.now(UTC))
    admin = make(keys_file, "auditor", "admin")
    opens(keyed, admin, True)
    found = ask(keyed, admin, "GET", "/v1/changes?what=key").json()["changes"]
    assert (found[0]["who"], found[0]["key"]) == ("cli:test", "auditor")
    revoked = [one for one in found if one["key"] == "passing" and one["after"] is None]
    assert len(revoked) == 1
    hashes = [key.hash for key in read_keys(keys_file) if key.hash]
    assert hashes
    assert not any(one in json.dumps(found) for one in hashes)


def test_the_command_makes_lists_and_revokes(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.json"

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "pipeline", "keys", *words],
            env={"PATH": "", "TALLYPORT_API_KEYS_FILE": str(path), "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )

    made = run("create", "ocr", "--role", "ingest", "--port-id", "p", "--rate", "20/min", "--json")
    assert made.returncode == 0, made.stderr
    body = json.loads(made.stdout)
    assert (body["ports"], body["rate"]) == (["p"], "20/min")
    assert "hash" not in body
    assert run("create", "ocr", "--role", "read").returncode == 2
    assert run("create", "bad", "--role", "read", "--rate", "often").returncode == 2
    listed = run("list")
    assert "ocr" in listed.stdout
    assert body["key"] not in listed.stdout
    assert run("revoke", "ocr").returncode == 0
    assert run("revoke", "ocr").returncode == 2
    assert len(json.loads(run("list", "--all", "--json").stdout)["keys"]) == 1


def test_tls_by_flag(kafka: str, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True, timeout=WAIT_S,
    )  # fmt: skip
    process = ApiProcess(
        kafka,
        f"t{uuid.uuid4().hex[:10]}.",
        tmp_path,
        arguments=("--tls-cert", str(cert), "--tls-key", str(key)),
    )
    with process.running():
        assert process.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=context, timeout=WAIT_S, trust_env=False) as client:
            assert client.get(f"{process.url}/health/live").status_code == 200
        assert process.stop() == 0, process.errors


def test_names_that_were_saved_are_written_again(client: httpx.Client) -> None:
    given = {"user:saved/1%": "Ann", "port:saved 2": "Quay", "group:saved-3": "Team"}
    for scope, name in given.items():
        path = f"/v1/names/{quote(scope, safe='')}"
        body = {"display_name": name, "email": "a@example.com"}
        assert client.put(path, json=body).status_code == 201
    asked = {"scope": list(given)}
    saved = client.get("/v1/names", params=asked).json()["names"]
    paths = [f"/v1/names/{quote(one['scope'], safe='')}" for one in saved]
    assert [client.delete(path).status_code for path in paths] == [204] * 3
    assert client.get("/v1/names", params=asked).json()["names"] == []
    for path, one in zip(paths, saved, strict=True):
        assert client.put(path, json=one).status_code == 201
    assert client.get("/v1/names", params=asked).json()["names"] == saved
    assert len(saved) == 3
