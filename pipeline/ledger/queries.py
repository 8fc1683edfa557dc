"""The named queries of ``queries.sql``."""

import re
from functools import cache
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def named_queries() -> dict[str, str]:
    """Every query by its name, without comments and the closing semicolon."""
    text = resources.files("pipeline.ledger").joinpath("queries.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)[1:]
    return {name: _statement(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def named_query(name: str) -> str:
    """The query called ``name``; a ``KeyError`` is a mistake in the code that asks."""
    return named_queries()[name]


def _statement(body: str) -> str:
    lines = [line for line in body.splitlines() if not line.startswith("--")]
    return "\n".join(lines).strip().removesuffix(";")
