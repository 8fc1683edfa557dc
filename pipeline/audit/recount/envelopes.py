"""What an event's fields stand in: plain JSON, or a CloudEvent in structured or binary mode."""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

Headers = Sequence[tuple[str, bytes | None]]

_MAX_BYTES = 65_536
_MAX_DEPTH = 256
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_ATTRIBUTES: Mapping[str, str | None] = {"id": None, "time": None, "subject": None}


class Unreadable(Exception):
    """The event is rejected; ``reason`` is one of the contract's words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_fields(value: bytes | None, headers: Headers) -> dict[str, Any]:
    """The fields of a record, those of its envelope filled in; raises ``Unreadable``."""
    if value is not None and len(value) > _MAX_BYTES:
        raise Unreadable("too-large")
    if not headers:
        return _filled(_parse(value), _NO_ATTRIBUTES)
    named = {name.lower(): content for name, content in headers}
    media_type = (named.get("content-type") or b"").decode("latin-1").strip().lower()
    if media_type.startswith("application/cloudevents"):
        return _structured(value, media_type)
    attributes = _binary_attributes(named)
    return _filled(_parse(value), attributes)


def _structured(value: bytes | None, media_type: str) -> dict[str, Any]:
    if media_type.startswith("application/cloudevents-batch"):
        raise Unreadable("bad-cloudevent")
    try:
        envelope = _parse(value)
    except Unreadable:
        raise Unreadable("bad-cloudevent") from None
    if not isinstance(envelope, dict):
        raise Unreadable("bad-cloudevent")
    outer = cast("dict[str, Any]", envelope)
    attributes = {name: outer.get(name) for name in ("id", "time", "subject")}
    if outer.get("specversion") != "1.0" or not all(
        isinstance(text, str | None) for text in attributes.values()
    ):
        raise Unreadable("bad-cloudevent")
    packed = outer.get("data_base64")
    if packed is None:
        return _filled(outer.get("data"), attributes)
    if outer.get("data") is not None or not isinstance(packed, str):
        raise Unreadable("bad-cloudevent")
    try:
        inner = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("bad-cloudevent") from None
    return _filled(_parse(inner), attributes)


def _binary_attributes(named: Mapping[str, bytes | None]) -> dict[str, str | None]:
    try:
        attributes = {
            name[3:]: content.decode()
            for name, content in named.items()
            if name.startswith("ce_") and content is not None
        }
    except UnicodeDecodeError:
        raise Unreadable("bad-cloudevent") from None
    if attributes.get("specversion", "1.0") != "1.0":
        raise Unreadable("bad-cloudevent")
    return {name: attributes.get(name) for name in ("id", "time", "subject")}


def _filled(body: object, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Unreadable("not-an-object")
    fields = cast("dict[str, Any]", body)
    for name, attribute in (("event_id", "id"), ("occurred_at", "time"), ("port_id", "subject")):
        if attributes[attribute] is not None and fields.get(name) is None:
            fields[name] = attributes[attribute]
    return fields


def _parse(value: bytes | None) -> object:
    """A JSON text in UTF-8, no deeper than 256, without NaN and lone surrogates."""
    if value is None:
        raise Unreadable("malformed-json")
    try:
        parsed = _decode(value.decode())
    except (ValueError, RecursionError):
        raise Unreadable("malformed-json") from None
    suspect = b"\\u" in value or value.count(b"[") + value.count(b"{") > _MAX_DEPTH
    if suspect and not _is_sound(parsed):
        raise Unreadable("malformed-json")
    return parsed


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of equal keys the last counts, but the text must be sound in all of them.
    fields = dict(pairs)
    if len(fields) < len(pairs) and not _is_sound([list(p) for p in pairs]):
        raise ValueError("lone surrogate")
    return fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


_decoder = json.JSONDecoder(
    parse_constant=_refuse,
    parse_int=lambda digits: int(digits[:64]),
    object_pairs_hook=_pairs,
)


def _decode(text: str) -> object:
    if text.startswith("\ufeff"):
        raise ValueError("a byte order mark")
    return _decoder.decode(text)


def _is_sound(value: object) -> bool:
    """No string with a lone surrogate, no nesting beyond the bound."""
    level, depth = [value], 0
    while level:
        deeper: list[object] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and _SURROGATE.search(item):
                    return False
            elif isinstance(item, dict):
                fields = cast("dict[str, object]", item)
                deeper.extend((*fields, *fields.values()))
            elif isinstance(item, list):
                deeper.extend(cast("list[object]", item))
        depth += any(isinstance(item, dict | list) for item in level)
        level = deeper
    return depth <= _MAX_DEPTH
