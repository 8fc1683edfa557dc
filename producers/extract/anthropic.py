"""Messages of Anthropic, whose input count leaves cached tokens out."""

from collections.abc import Mapping
from typing import Any

from producers.extract.usage import Usage, count, read, usage

PROVIDER = "anthropic"
USAGE_FIELDS = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "cache_creation",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
    "service_tier",
    "speed",
)


def from_message(message: object) -> Usage:
    """A whole message."""
    return from_parts(message, read(message, "usage"))


def from_parts(message: object, found: object) -> Usage:
    """A message, and what was used for it."""
    described = {
        "event_id": read(message, "id"),
        "provider": PROVIDER,
        "model": read(message, "model"),
        "kind": "llm",
        "request_id": read(message, "_request_id"),
        "service_tier": "fast" if read(found, "speed") == "fast" else read(found, "service_tier"),
    }
    return usage(described, None if found is None else _counts(found))


def cumulated(known: Mapping[str, Any], found: object) -> dict[str, Any]:
    """``known`` with the newer figures of a stream, which are cumulative; null says nothing."""
    newer = {name: read(found, name) for name in USAGE_FIELDS}
    return {**known, **{name: value for name, value in newer.items() if value is not None}}


def _counts(found: object) -> dict[str, Any]:
    written = count(found, "cache_creation_input_tokens")
    written_1h = count(found, "cache_creation", "ephemeral_1h_input_tokens")
    written = max(written, written_1h + count(found, "cache_creation", "ephemeral_5m_input_tokens"))
    cached = count(found, "cache_read_input_tokens")
    return {
        "input_tokens": count(found, "input_tokens") + written + cached,
        "cached_input_tokens": cached,
        "cache_write_tokens": written - written_1h,
        "cache_write_1h_tokens": written_1h,
        "output_tokens": count(found, "output_tokens"),
        "reasoning_tokens": count(found, "output_tokens_details", "thinking_tokens"),
        "web_searches": count(found, "server_tool_use", "web_search_requests"),
    }
