"""CloudEvents 1.0 on Kafka: the envelope around an event, in structured or binary mode."""

import base64
import binascii
from collections.abc import Sequence
from typing import Final

import msgspec

from pipeline.core.json_text import MalformedJsonError, parse_json
from pipeline.core.rejections import BAD_CLOUDEVENT, Rejection

SPEC_VERSION: Final = "1.0"
_CONTENT_TYPE: Final = "content-type"
_STRUCTURED: Final = "application/cloudevents"
_BATCH: Final = "application/cloudevents-batch"
_HEADER_PREFIX: Final = "ce_"

Headers = Sequence[tuple[str, bytes | None]]


class Attributes(msgspec.Struct, frozen=True):
    """The context attributes that can stand in for fields of the event."""

    id: str | None = None
    time: str | None = None
    subject: str | None = None


_PREPARED = msgspec.json.Decoder(Attributes)  # at import, for the reason given in `book`


class Envelope(msgspec.Struct, frozen=True):
    """``data`` is the parsed payload; ``raw_data`` its bytes where they came as base64."""

    attributes: Attributes
    data: object = None
    raw_data: bytes | None = None


def is_cloudevent(headers: Headers) -> bool:
    """Whether the headers announce a CloudEvent, in whatever mode."""
    for name, value in headers:
        lowered = name.lower()
        if lowered.startswith(_HEADER_PREFIX):
            return True
        if lowered == _CONTENT_TYPE and _media_type(value).startswith(_STRUCTURED):
            return True
    return False


def content_type(headers: Headers) -> str:
    """The last ``content-type`` header in lower case, or ``""``."""
    found = ""
    for name, value in headers:
        if name.lower() == _CONTENT_TYPE:
            found = _media_type(value)
    return found


def is_structured(content_type: str) -> bool:
    """Whether the record value is an envelope (or a batch of them)."""
    return content_type.startswith(_STRUCTURED)


def open_envelope(value: bytes | None, content_type: str) -> Envelope | Rejection:
    """The structured-mode envelope in ``value``, or why it cannot be read."""
    if content_type.startswith(_BATCH):
        return _bad("content-type: a batch is not taken on Kafka, send one event per record")
    if value is None:
        return _bad("value: null, an envelope is required in structured mode")
    try:
        envelope = parse_json(value)
    except MalformedJsonError as error:
        return _bad(f"envelope: {error}")
    if not isinstance(envelope, dict):
        return _bad("envelope: must be a JSON object")
    return _read_envelope(envelope)


def read_attributes(headers: Headers) -> Attributes | Rejection:
    """The attributes of binary mode; without ``ce_`` headers they are all absent."""
    attributes: dict[str, str] = {}
    for name, value in headers:
        lowered = name.lower()
        if not lowered.startswith(_HEADER_PREFIX) or value is None:
            continue
        try:
            attributes[lowered.removeprefix(_HEADER_PREFIX)] = value.decode()
        except UnicodeDecodeError:
            shown = lowered.encode(errors="backslashreplace").decode()
            return _bad(f"{shown}: must be UTF-8")
    if attributes.get("specversion", SPEC_VERSION) != SPEC_VERSION:
        return _bad(f'ce_specversion: must be "{SPEC_VERSION}"')
    return Attributes(attributes.get("id"), attributes.get("time"), attributes.get("subject"))


def _read_envelope(envelope: dict[str, object]) -> Envelope | Rejection:
    if envelope.get("specversion") != SPEC_VERSION:
        return _bad(f'specversion: must be "{SPEC_VERSION}"')
    for name in ("id", "time", "subject"):
        if not isinstance(envelope.get(name), str | None):
            return _bad(f"{name}: must be a string")
    attributes = msgspec.convert(envelope, Attributes)
    encoded = envelope.get("data_base64")
    if encoded is None:
        return Envelope(attributes, data=envelope.get("data"))
    if envelope.get("data") is not None:
        return _bad("data_base64: excludes data")
    if not isinstance(encoded, str):
        return _bad("data_base64: must be a string")
    try:
        return Envelope(attributes, raw_data=base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return _bad("data_base64: must be base64")


def _media_type(value: bytes | None) -> str:
    return (value or b"").decode("latin-1").strip().lower()


def _bad(detail: str) -> Rejection:
    return Rejection(BAD_CLOUDEVENT, detail)
