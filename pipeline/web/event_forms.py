"""The forms in which events arrive over HTTP, each taken apart into Kafka records.

One object, an array, NDJSON, and CloudEvents structured, batched and binary. What is wrong with
one event is left for the event codec to say, so that the reason is the same through every door;
here only the seams between events are looked for.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

from pipeline.core.rejections import BAD_CLOUDEVENT, MALFORMED_JSON, Rejection
from pipeline.web.problems import Problem

MAX_EVENTS: Final = 1_000
JSON: Final = "application/json"
CLOUDEVENT: Final = "application/cloudevents+json"
CLOUDEVENT_BATCH: Final = "application/cloudevents-batch+json"
NDJSON: Final = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
)
MEDIA_TYPES: Final = (JSON, *NDJSON, CLOUDEVENT, CLOUDEVENT_BATCH)

Headers = list[tuple[str, bytes]]

_WHITESPACE: Final = b" \t\r\n"
_STRUCTURED: Final[Headers] = [("content-type", f"{CLOUDEVENT}; charset=utf-8".encode())]
NO_HEADERS: Final[Headers] = []
_LINE: Final = re.compile(rb"[^ \t\r\n][^\n]*")
"""A line with more than white space, from its first character on."""
_SEAM: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{\]},]', re.DOTALL)
_raw_array: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Submitted(msgspec.Struct, gc=False):
    """One event as it goes to Kafka: the bytes that the client sent, and record headers."""

    value: bytes
    headers: Headers = NO_HEADERS


Found = bytes | Submitted | Rejection
"""What a body holds: bytes are exactly one JSON value, to be sent without headers."""


def media_type(content_type: str | None) -> str:
    """The media type of a ``Content-Type``, JSON where there is none.

    Raises ``Problem`` 415 for one that is not taken, and for a charset other than UTF-8.
    """
    if content_type is None:
        return JSON
    name, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charsets = [p.partition("=")[2].strip('"') for p in parameters if p.startswith("charset=")]
    if name not in MEDIA_TYPES or any(charset not in ("utf-8", "utf8") for charset in charsets):
        raise Problem(
            415,
            f"Content-Type {content_type[:100]!r} is not taken; these are, in UTF-8: "
            + ", ".join(MEDIA_TYPES),
            headers={"Accept-Post": ", ".join(MEDIA_TYPES)},
        )
    return name


def take_apart(body: bytes, name: str, http_headers: Iterable[tuple[str, str]] = ()) -> list[Found]:
    """The events of a body of media type ``name``, in order; a ``Rejection`` stands for what
    cannot be taken apart. Raises ``Problem`` 413 beyond ``MAX_EVENTS``.
    """
    if name in NDJSON:
        if sum(1 for _ in _LINE.finditer(body)) > MAX_EVENTS:
            raise _too_many()
        return [Submitted(line[0].strip(_WHITESPACE)) for line in _LINE.finditer(body)]
    if name == CLOUDEVENT:
        return [Submitted(body, _STRUCTURED)]
    if name == CLOUDEVENT_BATCH:
        return _array(body, _STRUCTURED, Rejection(BAD_CLOUDEVENT, "batch: must be a JSON array"))
    binary = _binary_headers(http_headers)
    if binary:
        return [Submitted(body, binary)]
    if body.lstrip(_WHITESPACE)[:1] == b"[":
        return _array(body, NO_HEADERS, Rejection(MALFORMED_JSON, "body: no JSON array"))
    return [Submitted(body)]


def _array(body: bytes, headers: Headers, otherwise: Rejection) -> list[Found]:
    try:
        elements = _raw_array.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        loose = _split_loosely(body)
        if loose is None:
            return [otherwise]
        return [Submitted(element, headers) for element in loose]
    if len(elements) > MAX_EVENTS:
        raise _too_many()
    values = map(bytes, elements)
    return [Submitted(value, headers) for value in values] if headers else [*values]


def _split_loosely(body: bytes) -> list[bytes] | None:
    """The elements of an array by its brackets and commas alone, so that one broken element does
    not spoil the others; None when the brackets do not match up. Raises ``Problem`` 413."""
    text = body.strip(_WHITESPACE)
    if text[:1] != b"[" or text[-1:] != b"]":
        return None
    elements: list[bytes] = []
    depth, start = 0, 1
    for match in _SEAM.finditer(text):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
        elif token == b"," and depth == 1:
            elements.append(text[start : match.start()].strip(_WHITESPACE))
            start = match.end()
            if len(elements) >= MAX_EVENTS:  # and one more follows
                raise _too_many()
        elif token in (b"]", b"}"):
            depth -= 1
            if depth == 0 and match.end() < len(text):
                return None
    if depth != 0:
        return None
    return [*elements, text[start:-1].strip(_WHITESPACE)]


def _too_many() -> Problem:
    return Problem(413, f"more than {MAX_EVENTS:,} events in one request")


def _binary_headers(http_headers: Iterable[tuple[str, str]]) -> Headers:
    """CloudEvents' binary mode: ``ce-`` headers over HTTP are ``ce_`` headers on Kafka."""
    found = [
        (f"ce_{name[3:]}", unquote_to_bytes(value))
        for name, value in http_headers
        if name.startswith("ce-")
    ]
    return [("content-type", JSON.encode()), *found] if found else NO_HEADERS
