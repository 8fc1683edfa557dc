"""Budget policies as the contract's section 6 reads them: which of the records are in force."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from pipeline.audit.recount.instants import parse_instant

UNITS = ("tokens", "cost")
PERIODS = ("day", "week", "month", "rolling-30d")
KIND_LENGTHS = {"org": 256, "port": 128, "group": 256, "user": 256}
NANO = 1_000_000_000
MAX_AMOUNT = 2**63 - 1

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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    return parse_instant(text.replace(" ", "T", 1)) // 1000
