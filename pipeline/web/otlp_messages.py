"""OTLP's trace messages over HTTP, in both encodings: requests to spans, results to answers.

Pure. In JSON (the protocol's own mapping, not protobuf's) ids are hex and 64-bit integers may be
strings; unknown fields are left alone in both.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from pipeline.web.spans import Span

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
INVALID_ARGUMENT: Final = 3
MAX_MESSAGE_LENGTH: Final = 2_000
MAX_SPANS: Final = 10_000


class MalformedOtlp(ValueError):
    """The body is no OTLP request; the message says why."""


class TooManySpans(Exception):
    """The request has more than ``MAX_SPANS``."""

    def __init__(self) -> None:
        super().__init__(f"more than {MAX_SPANS:,} spans in one request")


def read_spans(body: bytes, media_type: str) -> list[Span]:
    """Every span of an export request. Raises ``MalformedOtlp`` and ``TooManySpans``."""
    return _from_protobuf(body) if media_type == PROTOBUF else _from_json(body)


def write_result(media_type: str, rejected: int, message: str) -> bytes:
    """The answer to a request that was taken; ``rejected`` spans were not, ``message`` says why."""
    message = message[:MAX_MESSAGE_LENGTH]
    if media_type == PROTOBUF:
        answer = ExportTraceServiceResponse()
        if rejected or message:
            partial = ExportTracePartialSuccess(rejected_spans=rejected, error_message=message)
            answer.partial_success.CopyFrom(partial)
        return answer.SerializeToString()
    if not rejected and not message:
        return b"{}"
    partial = {"rejectedSpans": str(rejected), "errorMessage": message}
    return msgspec.json.encode({"partialSuccess": partial})


def write_status(code: int, message: str) -> bytes:
    """A ``google.rpc.Status`` in protobuf: field 1 is the code, field 2 the message."""
    text = message[:MAX_MESSAGE_LENGTH].encode("utf-8", "replace")
    return b"\x08" + _varint(code) + b"\x12" + _varint(len(text)) + text


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


# -- protobuf ----------------------------------------------------------------------------------


def _from_protobuf(body: bytes) -> list[Span]:
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except (DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedOtlp(f"no ExportTraceServiceRequest: {error}") from None
    scopes = (scope for group in request.resource_spans for scope in group.scope_spans)
    if sum(len(scope.spans) for scope in scopes) > MAX_SPANS:
        raise TooManySpans
    return [
        Span(
            span.trace_id.hex(),
            span.span_id.hex(),
            span.end_time_unix_nano,
            _values(span.attributes),
            resource,
        )
        for group in request.resource_spans
        for resource in (_values(group.resource.attributes),)
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(value, kind)
    if not isinstance(found, Message):
        return found
    # A list or an object is the value of no field that is read here but tags.
    if kind == "kvlist_value":
        return {one.key: _value(one.value) for one in value.kvlist_value.values}
    return [_value(one) for one in value.array_value.values]


# -- JSON --------------------------------------------------------------------------------------

_Integer = int | str


class _AnyValue(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Integer | None = None
    double_value: float | str | None = None
    array_value: dict[str, Any] | None = None
    kvlist_value: "_KeyValues | None" = None
    bytes_value: str | None = None


class _KeyValue(msgspec.Struct):
    key: str = ""
    value: _AnyValue | None = None


class _KeyValues(msgspec.Struct):
    values: list[_KeyValue] = []


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    end_time_unix_nano: _Integer = 0
    attributes: list[_KeyValue] | None = None


class _Resource(msgspec.Struct):
    attributes: list[_KeyValue] | None = None


class _ScopeSpans(msgspec.Struct):
    spans: list[_Span] | None = None


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


_decoder: Final = msgspec.json.Decoder(_Request)


def _from_json(body: bytes) -> list[Span]:
    try:
        return [*_json_spans(_decoder.decode(body))]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MalformedOtlp(f"no ExportTraceServiceRequest: {error}") from None


def _json_spans(request: _Request) -> Iterator[Span]:
    found = 0
    for group in request.resource_spans or ():
        resource = _json_values(group.resource.attributes if group.resource else None)
        for scope in group.scope_spans or ():
            found += len(scope.spans or ())
            if found > MAX_SPANS:
                raise TooManySpans
            for span in scope.spans or ():
                yield Span(
                    span.trace_id.lower(),
                    span.span_id.lower(),
                    _integer(span.end_time_unix_nano),
                    _json_values(span.attributes),
                    resource,
                )


def _json_values(attributes: list[_KeyValue] | None) -> dict[str, Any]:
    return {one.key: _json_value(one.value) for one in attributes or ()}


def _json_value(value: _AnyValue | None) -> Any:
    if value is None:
        return None
    if value.int_value is not None:
        return _integer(value.int_value)
    if value.kvlist_value is not None:
        return _json_values(value.kvlist_value.values)
    if isinstance(value.double_value, str):
        return float(value.double_value)
    given = (value.string_value, value.bool_value, value.double_value, value.bytes_value)
    return next((one for one in given if one is not None), value.array_value)


def _integer(text: _Integer) -> int:
    if isinstance(text, int):
        return text
    if len(text) > 20:
        raise ValueError("an integer has more than 64 bits")
    return int(text)
