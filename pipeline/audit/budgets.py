"""The audit's own view of budgets: which states there must be, and what each must say."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from pipeline.audit.reading import Unreadable, parse_time
from pipeline.audit.recount import ZERO, Cells, Totals, plain

UNITS = ("tokens", "cost")
PERIODS = ("day", "week", "month", "rolling-30d")
KIND_LENGTHS = {"org": 256, "port": 128, "group": 256, "user": 256}
NANO = 1_000_000_000
DAY_MS = 86_400_000
MAX_AMOUNT = 2**63 - 1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PLAIN = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", re.ASCII)


class Target(NamedTuple):
    """What a budget is on. ``ident`` None stands for each id of the kind (``kind:*``)."""

    kind: str
    ident: str | None

    @property
    def text(self) -> str:
        """As JSON shows it."""
        return "all" if self.kind == "all" else f"{self.kind}:{self.ident or '*'}"

    @property
    def encoded(self) -> str:
        """As record keys show it."""
        if self.kind == "all":
            return "all"
        if self.ident is None:
            return f"{self.kind}:*"
        if self.ident == "*":
            return f"{self.kind}:%2A"
        ident = self.ident.replace("%", "%25").replace("|", "%7C").replace(":", "%3A")
        return f"{self.kind}:{ident}"


@dataclass(frozen=True, slots=True)
class Budget:
    """A valid policy; amounts are tokens, or nanos where ``unit`` is ``cost``."""

    target: Target
    unit: str
    period: str
    enabled: bool
    soft_cap: int | None
    hard_cap: int | None
    warn_pct: int
    on_stale: str
    extra: tuple[int, int] | None
    """The amount, and until when (ms)."""

    @property
    def key(self) -> str:
        return f"{self.target.encoded}|{self.unit}|{self.period}"

    def hard_cap_at(self, now_ms: int) -> int | None:
        """The hard cap with an extra that still runs."""
        if self.hard_cap is None or self.extra is None or now_ms >= self.extra[1]:
            return self.hard_cap
        return self.hard_cap + self.extra[0]

    def status(self, used: int, now_ms: int) -> str:
        """The first that applies."""
        hard_cap = self.hard_cap_at(now_ms)
        if not self.enabled:
            return "disabled"
        if hard_cap is not None and used >= hard_cap:
            return "hard-cap-exceeded"
        if self.soft_cap is not None:
            return "soft-cap-exceeded" if used > self.soft_cap else "ok"
        above = hard_cap is not None and used * 100 > hard_cap * self.warn_pct
        return "soft-cap-exceeded" if above else "ok"


class PolicyRecord(NamedTuple):
    """A record of ``budget.policies`` as it came."""

    key: bytes | None
    value: bytes | None


def budgets_in_force(
    records: Iterable[PolicyRecord], registry: Mapping[bytes, bytes]
) -> dict[str, Budget]:
    """The last valid policy of each key.

    ``registry`` holds the worker's copies of valid policies; it is asked only where the log
    has an invalid record for a key and, after compaction, no valid one any more.
    """
    found: dict[bytes, Budget] = {}
    invalid: set[bytes] = set()
    for record in records:
        key = record.key or b""
        if record.value is None:
            found.pop(key, None)
            invalid.discard(key)
            continue
        budget = read_policy(key, record.value)
        if budget is not None:
            found[key] = budget
        elif key not in found:
            invalid.add(key)
    for key in invalid - set(found):
        budget = read_policy(key, registry.get(key, b""))
        if budget is not None:
            found[key] = budget
    return {budget.key: budget for budget in found.values()}


def read_policy(key: bytes, value: bytes) -> Budget | None:
    """The policy of a record; None when a rule is broken or the key does not match."""
    try:
        body = {k: v for k, v in json.loads(value).items() if v is not None}
        budget = _budget(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Unreadable):
        return None
    return budget if budget.key.encode() == key else None


def _budget(body: Mapping[str, Any]) -> Budget:
    unit, period = body["unit"], body["period"]
    enabled, on_stale = body.get("enabled", True), body.get("on_stale", "allow")
    warn_pct = body.get("warn_threshold_pct", 80)
    caps = {name: _amount(body[name], unit) for name in ("soft_cap", "hard_cap") if name in body}
    soft_cap, hard_cap = caps.get("soft_cap"), caps.get("hard_cap")
    extra = body.get("extra")
    right = (
        unit in UNITS
        and period in PERIODS
        and isinstance(enabled, bool)
        and on_stale in ("allow", "deny")
        and type(warn_pct) is int
        and 0 <= warn_pct <= 100
        and (soft_cap is None or hard_cap is None or soft_cap <= hard_cap)
        and _are_addresses(body.get("notify", []))
    )
    if not right:
        raise ValueError("policy")
    return Budget(
        _target(body["scope"]),
        unit,
        period,
        enabled,
        soft_cap,
        hard_cap,
        warn_pct,
        on_stale,
        None if extra is None else (_amount(extra["amount"], unit), _milliseconds(extra["until"])),
    )


def _are_addresses(notify: Any) -> bool:
    return (
        isinstance(notify, list)
        and len(notify) <= 16
        and all(
            isinstance(address, str)
            and len(address) <= 2048
            and address.startswith(("mailto:", "https://", "http://"))
            for address in notify
        )
    )


def _target(text: str) -> Target:
    if text == "all":
        return Target("all", "")
    kind, colon, ident = text.partition(":")
    if not colon or not 1 <= len(ident) <= KIND_LENGTHS[kind]:
        raise ValueError(text)
    ident.encode()
    return Target(kind, None if ident == "*" else ident)


def _amount(value: Any, unit: str) -> int:
    if unit == "tokens":
        amount = value if type(value) is int else -1
    else:
        if not isinstance(value, str) or len(value) > 64 or _PLAIN.fullmatch(value) is None:
            raise ValueError(value)
        nano = Fraction(value) * NANO
        amount = nano.numerator if nano.denominator == 1 else -1
    if not 0 <= amount <= MAX_AMOUNT:
        raise ValueError(value)
    return amount


def _milliseconds(text: str) -> int:
    return parse_time(text.replace(" ", "T", 1)) // 1000


# -- periods -------------------------------------------------------------------------------------


def days_of(period: str, now_ms: int) -> range:
    """The days (since 1970) of the window that runs at ``now_ms``."""
    now = _EPOCH + timedelta(milliseconds=now_ms)
    today = datetime(now.year, now.month, now.day, tzinfo=UTC)
    if period == "day":
        start, end = today, today + timedelta(days=1)
    elif period == "week":
        start = today - timedelta(days=today.weekday())
        end = start + timedelta(days=7)
    elif period == "month":
        start = today.replace(day=1)
        end = (start + timedelta(days=40)).replace(day=1)
    else:
        start, end = today - timedelta(days=29), today + timedelta(days=1)
    return range((start - _EPOCH).days, (end - _EPOCH).days)


def _instant(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- states --------------------------------------------------------------------------------------


def expected_states(
    budgets: Mapping[str, Budget], cells: Cells, now_ms: int
) -> dict[str, dict[str, Any]]:
    """What must stand on ``budget.state`` by record key, ``version`` and ``as_of`` left out.

    ``cells`` are those of all source partitions added up.
    """
    by_scope: dict[str, dict[int, Totals]] = {}
    for (scope, day), totals in cells.items():
        by_scope.setdefault(scope, {})[day] = totals
    states: dict[str, dict[str, Any]] = {}
    for budget in budgets.values():
        days = days_of(budget.period, now_ms)
        if budget.target.kind != "all" and budget.target.ident is None:
            states[budget.key] = _state(budget, budget.target, [], days, now_ms)
            for scope, by_day in by_scope.items():
                kind, _, ident = scope.partition(":")
                target = Target(kind, ident)
                own = f"{target.encoded}|{budget.unit}|{budget.period}"
                inside = [by_day[day] for day in by_day if day in days]
                if kind == budget.target.kind and inside and own not in budgets:
                    states[own] = _state(budget, target, inside, days, now_ms)
        else:
            by_day = by_scope.get(budget.target.text, {})
            inside = [by_day[day] for day in by_day if day in days]
            states[budget.key] = _state(budget, budget.target, inside, days, now_ms)
    return states


def _state(
    budget: Budget, target: Target, inside: list[Totals], days: range, now_ms: int
) -> dict[str, Any]:
    sums = [sum(column) for column in zip(ZERO, *inside, strict=True)]
    if budget.unit == "tokens":
        used, unpriced = sums[1], sums[4]
    elif target.kind == "user":
        used, unpriced = sums[2], sums[4]
    else:
        used, unpriced = sums[3], sums[5]
    hard_cap = budget.hard_cap_at(now_ms)

    def shown(amount: int | None) -> int | str | None:
        if amount is None or budget.unit == "tokens":
            return amount
        return plain(Decimal(amount).scaleb(-9))

    return {
        "scope": target.text,
        "unit": budget.unit,
        "period": budget.period,
        "period_start": _instant(days.start),
        "resets_at": _instant(days.stop),
        "status": budget.status(used, now_ms),
        "used": shown(used),
        "remaining": shown(None if hard_cap is None else hard_cap - used),
        "soft_cap": shown(budget.soft_cap),
        "hard_cap": shown(hard_cap),
        "unpriced_events": unpriced,
        "on_stale": budget.on_stale,
    }
