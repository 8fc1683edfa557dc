"""Splits what a client sent into the statement and the data of an INSERT."""

import re
from dataclasses import dataclass
from typing import Final

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
    """``text`` is SQL; an INSERT with data has the data's ``insert_format`` and ``data``."""

    text: str
    insert_format: str | None = None
    data: bytes = b""


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


def _insert_data_at(sent: bytes) -> tuple[int, str, int] | None:
    """(end of the statement, format, start of the data) of an INSERT that carries data."""
    position, depth, before, first = 0, 0, b"", True
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
            if symbol == b"VALUES":
                return start, "Values", position
            if symbol == b"FORMAT":
                name = _next_word(sent, position)
                return (start, *name) if name is not None else None
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
    found = _insert_data_at(sent)
    if found is None:
        return Statement(_decode(sent))
    end, name, data_start = found
    if name != "Values":
        skipped = _BEFORE_DATA.match(sent, data_start)
        data_start = skipped.end() if skipped is not None else data_start
    return Statement(_decode(sent[:end]), name, sent[data_start:])
