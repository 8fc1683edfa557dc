"""Puts an event together: what the context says, what the response says, what the caller says."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.core.event_fields import COUNTERS
from producers.extract import StreamUsage, Usage, usage_of

# Here the response knows better than what was meant when the call began; for the rest the caller
# does: many servers speak in OpenAI's shapes, so the shape does not tell the provider.
_FROM_RESPONSE = ("event_id", "model", "service_tier", "request_id")
_AMOUNTS = frozenset((*COUNTERS, "audio_seconds"))


class Composed(NamedTuple):
    """The fields of an event. ``is_estimated`` where nobody said what was used, ``is_unknown``
    where the response has no known shape."""

    fields: dict[str, Any]
    is_estimated: bool = False
    is_unknown: bool = False


def compose(
    defaults: Mapping[str, Any],
    response: object,
    fields: Mapping[str, Any],
    estimated_tokens: int = 0,
) -> Composed:
    """The event of a call that began with ``defaults`` and ended with ``response``.

    ``response`` is a provider's answer, the list of a stream's chunks, a ``StreamUsage``, or None
    where ``fields`` say it all. Where it does not tell what was used, and ``fields`` do not
    either, the estimate stands in as output tokens, and the event says that it is estimated.
    """
    if response is None:
        return Composed({**defaults, **fields})
    found = _usage(response)
    extracted = {} if found is None else found.fields
    merged = {**extracted, **defaults}
    merged |= {name: extracted[name] for name in _FROM_RESPONSE if name in extracted}
    merged |= fields
    said = found is not None and found.is_counted
    if not said and not _AMOUNTS.isdisjoint(fields):
        return Composed(merged)
    if not said:
        merged["output_tokens"] = estimated_tokens
    if not said or extracted.get("estimated"):
        merged["estimated"] = True
    return Composed(merged, bool(merged.get("estimated")), found is None)


def _usage(response: object) -> Usage | None:
    if isinstance(response, list | tuple):
        stream = StreamUsage()
        for chunk in response:
            stream.feed(chunk)
        response = stream
    if not isinstance(response, StreamUsage):
        return usage_of(response)
    if response.usage is None or response.is_complete:
        return response.usage
    # Cut off: what was said so far is not all that was used.
    return Usage({**response.usage.fields, "estimated": True}, response.usage.is_counted)
