"""``POST /v1/events`` in all its forms, on a real Kafka."""

import gzip
import json
import socket
import zlib
from random import Random
from typing import Any

import httpx
import pytest

from pipeline.core.rejections import EVENT_REASONS
from producers.malformed import MAKERS, STRUCTURED
from producers.partitions import home_partition
from tests.web.api_process import PARTITIONS, ApiProcess, event

ENVELOPE = {"specversion": "1.0", "id": "ce-1", "source": "/s", "type": "usage"}


def post(api: ApiProcess, body: Any, content_type: str = "application/json", **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with api.http() as client:
        return client.post(
            "/v1/events", content=content, headers={"Content-Type": content_type, **headers}
        )


async def test_one_event_is_acknowledged_at_its_home(api: ApiProcess) -> None:
    body = json.dumps(event(event_id="one", port_id="port-é")).encode()
    answer = post(api, body)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    assert result["event_id"] == "one"
    assert (result["status"], result["reason"], result["detail"]) == ("accepted", None, None)
    home = home_partition("port-é".encode(), PARTITIONS)
    [record] = [r for r in await api.records() if (r.partition, r.offset) == (
        home, result["offset"])]  # fmt: skip
    assert result["partition"] == home
    assert (record.key, record.value) == ("port-é".encode(), body)


async def test_results_come_in_input_order_with_their_own_offsets(api: ApiProcess) -> None:
    events = [event(event_id=f"a{n}", port_id=f"p{n % 7}") for n in range(1_000)]
    answer = post(api, events)
    assert answer.status_code == 200
    found = {(r.partition, r.offset): json.loads(r.value) for r in await api.records()}
    results = answer.json()["results"]
    assert [r["event_id"] for r in results] == [one["event_id"] for one in events]
    assert [found[r["partition"], r["offset"]] for r in results] == events


def test_mixed_and_bad_requests_say_what_became_of_each(api: ApiProcess) -> None:
    answer = post(api, [event(), event(event_id="bad", input_tokens=-1), 7])
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [r["reason"] for r in results] == [None, "out-of-range", "not-an-object"]
    assert results[1]["event_id"] == "bad"
    assert results[1]["detail"].startswith("input_tokens: ")
    none = post(api, [event(model=...)])
    assert none.status_code == 400
    assert none.headers["content-type"] == "application/problem+json"
    assert none.json()["results"][0]["reason"] == "missing-field"
    assert post(api, []).status_code == 400


async def test_neighbours_do_not_change_what_becomes_of_an_event(api: ApiProcess) -> None:
    """In groups of usual events, whole ones and those with one that is refused among them."""
    bad = {
        40: ("too-old", {"occurred_at": "2020-01-01T00:00:00Z"}),
        75: ("in-the-future", {"occurred_at": "2999-01-01T00:00:00Z"}),
        110: ("too-large", {"model": "m" * 70_000}),
        111: ("inconsistent-tokens", {"cached_input_tokens": 10**6}),
        199: ("wrong-type", {"user_id": 7}),
    }
    events = [event(event_id=f"g{n}", port_id=f"p{n % 7}") for n in range(200)]
    for number, (_, fields) in bad.items():
        events[number] |= fields
    events[5]["tags"] = {"large": "x" * 250}
    answer = post(api, events)
    assert answer.status_code == 207
    results = answer.json()["results"]
    reasons = {n: result["reason"] for n, result in enumerate(results) if result["reason"]}
    assert reasons == {number: reason for number, (reason, _) in bad.items()}
    found = {(r.partition, r.offset): json.loads(r.value) for r in await api.records()}
    for one, result in zip(events, results, strict=True):
        if result["reason"] is None:
            assert found[result["partition"], result["offset"]] == one


def test_a_broken_element_does_not_spoil_the_others(api: ApiProcess) -> None:
    good = json.dumps(event()).encode()
    deep = b'{"tags":' + b"[" * 2_000 + b"]" * 2_000 + b"}"
    answer = post(api, b"[" + b", ".join([good, b'{"a":1,,}', good, deep, b'{"x":"\xff"}']) + b"]")
    assert answer.status_code == 207
    assert [r["reason"] for r in answer.json()["results"]] == [
        None, "malformed-json", None, "malformed-json", "malformed-json",
    ]  # fmt: skip
    whole = post(api, b"[" + good + b"}")
    assert whole.json()["results"][0]["reason"] == "malformed-json"


def test_ndjson(api: ApiProcess) -> None:
    lines = [json.dumps(event(event_id="n1")), "", "{", json.dumps(event(event_id="n2"))]
    answer = post(api, "\r\n".join(lines).encode(), "application/x-ndjson")
    assert answer.status_code == 207
    results = answer.json()["results"]
    assert [(r["event_id"], r["status"]) for r in results] == [
        ("n1", "accepted"), (None, "rejected"), ("n2", "accepted"),
    ]  # fmt: skip


async def test_cloudevents_go_on_as_they_came(api: ApiProcess) -> None:
    data = event(event_id=..., port_id=...)
    envelope = {**ENVELOPE, "subject": "p-ce", "data": data}
    one = post(api, envelope, "application/cloudevents+json; charset=utf-8")
    assert one.status_code == 200, one.text
    assert one.json()["results"][0]["event_id"] == "ce-1"
    batch = [{**envelope, "id": "ce-2"}, {**envelope, "specversion": "0.3"}]
    two = post(api, batch, "application/cloudevents-batch+json")
    assert [r["reason"] for r in two.json()["results"]] == [None, "bad-cloudevent"]
    binary = post(api, data, **{
        "ce-specversion": "1.0", "ce-id": "ce%2D3", "ce-subject": "p-ce", "ce-type": "t",
        "ce-source": "/s",
    })  # fmt: skip
    assert binary.json()["results"][0]["event_id"] == "ce-3"
    found = [dict(r.headers) for r in await api.records() if r.key == b"p-ce"]
    assert [h["content-type"].split(b";")[0] for h in found] == [
        b"application/cloudevents+json", b"application/cloudevents+json", b"application/json",
    ]  # fmt: skip
    assert found[2]["ce_id"] == b"ce-3"


@pytest.mark.parametrize("reason", EVENT_REASONS)
def test_every_reason_is_the_contracts(api: ApiProcess, reason: str) -> None:
    for number, make in enumerate(MAKERS[reason]):
        value, headers = make(event(event_id=f"m{number}"))
        if value is None:
            continue  # HTTP has no null
        kind = "application/cloudevents+json" if headers == STRUCTURED else "application/json"
        if headers and headers != STRUCTURED:
            kind = "application/cloudevents-batch+json"
        if value.startswith(b"[") or not value:
            continue  # over HTTP an array is many events, and a batch is taken
        answer = post(api, value, kind)
        assert answer.status_code == 400, (reason, value[:80], answer.text)
        assert answer.json()["results"][0]["reason"] == reason, value[:200]


def test_limits_are_told_before_memory_is_used(api: ApiProcess) -> None:
    assert post(api, [0] * 1_001).status_code == 413
    assert post(api, b" " * (1024 * 1024 + 1)).status_code == 413
    bomb = gzip.compress(b" " * (200 * 1024 * 1024))
    assert len(bomb) < 1024 * 1024
    assert post(api, bomb, **{"Content-Encoding": "gzip"}).status_code == 413
    assert post(api, b"\x1f\x8bnonsense", **{"Content-Encoding": "gzip"}).status_code == 400
    assert post(api, zlib.compress(b"{}"), **{"Content-Encoding": "br"}).status_code == 415
    packed = gzip.compress(json.dumps(event()).encode())
    assert post(api, packed[:-4], **{"Content-Encoding": "gzip"}).status_code == 400
    assert post(api, packed, **{"Content-Encoding": "gzip"}).status_code == 200

    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 65_536

    with api.http() as client:
        answer = client.post(
            "/v1/events", content=chunks(), headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin1", ""],
)
def test_other_content_types_are_415(api: ApiProcess, kind: str) -> None:
    answer = post(api, event(), kind)
    assert answer.status_code == 415
    assert answer.json()["status"] == 415


def test_errors_are_problem_documents(api: ApiProcess) -> None:
    with api.http() as client:
        for method, path, status in (
            ("GET", "/v1/nothing", 404), ("GET", "/v1/events", 405), ("DELETE", "/v1/state", 405),
        ):  # fmt: skip
            answer = client.request(method, path)
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
        assert client.get("/v1/state", headers={"Origin": "http://evil.example"}).status_code == 403
        assert client.get("/v1/state", headers={"Host": "evil.example"}).status_code == 403


def test_a_head_without_end_and_nonsense_are_let_go_of(api: ApiProcess) -> None:
    port = int(api.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: " + b"y" * 100_000)
        assert connection.recv(4096).startswith(b"HTTP/1.1 431")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        assert connection.recv(4096) == b""  # half a head: closed after a while


def test_any_bytes_get_an_answer(api: ApiProcess) -> None:
    rng = Random(7)
    valid = json.dumps([event(event_id=f"f{n}") for n in range(3)]).encode()
    with api.http() as client:
        for _ in range(300):
            body = bytearray(valid)
            for _ in range(rng.randint(1, 8)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            kind = rng.choice(
                ["application/json", "application/x-ndjson", "application/cloudevents-batch+json"]
            )
            answer = client.post("/v1/events", content=bytes(body), headers={"Content-Type": kind})
            assert answer.status_code in (200, 207, 400), answer.text


def test_what_was_taken_and_refused_is_counted(api: ApiProcess) -> None:
    post(api, event())
    post(api, event(model=...))
    text = httpx.get(f"{api.url}/metrics", trust_env=False).text
    assert 'tallyport_http_events_rejected_total{reason="missing-field"}' in text
    assert "tallyport_http_events_accepted_total" in text
    assert "tallyport_http_in_flight_bytes 0.0" in text
