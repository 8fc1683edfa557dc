"""What was used: the ledger's sums by any of its dimensions, and who used most."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.ledger.filters import (
    DIMENSIONS,
    TIMES,
    UsageFilters,
    asked,
    dimension,
    rows,
    split_by,
)
from pipeline.ledger.queries import named_query

USAGE_COLUMNS = (
    "currency", "requests", "input_tokens", "cached_input_tokens", "output_tokens",
    "total_tokens", "characters", "images", "audio_seconds", "cost_nano", "cost",
    "unpriced_requests", "estimated_requests",
)  # fmt: skip
"""What ``usage_report`` says of each combination of dimensions, in order."""

LIMIT_DEFAULT = 10_000


def usage_report(
    client: Client,
    filters: UsageFilters,
    by: Sequence[str] = (),
    limit: int = LIMIT_DEFAULT,
    offset: int = 0,
) -> list[dict[str, Any]]:
    """One row for each combination of ``by``, times first to last, then the dearest first.

    A row has the dimensions, ``currency``, ``requests``, the token counts, ``characters``,
    ``images``, ``audio_seconds`` (Decimal), ``cost_nano`` (int) and ``cost`` (Decimal), both None
    when nothing in the row has a price, ``unpriced_requests`` and ``estimated_requests``.
    """
    names = list(dict.fromkeys(dimension(name) for name in by))
    found = asked(filters, names)
    order = [name for name in names if name in TIMES]
    order += ["cost_nano DESC NULLS LAST", "total_tokens DESC"]
    order += [name for name in names if name not in TIMES]
    sql = named_query(
        "usage",
        source=found.source,
        where=found.where,
        order=", ".join([*order, "currency"]),
        **split_by(names),
    )
    return rows(client, sql, {**found.parameters, "limit": limit, "offset": offset})


def top(client: Client, by: str, filters: UsageFilters, limit: int = 10) -> list[dict[str, Any]]:
    """The dearest of dimension ``by`` (port, user, model, …); entries without one do not count."""
    name = dimension(by)
    found = asked(filters, [name])
    sql = named_query(
        "top",
        source=found.source,
        where=found.where,
        by_value=f"toString({DIMENSIONS[name]})",
        **split_by([name]),
    )
    return rows(client, sql, {**found.parameters, "limit": limit})


def unpriced_events(
    client: Client, filters: UsageFilters, limit: int = 100
) -> list[dict[str, Any]]:
    """Events that still have no price, newest first."""
    found = asked(filters, entries=True)
    sql = named_query("unpriced_events", where=found.where)
    return rows(client, sql, {**found.parameters, "limit": limit})


def unpriced_models(
    client: Client, filters: UsageFilters, limit: int = 100
) -> list[dict[str, Any]]:
    """Providers and models without a rate, the most used first."""
    found = asked(filters, ["provider", "model"])
    sql = named_query("unpriced_models", source=found.source, where=found.where)
    return rows(client, sql, {**found.parameters, "limit": limit})


def ledger_totals(client: Client) -> list[dict[str, Any]]:
    """One row for each currency over the whole ledger: entries, requests, tokens, cost, days."""
    return rows(client, named_query("totals"), {})


def as_of(client: Client) -> datetime | None:
    """When the ledger last took something in; None while it is empty."""
    at: datetime = rows(client, named_query("as_of"), {})[0]["as_of"]
    return at if at.timestamp() > 0 else None
