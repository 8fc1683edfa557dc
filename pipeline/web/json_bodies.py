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
    found = _PATH.search(text)
    field = found[1] if found else ""
    rule = _PATH.sub("", text)
    detail = f"{field}: {rule}" if field else rule
    return Problem(400, detail, extra={"field": field} if field else {})


def as_object(body: Any) -> dict[str, Any]:
    """``body``, which must be a JSON object. Raises ``Problem`` 400."""
    if not isinstance(body, dict):
        raise Problem(400, "the body must be a JSON object")
    return body
