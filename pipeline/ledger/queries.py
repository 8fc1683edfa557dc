"""The named queries of ``queries.sql``."""

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class NamedQuery:
    """A query and what it answers, in one line of prose."""

    name: str
    description: str
    sql: str


@cache
def named_queries() -> dict[str, NamedQuery]:
    """Every query by its name, without comments and the closing semicolon."""
    text = resources.files("pipeline.ledger").joinpath("queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return {name: _query(name, body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def named_query(name: str, **filled_in: str) -> str:
    """The SQL called ``name`` with ``[brackets]`` filled in from ``filled_in``.

    Only text of our own may be filled in; values are bound. Raises ``KeyError`` for what is
    missing: a mistake in the code that asks.
    """
    return re.sub(r"\[([a-z_]+)\]", lambda found: filled_in[found[1]], named_queries()[name].sql)


def _query(name: str, body: str) -> NamedQuery:
    lines = body.strip().splitlines()
    comments = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
    sql = "\n".join(line for line in lines if not line.startswith("--"))
    return NamedQuery(name, " ".join(comments), sql.strip().removesuffix(";"))
