"""JSON read strictly: what RFC 8259 allows, in plain Python values, within bounds."""

import json
import re
from typing import Any, Final, NoReturn

MAX_DEPTH: Final = 256
# Longer integers are out of any range; keeping their head keeps the sign and the order.
_MAX_INTEGER_TEXT: Final = 64

_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<lone>u[dD][89a-fA-F]..)|.)", re.DOTALL
)
_BRACKET_OR_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class MalformedJsonError(ValueError):
    """The bytes are not JSON; the message says where or why."""


def parse_json(value: bytes) -> Any:
    """The value of a JSON text in UTF-8. Of equal keys the last one counts.

    Raises ``MalformedJsonError`` for anything else, also for NaN and Infinity, a byte order mark, a
    lone surrogate, and nesting deeper than ``MAX_DEPTH``.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise MalformedJsonError(f"invalid UTF-8 at byte {error.start}") from error
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(text)
    try:
        parsed = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise MalformedJsonError(f"{error.msg} at character {error.pos}") from error
    if "\\u" in text:
        _check_surrogates(text)
    return parsed


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        token = match.group()
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise MalformedJsonError(f"nested deeper than {MAX_DEPTH}")
        elif token in "]}":
            depth -= 1


def _check_surrogates(text: str) -> None:
    for match in _ESCAPE.finditer(text):
        if match["lone"] is not None:
            raise MalformedJsonError(f"lone surrogate at character {match.start()}")


def _integer(text: str) -> int:
    return int(text[:_MAX_INTEGER_TEXT])


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJsonError(f"{name} is no JSON number")


_DECODER: Final = json.JSONDecoder(parse_int=_integer, parse_constant=_refuse_constant)
