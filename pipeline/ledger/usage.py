"""What was used: the ledger's totals by any of its dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import InvalidField
from pipeline.ledger.queries import named_query

DIMENSIONS: dict[str, str] = {
    "hour": "toStartOfHour(u.occurred_at)",
    "day": "toDate(u.occurred_at)",
    "week": "toMonday(u.occurred_at)",
    "month": "toStartOfMonth(u.occurred_at)",
    "port": "u.port_id",
    "organization": "u.organization_id",
    "group": "u.group_id",
    "user": "u.user_id",
    "session": "u.session_id",
    "service": "u.service",
    "feature": "u.feature",
    "kind": "u.kind",
    "provider": "u.provider",
    "model": "u.model",
    "endpoint": "u.endpoint",
    "service_tier": "u.service_tier",
    "billing_scope": "u.billing_scope",
    "price_status": "u.price_status",
    "rate": "u.rate_id",
}
"""What usage can be split by. The expressions are ours; nothing a user types becomes SQL."""

_TIMES = ("hour", "day", "week", "month")
_ALIASES = {
    "port_id": "port",
    "port-id": "port",
    "user_id": "user",
    "user-id": "user",
    "org": "organization",
    "organization_id": "organization",
    "group_id": "group",
    "date": "day",
    "session_id": "session",
    "service-tier": "service_tier",
    "billing-scope": "billing_scope",
    "rate_id": "rate",
}
USAGE_COLUMNS = (
    "currency", "requests", "input_tokens", "cached_input_tokens", "output_tokens",
    "total_tokens", "characters", "images", "audio_seconds", "cost_nano", "cost",
    "unpriced_requests", "estimated_requests",
)  # fmt: skip
"""What ``usage_report`` says of each combination of dimensions, in order."""

LIMIT_DEFAULT = 10_000


@dataclass(frozen=True)
class UsageFilters:
    """Which entries count; None takes all. ``start`` is inclusive, ``end`` exclusive."""

    port_id: str | None = None
    user_id: str | None = None
    organization_id: str | None = None
    group_id: str | None = None
    service: str | None = None
    feature: str | None = None
    kind: str | None = None
    provider: str | None = None
    model: str | None = None
    billing_scope: str | None = None
    start: datetime | None = None
    end: datetime | None = None


def dimension(name: str) -> str:
    """The dimension a user means by ``name``; raises ``InvalidField`` when there is none."""
    name = _ALIASES.get(name.strip().lower(), name.strip().lower())
    if name not in DIMENSIONS:
        raise InvalidField("by", f"{name!r} is none of {', '.join(DIMENSIONS)}")
    return name


def usage_report(
    client: Client,
    filters: UsageFilters,
    by: Sequence[str] = (),
    limit: int = LIMIT_DEFAULT,
) -> list[dict[str, Any]]:
    """One row for each combination of ``by``, times first to last, then the dearest first.

    A row has the dimensions, ``currency``, ``requests``, the token counts, ``characters``,
    ``images``, ``audio_seconds`` (Decimal), ``cost_nano`` (int) and ``cost`` (Decimal), both None
    when nothing in the row has a price, ``unpriced_requests`` and ``estimated_requests``.
    """
    names = list(dict.fromkeys(dimension(name) for name in by))
    where, parameters = _where(filters)
    order = [name for name in names if name in _TIMES]
    order += ["cost_nano DESC NULLS LAST", "total_tokens DESC"]
    order += [name for name in names if name not in _TIMES]
    sql = (
        named_query("usage")
        .replace("[by]", "".join(f"{DIMENSIONS[name]} AS {name}, " for name in names))
        .replace("[names]", "".join(f"{name}, " for name in names))
        .replace("[where]", where)
        .replace("[order]", ", ".join([*order, "currency"]))
    )
    return _rows(client, sql, {**parameters, "limit": limit})


def unpriced_events(
    client: Client, filters: UsageFilters, limit: int = 100
) -> list[dict[str, Any]]:
    """Entries without a price, newest first."""
    return _filtered(client, "unpriced_events", filters, limit)


def unpriced_models(
    client: Client, filters: UsageFilters, limit: int = 100
) -> list[dict[str, Any]]:
    """Providers and models without a rate, the most used first."""
    return _filtered(client, "unpriced_models", filters, limit)


def top_users(client: Client, filters: UsageFilters, limit: int = 10) -> list[dict[str, Any]]:
    """The users with the highest cost."""
    return _filtered(client, "top_users", filters, limit)


def ledger_totals(client: Client) -> dict[str, Any]:
    """One row over the whole ledger: entries, requests, tokens, cost and their time range."""
    return _rows(client, named_query("totals"), {})[0]


def _filtered(client: Client, name: str, filters: UsageFilters, limit: int) -> list[dict[str, Any]]:
    where, parameters = _where(filters)
    sql = named_query(name).replace("[where]", where)
    return _rows(client, sql, {**parameters, "limit": limit})


def _where(filters: UsageFilters) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for field in fields(filters):
        value = getattr(filters, field.name)
        if value is None:
            continue
        if field.name in ("start", "end"):
            sign = ">=" if field.name == "start" else "<"
            conditions.append(f"u.occurred_at {sign} {{{field.name}:DateTime64(6, 'UTC')}}")
            parameters[field.name] = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")
        else:
            conditions.append(f"u.{field.name} = {{{field.name}:String}}")
            parameters[field.name] = value
    return " AND ".join(conditions) or "1", parameters


def _rows(client: Client, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    result = client.query(sql, parameters=parameters)
    return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]
