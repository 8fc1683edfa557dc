"""The same bad events through every door: the same reason, and nothing beside them is lost."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from confluent_kafka import Producer
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from pipeline.core.event_fields import FIELDS
from pipeline.core.rejections import EVENT_REASONS
from pipeline.ops.deployment import Deployment
from pipeline.stream.topics import Topics
from producers import Meter
from producers.malformed import MAKERS
from tests.producers.deployed import deployed, environ_of, events_of, records_of
from tests.producers.sides import until

Fields = dict[str, Any]
ENVELOPE = {"specversion": "1.0", "id": "ce", "source": "/s", "type": "usage"}
FILLED = ("event_id", "occurred_at")
"""What the SDK fills in where it is absent, as does a CloudEvent's envelope with its id."""


class Bad(NamedTuple):
    """A bad record: its name, the reason, its bytes and headers, its fields where it has any."""

    name: str
    reason: str
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    fields: Fields | None


def good(event_id: str, port_id: str) -> Fields:
    return {
        "event_id": event_id,
        "occurred_at": datetime.now(UTC).isoformat(),
        "port_id": port_id,
        "provider": "openai",
        "model": "gpt-5",
        "input_tokens": 10,
        "output_tokens": 10,
    }


def nested(depth: int) -> bytes:
    return b'{"event_id":' + b"[" * depth + b"]" * depth + b"}"


def bad_records() -> list[Bad]:
    found = [
        _bad(f"{reason}-{number}", reason, *make(good(f"{reason}-{number}", "bad")))
        for reason in EVENT_REASONS
        for number, make in enumerate(MAKERS[reason])
    ]
    for depth in (300, 30_000):
        found.append(_bad(f"nested-{depth}", "malformed-json", nested(depth), ()))
    found.append(_bad("not-utf-8", "malformed-json", b'{"model":"\xc3\x28"}', ()))
    return found


def _bad(
    name: str, reason: str, value: bytes | None, headers: tuple[tuple[str, bytes], ...]
) -> Bad:
    fields = None
    if value is not None and not headers:
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        is_written_so = "malformed" in reason or "object" in reason
        fields = parsed if isinstance(parsed, dict) and not is_written_so else None
    return Bad(name, reason, value, headers, fields)


BAD = bad_records()
PLAIN = [bad for bad in BAD if bad.value and not bad.headers]
WITH_FIELDS = [bad for bad in BAD if bad.fields is not None]


def lacks(fields: Fields, *names: str) -> bool:
    return any(fields.get(name) is None for name in names)


@pytest.fixture(scope="module")
def deployment(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(kafka, tmp_path_factory.mktemp("deployment")) as running:
        yield running


@pytest.fixture
def client(deployment: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployment.api_url, timeout=30, trust_env=False) as made:
        yield made


def test_the_table_has_every_reason_with_and_without_fields() -> None:
    assert {bad.reason for bad in BAD} == set(EVENT_REASONS)
    unwritten = {"bad-cloudevent", "malformed-json", "not-an-object"}
    assert {bad.reason for bad in WITH_FIELDS} == set(EVENT_REASONS) - unwritten


def test_kafka(deployment: Deployment) -> None:
    """Plain, structured and binary CloudEvents alike; the worker says why."""
    binary = [("ce_specversion", b"1.0"), ("ce_id", b"i"), ("ce_source", b"/s"), ("ce_type", b"t")]
    topic = Topics(deployment.settings.topic_prefix).events
    bootstrap = deployment.settings.kafka_bootstrap or ""
    producer = Producer({"bootstrap.servers": bootstrap, "partitioner": "murmur2_random"})
    sent: dict[tuple[int, int], Bad] = {}

    def keep(bad: Bad) -> Callable[[Any, Any], None]:
        def placed(error: Any, message: Any) -> None:
            assert error is None
            sent[message.partition(), message.offset()] = bad

        return placed

    for number, bad in enumerate(BAD):
        as_good = json.dumps(good(f"k{number}", "kafka-good")).encode()
        producer.produce(topic, as_good, b"kafka-good")
        producer.produce(topic, bad.value, b"bad", headers=[*bad.headers], on_delivery=keep(bad))
        if bad.fields is not None and not lacks(bad.fields, "event_id"):
            producer.produce(topic, bad.value, b"bad", headers=binary, on_delivery=keep(bad))
    assert producer.flush(30) == 0

    def refused() -> dict[tuple[int, int], Any]:
        found: dict[tuple[int, int], Any] = {}
        for record in records_of(deployment, "rejected"):
            headers = dict(record.headers)
            place = int(headers["source-partition"]), int(headers["source-offset"])
            if place in sent:
                found[place] = (headers["reason"].decode(), record.value)
        return found

    until(lambda: len(refused()) == len(sent), "the worker to refuse them all")
    assert refused() == {place: (bad.reason, bad.value) for place, bad in sent.items()}
    assert len(events_of(deployment, "kafka-good")) == len(BAD)


def post(client: httpx.Client, content: bytes, kind: str, **headers: str) -> list[Any]:
    """The results of a request to ``/v1/events``."""
    sent = {"Content-Type": kind, **headers}
    answer = client.post("/v1/events", content=content, headers=sent)
    assert answer.status_code in (200, 207, 400), answer.text
    return answer.json()["results"]


@pytest.mark.parametrize("form", ["object", "ndjson", "array"])
def test_http(client: httpx.Client, deployment: Deployment, form: str) -> None:
    port_id, tried = f"{form}-good", set[str]()
    for bad in PLAIN:
        assert bad.value is not None
        beside = json.dumps(good(bad.name, port_id)).encode()
        if form == "object":
            if bad.value.startswith(b"["):
                continue  # over HTTP an array is many events
            [result] = post(client, bad.value, "application/json")
        elif form == "ndjson":
            body = b"\n".join([beside, bad.value, beside])
            first, result, last = post(client, body, "application/x-ndjson")
            assert (first["status"], last["status"]) == ("accepted", "accepted")
        else:
            if bad.name in ("malformed-json-0", "malformed-json-4"):
                continue  # cut short, or no text: where it ends cannot be told
            body = b"[" + b",".join([beside, bad.value, beside]) + b"]"
            first, result, last = post(client, body, "application/json")
            assert (first["status"], last["status"]) == ("accepted", "accepted"), bad.name
        assert (result["status"], result["reason"]) == ("rejected", bad.reason), bad.name
        tried.add(bad.name)
    assert len(tried) > len(PLAIN) - 4
    if form != "object":
        assert {event["event_id"] for event in events_of(deployment, port_id)} == tried


@pytest.mark.parametrize("form", ["structured", "binary", "batch"])
def test_cloudevents(client: httpx.Client, form: str) -> None:
    headers = {f"ce-{name}": text for name, text in ENVELOPE.items()}
    for bad in WITH_FIELDS:
        assert bad.value is not None
        assert bad.fields is not None
        if lacks(bad.fields, "event_id"):
            continue  # the envelope's id fills it in
        envelope = {**ENVELOPE, "data": bad.fields}
        if form == "binary":
            [result] = post(client, bad.value, "application/json", **headers)
        elif form == "structured":
            body = json.dumps(envelope).encode()
            [result] = post(client, body, "application/cloudevents+json")
        else:
            whole = {**ENVELOPE, "data": good(bad.name, "batch-good")}
            body = json.dumps([whole, envelope, whole]).encode()
            kind = "application/cloudevents-batch+json"
            first, result, last = post(client, body, kind)
            assert (first["status"], last["status"]) == ("accepted", "accepted")
        assert (result["status"], result["reason"]) == ("rejected", bad.reason), bad.name


def any_value(value: Any) -> Fields:
    """A JSON value as OTLP writes it."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, dict):
        values = [{"key": name, "value": any_value(one)} for name, one in value.items()]
        return {"kvlistValue": {"values": values}}
    return {"stringValue": value}


def span(number: int, fields: Fields) -> Fields:
    """A span whose event has these fields; its times are the span's, its id the span's."""
    occurred_at = datetime.fromisoformat(fields["occurred_at"])
    attributes = {
        "gen_ai.usage.output_tokens": 0,
        **{f"tallyport.{name}": value for name, value in fields.items() if name not in FILLED},
    }
    return {
        "traceId": f"{number + 1:032x}",
        "spanId": f"{number + 1:016x}",
        "endTimeUnixNano": str(int(occurred_at.timestamp() * 1e6) * 1000),
        "attributes": [{"key": n, "value": any_value(v)} for n, v in attributes.items()],
    }


@pytest.mark.parametrize("encoding", ["json", "protobuf"])
def test_otlp(client: httpx.Client, deployment: Deployment, encoding: str) -> None:
    port_id = f"otlp-{encoding}"
    for number, bad in enumerate(WITH_FIELDS):
        fields = bad.fields
        assert fields is not None
        known = {name for name, value in fields.items() if name in FIELDS and value is not None}
        changed = {name for name in FIELDS if fields.get(name) != good("", "bad").get(name)}
        is_about_time = bad.reason in ("too-old", "in-the-future")
        if not is_about_time and not (changed & known or changed) - set(FILLED):
            continue  # a span has its own id and time
        if bad.reason == "too-large":
            fields = {**fields, "service": "x" * 65_536}
        if bad.reason == "bad-timestamp" or not isinstance(fields.get("occurred_at"), str):
            continue
        if len(fields.get("event_id") or "x" * 129) > 128:
            continue
        spans = [span(3 * number, fields), span(3 * number + 1, good("", port_id))]
        body = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
        if encoding == "json":
            told = client.post("/v1/traces", json=body).json()["partialSuccess"]
            refused, why = int(told["rejectedSpans"]), told["errorMessage"]
        else:
            for one in spans:  # ids are hex in OTLP's JSON, base64 in protobuf's
                del one["traceId"], one["spanId"]
            request = ParseDict(body, ExportTraceServiceRequest())
            for at, one in enumerate(request.resource_spans[0].scope_spans[0].spans):
                one.trace_id, one.span_id = bytes([at + 1] * 16), bytes([number + 1] * 8)
            answer = client.post(
                "/v1/traces",
                content=request.SerializeToString(),
                headers={"Content-Type": "application/x-protobuf"},
            )
            partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
            refused, why = partial.rejected_spans, partial.error_message
        assert refused == 1, (bad.name, why)
        assert f": {bad.reason}: " in why, bad.name
    assert len(events_of(deployment, port_id)) > 10


def test_sdk(deployment: Deployment, tmp_path: Path) -> None:
    """What the SDK can see it refuses itself; what needs Kafka's time the API does."""
    expected: dict[str, int] = {}
    with Meter.from_env(environ_of(deployment, "http", tmp_path)) as meter:
        for bad in WITH_FIELDS:
            fields = bad.fields
            assert fields is not None
            if lacks(fields, *FILLED):
                continue
            meter.record(**fields)
            meter.record(**good(bad.name, "sdk-good"))
            expected[bad.reason] = expected.get(bad.reason, 0) + 1
        assert meter.flush(30)
        assert meter.stats.rejected == expected
        assert meter.stats.lost == {}
    assert len(events_of(deployment, "sdk-good")) == sum(expected.values())


def test_bombs_are_refused_before_they_unfold(client: httpx.Client) -> None:
    """A gigabyte of zeros, packed, and zeros in members; the API goes on."""
    pack = zlib.compressobj(1, wbits=31)
    chunk = bytes(16 * 1024 * 1024)
    bomb = b"".join([*(pack.compress(chunk) for _ in range(64)), pack.flush()])
    in_members = gzip.compress(bytes(1024 * 1024)) * 500
    for path, kind in (("/v1/events", "application/json"), ("/v1/traces", "application/json")):
        for content in (bomb[: 1024 * 1024], in_members[: 1024 * 1024]):
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
            answer = client.post(path, content=content, headers=headers)
            assert answer.status_code == 413, answer.text
        assert client.post(path, content=bomb, headers=headers).status_code == 413
    deep = b'{"resourceSpans":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    answer = client.post("/v1/traces", content=deep, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert client.get("/health/ready").status_code == 200


def test_spans_with_deep_values_are_refused_or_taken_and_nothing_fails(
    client: httpx.Client, deployment: Deployment
) -> None:
    value: Fields = {"stringValue": "x"}
    for _ in range(150):
        value = {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
    deep = span(10_000, good("", "deep"))
    deep["attributes"].append({"key": "tallyport.tags", "value": value})
    body = {
        "resourceSpans": [{"scopeSpans": [{"spans": [deep, span(10_001, good("", "beside"))]}]}]
    }
    answer = client.post("/v1/traces", json=body)
    assert answer.status_code == 200, answer.text
    assert "wrong-type" in answer.json()["partialSuccess"]["errorMessage"]
    assert len(events_of(deployment, "beside")) == 1
