"""OpenTelemetry spans of AI calls as events (semantic conventions for generative AI).

Pure: a span in, an event's JSON object out, or nothing where the span reports no usage of its own.
Values go into the event as the span has them, so that a counter that is a string is refused by
the event's own rules and not turned into a number here.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from pipeline.core.event_fields import FIELDS

_USAGE: Final = "gen_ai.usage."
_OWN: Final = "tallyport."
# They report what their children report as well.
_REPEATING: Final = ("invoke_agent", "execute_tool", "invoke_workflow")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NO_ID: Final = frozenset("0")
_LAST_NS: Final = 253_402_300_799_999_999_999  # the year 9999

# By field of an event, the attributes it is taken from; the first that is there counts. The
# older names are those of instrumentations that are still in use.
_ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "provider": ("gen_ai.provider.name", "gen_ai.system"),
    "model": ("gen_ai.response.model", "gen_ai.request.model"),
    "input_tokens": ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"),
    "output_tokens": ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"),
    "cached_input_tokens": (
        "gen_ai.usage.cache_read.input_tokens",
        "gen_ai.usage.cache_read_input_tokens",
    ),
    "cache_write_tokens": (
        "gen_ai.usage.cache_creation.input_tokens",
        "gen_ai.usage.cache_write.input_tokens",
        "gen_ai.usage.cache_creation_input_tokens",
    ),
    "reasoning_tokens": ("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
    "user_id": ("user.id", "enduser.id"),
    "session_id": ("gen_ai.conversation.id", "session.id"),
    "request_id": ("gen_ai.response.id",),
    "endpoint": ("gen_ai.operation.name",),
    "service_tier": (
        "openai.response.service_tier",
        "gen_ai.openai.response.service_tier",
        "openai.request.service_tier",
        "gen_ai.openai.request.service_tier",
    ),
}
_KIND_OF_OPERATION: Final = {"embeddings": "embedding"}
_KIND_OF_OUTPUT: Final = {"image": "image", "speech": "tts"}


class Span(msgspec.Struct, frozen=True):
    """What is read of a span. Ids are lower-case hex, ``end_ns`` nanoseconds since 1970 UTC.

    Values of attributes are strings, booleans, integers, floats, lists, objects or bytes.
    """

    trace_id: str
    span_id: str
    end_ns: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]

    @property
    def name(self) -> str:
        """How the span is called in messages, and its event's id."""
        return f"{self.trace_id}-{self.span_id}"


def reports_usage(span: Span) -> bool:
    """Whether the span says what a call used, and its children do not say it as well."""
    if span.attributes.get("gen_ai.operation.name") in _REPEATING:
        return False
    return any(name.startswith(_USAGE) for name in span.attributes)


def event_of(span: Span, only_port: str | None) -> bytes:
    """The event as JSON. It need not be valid.

    ``port_id`` is the attribute ``tallyport.port_id``, else ``only_port``, else the service's
    name. Any ``tallyport.FIELD`` of the span, else of its resource, is that field of the event.
    """
    fields: dict[str, Any] = {}
    for field, names in _ATTRIBUTES.items():
        for name in names:
            if name in span.attributes:
                fields[field] = _plain(span.attributes[name])
                break
    fields["kind"] = _kind(span)
    service = span.resource.get("service.name")
    if service is not None:
        fields["service"] = _plain(service)
    port_id = only_port or service
    if port_id is not None:
        fields["port_id"] = _plain(port_id)
    for attributes in (span.resource, span.attributes):
        for name, value in attributes.items():
            if name.startswith(_OWN) and name.removeprefix(_OWN) in FIELDS:
                fields[name.removeprefix(_OWN)] = _plain(value)
    if not (_is_no_id(span.trace_id) or _is_no_id(span.span_id)):
        fields["event_id"] = span.name
    if 0 < span.end_ns <= _LAST_NS:
        fields["occurred_at"] = _rfc3339(span.end_ns)
    return msgspec.json.encode(fields)


def _kind(span: Span) -> str:
    operation = span.attributes.get("gen_ai.operation.name")
    kind = _KIND_OF_OPERATION.get(operation) if isinstance(operation, str) else None
    output = span.attributes.get("gen_ai.output.type")
    return kind or (_KIND_OF_OUTPUT.get(output) if isinstance(output, str) else None) or "llm"


def _plain(value: Any) -> Any:
    """``value`` as JSON can say it, and never as something that it is not."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def _is_no_id(text: str) -> bool:
    return not set(text) - _NO_ID


def _rfc3339(at_ns: int) -> str:
    moment = _EPOCH + timedelta(microseconds=at_ns // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
