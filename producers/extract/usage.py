"""The result of an extraction, and how fields of objects and dicts are read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.core.event_fields import INPUT_PARTS, MAX_ID_CHARS, OUTPUT_PARTS

# What gives way first when a provider counts a token in two parts of one whole.
_GIVES_WAY = ("input_audio_tokens", "input_image_tokens", "output_audio_tokens")


class Usage(NamedTuple):
    """Event fields; ``is_counted`` tells whether the response said how much was used."""

    fields: dict[str, Any]
    is_counted: bool


def read(source: object, *names: str) -> Any:
    """The value at a path of attributes or keys; None where anything on the way is missing."""
    for name in names:
        if source is None:
            return None
        source = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
    return source


def count(source: object, *names: str) -> int:
    """The count at a path, 0 where there is none."""
    value = read(source, *names)
    return value if type(value) is int else 0


def usage(described: Mapping[str, Any], counted: Mapping[str, Any] | None) -> Usage:
    """Fields without those that are None or 0; ``counted`` None when nothing was said."""
    fields = {name: value for name, value in described.items() if value not in (None, "")}
    event_id = fields.get("event_id")
    if not isinstance(event_id, str) or len(event_id) > MAX_ID_CHARS:
        fields.pop("event_id", None)
    if counted is None:
        return Usage(fields, False)
    counts = {name: value for name, value in counted.items() if value}
    if not _fit(counts):
        counts["estimated"] = True
    return Usage(fields | counts, True)


def _fit(counts: dict[str, Any]) -> bool:
    """Makes parts add up to no more than their whole; False when more than an overlap was cut.

    A token counted as cached and as audio is one token; the contract counts it as cached.
    """
    is_sound = True
    for whole, parts in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        excess = sum(counts.get(part, 0) for part in parts) - counts.get(whole, 0)
        for part in sorted(parts, key=lambda name: name not in _GIVES_WAY):
            if excess <= 0:
                break
            cut = min(excess, counts.get(part, 0))
            if cut:
                is_sound = is_sound and part in _GIVES_WAY
                counts[part] -= cut
                excess -= cut
    return is_sound
