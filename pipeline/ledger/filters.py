"""What a reader may ask for: dimensions, filters, and the view that answers at the least cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime, time
from typing import Any, NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.errors import InvalidField
from pipeline.ledger.queries import named_query

DIMENSIONS: dict[str, str] = {
    "hour": "toStartOfHour(u.occurred_at)",
    "day": "u.date",
    "week": "toMonday(u.date)",
    "month": "toStartOfMonth(u.date)",
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

TIMES = ("hour", "day", "week", "month")
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
_DAYS = {"u.date", "toMonday(u.date)", "toStartOfMonth(u.date)"}
_USERS = {"u.port_id", "u.organization_id", "u.group_id", "u.user_id", "u.billing_scope"}
_PORTS = {
    "u.port_id", "u.feature", "u.kind", "u.provider", "u.model", "u.billing_scope",
}  # fmt: skip
_DAILY_VIEWS = {
    "usage_daily_users": _DAYS | _USERS,
    "usage_daily_ports": _DAYS | _PORTS,
    "usage_daily": _DAYS | _USERS | _PORTS | {"u.service", "u.service_tier"},
}
"""The views of whole days, the cheapest first, and what they can be split and filtered by."""


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
    ports: tuple[str, ...] | None = None
    """Only these ports: what a caller is limited to, besides the one it asks for."""
    start: datetime | None = None
    end: datetime | None = None


class Asked(NamedTuple):
    """Where to look and which conditions hold there, with the values bound to them."""

    source: str
    where: str
    parameters: dict[str, Any]


def dimension(name: str) -> str:
    """The dimension a user means by ``name``; raises ``InvalidField`` when there is none."""
    name = _ALIASES.get(name.strip().lower(), name.strip().lower())
    if name not in DIMENSIONS:
        raise InvalidField("by", f"{name!r} is none of {', '.join(DIMENSIONS)}")
    return name


def asked(filters: UsageFilters, by: Iterable[str] = (), *, entries: bool = False) -> Asked:
    """The cheapest source that has the dimensions ``by`` and what ``filters`` need.

    With ``entries`` it is the ledger itself, whatever a day's sums could answer.
    """
    columns = {DIMENSIONS[name] for name in by}
    columns |= {f"u.{name}" for name in _values(filters)}
    columns |= {"u.port_id"} if filters.ports is not None else set()
    whole_days = all(_is_midnight(at) for at in (filters.start, filters.end) if at is not None)
    if whole_days and not entries:
        for view, available in _DAILY_VIEWS.items():
            if columns <= available:
                return Asked(view, *_where(filters, "u.date", "Date"))
    source = named_query("entries")
    return Asked(source, *_where(filters, "u.occurred_at", "DateTime64(6, 'UTC')"))


def split_by(names: Sequence[str]) -> dict[str, str]:
    """What is filled in for the dimensions of a query: their expressions, and their names."""
    return {
        "by": "".join(f"{DIMENSIONS[name]} AS {name}, " for name in names),
        "names": "".join(f"{name}, " for name in names),
    }


def rows(client: Client, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The result as one dictionary for each row."""
    result = client.query(sql, parameters=parameters)
    return [dict(zip(result.column_names, row, strict=True)) for row in result.result_rows]


def _values(filters: UsageFilters) -> dict[str, str]:
    """The filters by columns that have one value."""
    named = {field.name: getattr(filters, field.name) for field in fields(filters)}
    return {
        name: value
        for name, value in named.items()
        if value is not None and name not in ("start", "end", "ports")
    }


def _where(filters: UsageFilters, time_column: str, kind: str) -> tuple[str, dict[str, Any]]:
    conditions: list[str] = []
    parameters: dict[str, Any] = {}
    for name, value in _values(filters).items():
        conditions.append(f"u.{name} = {{{name}:String}}")
        parameters[name] = value
    if filters.ports is not None:
        conditions.append("u.port_id IN {only_ports:Array(String)}")
        parameters["only_ports"] = list(filters.ports)
    for name, sign in (("start", ">="), ("end", "<")):
        at: datetime | None = getattr(filters, name)
        if at is not None:
            conditions.append(f"{time_column} {sign} {{{name}:{kind}}}")
            text = "%Y-%m-%d" if kind == "Date" else "%Y-%m-%d %H:%M:%S.%f"
            parameters[name] = at.astimezone(UTC).strftime(text)
    return " AND ".join(conditions) or "1", parameters


def _is_midnight(at: datetime) -> bool:
    return at.astimezone(UTC).time() == time()
