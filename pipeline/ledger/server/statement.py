"""Splits what a client sent into the statement and the data of an INSERT."""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from pipeline.ledger.server.errors import QUERY_IS_TOO_LARGE, SYNTAX_ERROR, QueryError

MAX_STATEMENT_BYTES: Final = 1 << 20
MAX_READ_BYTES: Final = 1 << 18
"""A reader's statement: ClickHouse's own default of ``max_query_size``."""

_TOKEN = re.compile(
    rb"""(?P<space>[\s\x00]+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)
    |(?P<quoted>'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    |(?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<open>/\*|['"`]|\$\w*\$)
    |(?P<word>\w+)
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
_BEFORE_DATA = re.compile(rb"[ \t\f]*;?[ \t\f]*\r?\n?")
# The words that come before a table's name, which may itself be called "format" or "values".
_NAME_FOLLOWS: Final = frozenset({b"INTO", b"TABLE", b"FUNCTION", b"."})


@dataclass(frozen=True, slots=True)
class Statement:
    """``text`` is SQL; an INSERT with data has the data's ``insert_format`` and ``data``.

    Its ``settings`` are apart, too: the clause with its keyword, empty where there is none.
    """

    text: str
    insert_format: str | None = None
    data: bytes = b""
    settings: str = ""


def _decode(text: bytes) -> str:
    if len(text) > MAX_STATEMENT_BYTES:
        raise QueryError(
            QUERY_IS_TOO_LARGE, f"The statement is longer than {MAX_STATEMENT_BYTES} bytes."
        )
    if b"\0" in text:
        raise QueryError(SYNTAX_ERROR, "Syntax error: the statement contains a NUL byte.")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise QueryError(
            SYNTAX_ERROR, f"Syntax error: the statement is not UTF-8 (byte {error.start})."
        ) from None


class _Insert(NamedTuple):
    """Where the parts of an INSERT with data stand; ``settings_at`` is ``end`` without any."""

    settings_at: int
    end: int
    format: str
    data_at: int


def _insert_with_data(sent: bytes) -> _Insert | None:
    position, depth, before, first, settings_at = 0, 0, b"", True, -1
    while position < min(len(sent), MAX_STATEMENT_BYTES):
        token = _TOKEN.match(sent, position)
        if token is None or token["open"] is not None:
            return None
        start, position = position, token.end()
        if token["space"] is not None:
            continue
        symbol = token.group().upper()
        if first and symbol != b"INSERT":
            return None
        first = False
        depth += {b"(": 1, b")": -1}.get(symbol, 0)
        if depth == 0 and token["word"] is not None and before not in _NAME_FOLLOWS:
            if symbol in (b"SELECT", b"WITH", b"FROM", b"EXPLAIN"):
                return None
            if symbol == b"SETTINGS" and settings_at < 0:
                settings_at = start
            if symbol in (b"VALUES", b"FORMAT"):
                named = ("Values", position)
                if symbol == b"FORMAT":
                    named = _next_word(sent, position)
                begin = start if settings_at < 0 else settings_at
                return None if named is None else _Insert(begin, start, *named)
        before = symbol
    return None


def _next_word(sent: bytes, position: int) -> tuple[str, int] | None:
    while (token := _TOKEN.match(sent, position)) is not None:
        position = token.end()
        if token["word"] is not None:
            return token.group().decode("ascii", "replace"), position
        if token["space"] is None:
            return None
    return None


def split(sent: bytes) -> Statement:
    """The statement in ``sent``, with an INSERT's data apart from its text.

    Raises:
        QueryError: the text is too long or is not UTF-8.
    """
    found = _insert_with_data(sent)
    if found is None:
        return Statement(_decode(sent))
    data_at = found.data_at
    if found.format != "Values":
        skipped = _BEFORE_DATA.match(sent, data_at)
        data_at = skipped.end() if skipped is not None else data_at
    return Statement(
        _decode(sent[: found.settings_at]),
        found.format,
        sent[data_at:],
        _decode(sent[found.settings_at : found.end]),
    )
