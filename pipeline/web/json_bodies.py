"""JSON in and out: request bodies of a known shape, and answers."""

import re
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pipeline.web.bodies import read_body
from pipeline.web.problems import Problem

MAX_JSON_BYTES = 256 * 1024

T = TypeVar("T")

_PATH = re.compile(r" - at `\$\.?(.*)`$")
_OF_THE_OBJECT = re.compile(
    r"Object (?:contains (?P<unknown>unknown)|missing required) field `(?P<name>.*)`"
)
_TYPE = re.compile(r"Expected `(?P<type>\w+)(?: \| null)?`(?:, got `.*`)?(?P<bound>.*)")
_LENGTH = re.compile(r" of length (?P<sign>[<>]=) (?P<most>\d+)")
_BOUND = re.compile(r" (?P<sign>[<>]=) (?P<most>-?\d+)")
_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_SIGNS = {"<=": "at most", ">=": "at least"}
_PARTS = {"str": "characters", "array": "entries"}


def json_answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """``body`` as JSON."""
    return Response(msgspec.json.encode(body), status, headers, "application/json")


async def read_json(request: Request, shape: type[T], most_bytes: int = MAX_JSON_BYTES) -> T:
    """The body as a ``shape``.

    Raises ``Problem``: 415 unless it is JSON by its ``Content-Type`` (a missing one counts as
    JSON), 400 for what is no JSON or breaks a rule, naming the field.
    """
    content_type = request.headers.get("content-type", "application/json")
    name = content_type.partition(";")[0].strip().lower()
    if name not in ("application/json", "application/merge-patch+json"):
        raise Problem(
            415,
            f"Content-Type {content_type[:100]!r} is not taken; send application/json",
            headers={"Accept": "application/json"},
        )
    body = await read_body(request, most_bytes)
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        raise _broken_rule(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is no JSON: {error}") from None


def _broken_rule(text: str) -> Problem:
    """msgspec's message in the words of the other routes."""
    found = _PATH.search(text)
    field = found[1] if found else ""
    rule = _PATH.sub("", text)
    if of_object := _OF_THE_OBJECT.fullmatch(rule):
        field = f"{field}.{of_object['name']}" if field else of_object["name"]
        rule = "is an unknown field" if of_object["unknown"] else "is missing"
    elif of_type := _TYPE.fullmatch(rule):
        rule = _rule(of_type["type"], of_type["bound"]) or rule
    detail = f"{field}: {rule}" if field else f"the body {rule}"
    return Problem(400, detail, extra={"field": field} if field else {})


def _rule(type_: str, bound: str) -> str | None:
    """What a value must be; None where msgspec says it in a way that is not known here."""
    if length := _LENGTH.fullmatch(bound):
        return f"must have {_SIGNS[length['sign']]} {length['most']} {_PARTS.get(type_, 'parts')}"
    if limit := _BOUND.fullmatch(bound):
        return f"must be {_SIGNS[limit['sign']]} {limit['most']}"
    return None if bound or type_ not in _TYPES else f"must be {_TYPES[type_]}"


def as_object(body: Any) -> dict[str, Any]:
    """``body``, which must be a JSON object. Raises ``Problem`` 400."""
    if not isinstance(body, dict):
        raise Problem(400, "the body must be a JSON object")
    return body
