"""``POST /v1/traces``: OTLP from the real SDK, exporter and instrumentation, and by hand."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from openai import OpenAI
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.rejections import Rejection
from pipeline.web.otlp_messages import MAX_SPANS
from pipeline.web.spans import Span, event_of, reports_usage
from pipeline.web.traces import LARGE_BODY_BYTES
from tests.web.api_process import ApiProcess

WAIT_S = 60.0
USAGE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5",
    "gen_ai.usage.input_tokens": 120,
    "gen_ai.usage.output_tokens": 30,
    "gen_ai.usage.cache_read.input_tokens": 100,
}


def span(attributes: dict[str, Any], resource: dict[str, Any] | None = None) -> Span:
    return Span("ab" * 16, "cd" * 8, 1_800_000_000_123_456_789, attributes, resource or {})


def test_a_span_becomes_an_event() -> None:
    event = decode_event(
        event_of(
            span(
                {
                    **USAGE,
                    "gen_ai.response.model": "gpt-5-2025",
                    "gen_ai.response.id": "resp-1",
                    "tallyport.port_id": "harbor-7",
                    "tallyport.feature": "ocr",
                    "enduser.id": "u1",
                },
                {"service.name": "scanner", "tallyport.organization_id": "org-1"},
            ),
            None,
        )
    )
    assert isinstance(event, Event)
    assert event.event_id == "ab" * 16 + "-" + "cd" * 8
    assert event.occurred_at_us == 1_800_000_000_123_456
    assert (event.port_id, event.service, event.feature) == ("harbor-7", "scanner", "ocr")
    assert (event.provider, event.model) == ("openai", "gpt-5-2025")
    assert (event.input_tokens, event.cached_input_tokens, event.output_tokens) == (120, 100, 30)
    assert (event.user_id, event.organization_id, event.request_id) == ("u1", "org-1", "resp-1")


@pytest.mark.parametrize(
    ("own", "only_port", "service", "port_id"),
    [("own", "key", "s", "own"), (None, "key", "s", "key"), (None, None, "s", "s")],
)
def test_whose_call_it_is(
    own: str | None, only_port: str | None, service: str, port_id: str
) -> None:
    attributes = {**USAGE, **({"tallyport.port_id": own} if own else {})}
    found = json.loads(event_of(span(attributes, {"service.name": service}), only_port))
    assert found["port_id"] == port_id


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gen_ai.provider.name": None}, "missing-field"),
        ({"gen_ai.usage.input_tokens": "120"}, "wrong-type"),
        ({"gen_ai.usage.output_tokens": 30.0}, "wrong-type"),
        ({"gen_ai.usage.output_tokens": float("nan")}, "wrong-type"),
        ({"gen_ai.usage.input_tokens": -1}, "out-of-range"),
        ({"tallyport.kind": "video"}, "out-of-range"),
        ({"gen_ai.usage.cache_read.input_tokens": 121}, "inconsistent-tokens"),
        ({"gen_ai.request.model": "m" * 70_000}, "too-large"),
    ],
)
def test_a_bad_span_has_the_reason_of_a_bad_event(changes: dict[str, Any], reason: str) -> None:
    attributes = {name: value for name, value in {**USAGE, **changes}.items() if value is not None}
    rejection = decode_event(event_of(span(attributes, {"service.name": "s"}), None))
    assert isinstance(rejection, Rejection)
    assert rejection.reason == reason


def test_what_children_report_as_well_is_not_an_event() -> None:
    assert reports_usage(span(USAGE))
    assert not reports_usage(span({"http.method": "GET"}))
    for operation in ("invoke_agent", "execute_tool"):
        assert not reports_usage(span({**USAGE, "gen_ai.operation.name": operation}))


async def records_of(api: ApiProcess, port_id: str) -> list[dict[str, Any]]:
    return [json.loads(r.value) for r in await api.records() if r.key == port_id.encode()]


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
async def test_the_real_exporter(api: ApiProcess, compression: Compression) -> None:
    service = f"svc-{compression.value}"
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    exporter = OTLPSpanExporter(f"{api.url}/v1/traces", timeout=WAIT_S, compression=compression)
    results: list[SpanExportResult] = []
    export = exporter.export
    exporter.export = lambda spans: results.append(export(spans)) or results[-1]  # type: ignore[method-assign]
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    agent = {"gen_ai.operation.name": "invoke_agent"}
    with (
        tracer.start_as_current_span("agent", attributes=agent),
        tracer.start_as_current_span("chat", attributes=USAGE) as chat,
    ):
        context = chat.get_span_context()
    provider.shutdown()
    assert results == [SpanExportResult.SUCCESS] * 2
    [found] = await records_of(api, service)
    assert found["event_id"] == f"{context.trace_id:032x}-{context.span_id:016x}"
    assert found["input_tokens"] == 120


class _FakeOpenAI(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "gpt-5-nano-2025-08-07",
                "service_tier": "default",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "hi"},
                    }
                ],
                "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def fake_openai() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _FakeOpenAI)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(5)


async def test_the_real_openai_instrumentation(api: ApiProcess, fake_openai: str) -> None:
    resource = Resource.create({"service.name": "chatty", "tallyport.port_id": "harbor-oai"})
    provider = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(f"{api.url}/v1/traces", timeout=WAIT_S)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    try:
        with OpenAI(base_url=fake_openai, api_key="none", max_retries=0) as client:
            client.chat.completions.create(
                model="gpt-5-nano", messages=[{"role": "user", "content": "hello"}]
            )
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
    [found] = await records_of(api, "harbor-oai")
    assert (found["provider"], found["model"]) == ("openai", "gpt-5-nano-2025-08-07")
    assert (found["input_tokens"], found["output_tokens"]) == (11, 7)
    assert found["request_id"] == "chatcmpl-1"


def json_request(**changes: Any) -> dict[str, Any]:
    attributes = [
        {"key": "gen_ai.provider.name", "value": {"stringValue": "openai"}},
        {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-5"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
    ]
    from time import time_ns

    one = {
        "traceId": "5B8EFFF798038103D269B633813FC60C",
        "spanId": "EEE19B7EC3C1B174",
        "endTimeUnixNano": str(time_ns()),
        "attributes": attributes,
        "kind": 3,
        "unknownField": [1],
        **changes,
    }
    service = {"key": "service.name", "value": {"stringValue": "json-svc"}}
    return {
        "resourceSpans": [{"resource": {"attributes": [service]}, "scopeSpans": [{"spans": [one]}]}]
    }


async def test_json_and_partial_success(api: ApiProcess) -> None:
    with api.http() as client:
        answer = client.post("/v1/traces", json=json_request())
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["content-type"] == "application/json"
        packed = gzip.compress(json.dumps(json_request(spanId="", traceId="")).encode())
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        partial = client.post("/v1/traces", content=packed, headers=headers)
        assert partial.status_code == 200
        told = partial.json()["partialSuccess"]
        assert told["rejectedSpans"] == "1"
        assert "missing-field: event_id" in told["errorMessage"]
    [found] = await records_of(api, "json-svc")
    assert found["event_id"] == "5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174"


def test_protobuf_answers_are_protobuf(api: ApiProcess) -> None:
    request = ExportTraceServiceRequest()
    one = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=b"\1" * 16, span_id=b"\2" * 8, end_time_unix_nano=1_700_000_000_000_000_000
        )
    )
    one.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 1
    headers = {"Content-Type": "application/x-protobuf"}
    with api.http() as client:
        answer = client.post("/v1/traces", content=request.SerializeToString(), headers=headers)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-protobuf"
        found = ExportTraceServiceResponse.FromString(answer.content).partial_success
        assert found.rejected_spans == 1
        assert "missing-field: port_id" in found.error_message
        empty = client.post("/v1/traces", content=b"", headers=headers)
        assert (empty.status_code, empty.content) == (200, b"")
        bad = client.post("/v1/traces", content=b"\xff\xff\xff", headers=headers)
        assert bad.status_code == 400
        assert bad.content.startswith(b"\x08\x03\x12")
        bad_json = client.post(
            "/v1/traces", content=b"{", headers={"Content-Type": "application/json"}
        )
        assert bad_json.status_code == 400
        assert bad_json.json()["code"] == 3


def test_more_spans_than_an_exporter_sends_are_not_taken(api: ApiProcess) -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for _ in range(MAX_SPANS):
        scope.spans.add(trace_id=b"\1" * 16, name="x" * 20)
    most = request.SerializeToString()
    scope.spans.add()
    headers = {"Content-Type": "application/x-protobuf"}
    two = [{"scopeSpans": [{"spans": [{}] * (MAX_SPANS // 2 + 1)}]}] * 2
    with api.http() as client:
        assert len(most) > LARGE_BODY_BYTES
        assert client.post("/v1/traces", content=most, headers=headers).status_code == 200
        for refused in (
            client.post("/v1/traces", content=request.SerializeToString(), headers=headers),
            client.post("/v1/traces", json={"resourceSpans": two}),
        ):
            assert refused.status_code == 413
            assert refused.json()["detail"] == "more than 10,000 spans in one request"
        assert client.post("/v1/traces", content=b"x").status_code == 415
        large = client.post("/v1/traces", content=bytes(9 * 1024 * 1024), headers=headers)
        assert large.status_code == 413
