"""Budget policies: reading, checking, merging and writing them (contract, section 6).

A topic record may hold unknown fields, which are ignored as in events; files, flags and API
bodies may not, because there a misspelt cap would be lost without a word (``strict``). Null in
an optional field means absent.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, cast

import msgspec

from pipeline.core.errors import InvalidField
from pipeline.core.money import format_nano, parse_nano
from pipeline.core.scopes import (
    PERIODS,
    UNITS,
    RecordKey,
    format_scope,
    is_star_id,
    is_wildcard,
    parse_scope,
    record_key,
    scope_kind,
)
from pipeline.core.windows import format_boundary, parse_ms

DEFAULT_WARN_PCT = 80
DEFAULT_PORT_SOFT_CAP = 100_000
DEFAULT_PORT_HARD_CAP = 500_000
MAX_CAP = 2**63 - 1
MAX_NOTIFY = 16
MAX_NOTIFY_LENGTH = 2048

FIELDS = (
    "scope",
    "unit",
    "period",
    "enabled",
    "soft_cap",
    "hard_cap",
    "warn_threshold_pct",
    "on_stale",
    "extra",
    "notify",
)


class Extra(msgspec.Struct, frozen=True, gc=False):
    """Raises a hard cap by ``amount`` (tokens, or nanos) until ``until_ms``, exclusive."""

    amount: int
    until_ms: int


class Policy(msgspec.Struct, frozen=True, gc=False):
    """A valid policy. ``scope`` is internal (``core.scopes``); caps are tokens, or nanos."""

    scope: str
    unit: str
    period: str
    enabled: bool = True
    soft_cap: int | None = None
    hard_cap: int | None = None
    warn_threshold_pct: int = DEFAULT_WARN_PCT
    on_stale: str = "allow"
    extra: Extra | None = None
    notify: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The record key ``scope|unit|period``."""
        return record_key(self.scope, self.unit, self.period)

    def hard_cap_at(self, now_ms: int) -> int | None:
        """The hard cap with an extra that is running at ``now_ms``."""
        if self.hard_cap is None or self.extra is None or now_ms >= self.extra.until_ms:
            return self.hard_cap
        return self.hard_cap + self.extra.amount

    def soft_line_at(self, now_ms: int) -> int | None:
        """The amount above which the soft line is crossed; None where there is no line.

        Without a soft cap it is ``warn_threshold_pct`` of the hard cap, rounded down: for an
        integer ``used``, ``used · 100 > pct · hard`` exactly when ``used`` is above that.
        """
        if self.soft_cap is not None:
            return self.soft_cap
        hard_cap = self.hard_cap_at(now_ms)
        return None if hard_cap is None else hard_cap * self.warn_threshold_pct // 100


def unset_policy(scope: str, unit: str, period: str) -> Policy | None:
    """What a budget without a policy reads as: a port's tokens a month, else None."""
    if not _has_defaults(RecordKey(scope, unit, period)):
        return None
    return Policy(
        scope,
        unit,
        period,
        enabled=False,
        soft_cap=DEFAULT_PORT_SOFT_CAP,
        hard_cap=DEFAULT_PORT_HARD_CAP,
    )


def parse_policy(key: bytes | None, value: bytes) -> Policy:
    """The policy of a record on ``budget.policies``.

    Raises ``InvalidField`` with the field and the rule that it breaks, also when ``key`` is not
    the canonical key of the scope, unit and period in the body.
    """
    try:
        body = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidField("policy", f"is not JSON ({error})") from None
    policy = policy_from_object(body, strict=False)
    if key is None or policy.key.encode() != key:
        shown = "no key" if key is None else repr(key.decode(errors="replace"))
        raise InvalidField("key", f"must be {policy.key!r} as the body says, not {shown}")
    return policy


def policy_from_object(body: object, *, strict: bool = True) -> Policy:
    """The policy in a decoded JSON or YAML object; ``strict`` refuses unknown fields.

    Raises ``InvalidField``.
    """
    fields = _object_of(body, "policy", FIELDS if strict else None)
    scope = parse_scope(_text_of(fields, "scope"))
    unit = _one_of(fields, "unit", UNITS)
    period = _one_of(fields, "period", PERIODS)
    if unit is None or period is None:
        raise InvalidField("unit" if unit is None else "period", "is missing")
    return _checked(Policy(scope, unit, period, **_optional_fields(fields, unit, strict)))


def merge_partial(
    scope: str, unit: str, period: str, current: Policy | None, changes: Mapping[str, object]
) -> Policy:
    """The policy after a partial write: what ``changes`` names is replaced, null clears it.

    ``changes`` holds fields as on the wire (costs as decimal strings). Without ``current`` a
    port's tokens a month start from the default caps, any other budget empty; both enabled.
    Raises ``InvalidField``.
    """
    fields = _object_of(changes, "policy", FIELDS)
    for name, value in (("scope", format_scope(scope)), ("unit", unit), ("period", period)):
        if fields.pop(name, value) != value:
            raise InvalidField(name, "cannot be changed; it names the budget")
    given = _optional_fields(fields, unit, strict=True)
    base = current
    if base is None:
        base = Policy(scope, unit, period)
        if _has_defaults(RecordKey(scope, unit, period)):
            base = _default_caps(base, given)
    # A null of a field with a default was left out of ``given``: it falls back to the default.
    cleared = {name: _DEFAULTS[name] for name in fields if name not in given}
    return _checked(msgspec.structs.replace(base, **cleared, **given))


def parse_policy_file(objects: object) -> list[Policy]:
    """The policies of a decoded YAML or JSON file: a list, or an object with ``policies``.

    Raises ``InvalidField`` naming the entry (``policies[3].hard_cap``), also for two entries
    on the same budget.
    """
    if isinstance(objects, Mapping):
        body = cast(Mapping[str, object], objects)
        objects = _object_of(body, "file", ("policies",)).get("policies")
    if not isinstance(objects, list):
        raise InvalidField("policies", "must be a list of policies")
    policies: list[Policy] = []
    places: dict[str, int] = {}
    for index, entry in enumerate(cast(list[object], objects)):
        try:
            policy = policy_from_object(entry)
        except InvalidField as error:
            raise InvalidField(f"policies[{index}].{error.field}", error.rule) from None
        if policy.key in places:
            rule = f"is the budget of policies[{places[policy.key]}] again: {policy.key}"
            raise InvalidField(f"policies[{index}]", rule)
        places[policy.key] = index
        policies.append(policy)
    return policies


def policy_fields(policy: Policy) -> dict[str, Any]:
    """The policy as on the wire, every field present, in the contract's order."""
    amount: Callable[[int], int | str] = format_nano if policy.unit == "cost" else int
    extra = policy.extra
    return {
        "scope": format_scope(policy.scope),
        "unit": policy.unit,
        "period": policy.period,
        "enabled": policy.enabled,
        "soft_cap": None if policy.soft_cap is None else amount(policy.soft_cap),
        "hard_cap": None if policy.hard_cap is None else amount(policy.hard_cap),
        "warn_threshold_pct": policy.warn_threshold_pct,
        "on_stale": policy.on_stale,
        "extra": extra
        and {"amount": amount(extra.amount), "until": format_boundary(extra.until_ms)},
        "notify": list(policy.notify),
    }


def policy_json(policy: Policy) -> bytes:
    """The canonical record value of ``policy``."""
    return msgspec.json.encode(policy_fields(policy))


class InvalidPolicy(msgspec.Struct, frozen=True):
    """A record that is not used, and the valid policy that stays in force instead."""

    offset: int
    key: bytes
    field: str
    rule: str
    last_valid: Policy | None


class PolicyTable:
    """The fold of ``budget.policies``: the last valid policy of each key, and what was invalid.

    Owns: which policy is in force. Does not own: where the last valid ones are kept when
    compaction has dropped them (``seed`` takes them back).
    """

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self.invalid: dict[bytes, InvalidPolicy] = {}
        self._seeds: dict[bytes, Policy] = {}

    def seed(self, key: bytes, value: bytes | None) -> None:
        """Takes a record of the registry of valid policies, before the first ``apply``.

        It is used where the log holds an invalid record for the key and no valid one. A
        registry record that is itself unreadable is left out.
        """
        self._seeds.pop(key, None)
        if value is not None:
            try:
                self._seeds[key] = parse_policy(key, value)
            except InvalidField:
                return

    def apply(self, offset: int, key: bytes | None, value: bytes | None) -> Policy | str | None:
        """Takes one record; returns the policy now in force, or the key that lost its own.

        None when nothing changes for the fold: an invalid record without a last valid policy,
        or the deletion of what was not there.
        """
        key = key or b""
        if value is None:
            return self._delete(key)
        try:
            policy = parse_policy(key, value)
        except InvalidField as error:
            return self._refuse(offset, key, error)
        self._seeds.pop(key, None)
        self.invalid.pop(key, None)
        self.policies[policy.key] = policy
        return policy

    def _delete(self, key: bytes) -> str | None:
        self._seeds.pop(key, None)
        self.invalid.pop(key, None)
        name = key.decode(errors="replace")
        return name if self.policies.pop(name, None) is not None else None

    def _refuse(self, offset: int, key: bytes, error: InvalidField) -> Policy | None:
        last_valid = self.policies.get(key.decode(errors="replace")) or self._seeds.pop(key, None)
        self.invalid[key] = InvalidPolicy(offset, key, error.field, error.rule, last_valid)
        if last_valid is not None:
            self.policies[last_valid.key] = last_valid
        return last_valid


_DEFAULTS: dict[str, Any] = {
    "enabled": True,
    "soft_cap": None,
    "hard_cap": None,
    "warn_threshold_pct": DEFAULT_WARN_PCT,
    "on_stale": "allow",
    "extra": None,
    "notify": (),
}


def _has_defaults(budget: RecordKey) -> bool:
    return (
        scope_kind(budget.scope) == "port"
        and not is_wildcard(budget.scope)
        and (budget.unit, budget.period) == ("tokens", "month")
    )


def _default_caps(base: Policy, given: Mapping[str, Any]) -> Policy:
    hard_cap = given.get("hard_cap", DEFAULT_PORT_HARD_CAP)
    keeps_soft = hard_cap is None or hard_cap >= DEFAULT_PORT_SOFT_CAP
    soft_cap = DEFAULT_PORT_SOFT_CAP if keeps_soft else None
    return msgspec.structs.replace(base, soft_cap=soft_cap, hard_cap=DEFAULT_PORT_HARD_CAP)


def _checked(policy: Policy) -> Policy:
    if is_star_id(policy.scope):
        raise InvalidField("scope", "an id that is literally * cannot have a policy of its own")
    soft_cap, hard_cap = policy.soft_cap, policy.hard_cap
    if soft_cap is not None and hard_cap is not None and soft_cap > hard_cap:
        shown = format_nano if policy.unit == "cost" else str
        rule = f"{shown(soft_cap)} is above the hard cap of {shown(hard_cap)}"
        raise InvalidField("soft_cap", rule)
    return policy


def _optional_fields(fields: Mapping[str, object], unit: str, strict: bool) -> dict[str, Any]:
    """The fields that are present; null clears a cap and is absent everywhere else."""
    found: dict[str, Any] = {}
    for name in ("soft_cap", "hard_cap"):
        if name in fields:
            found[name] = _cap_of(fields[name], name, unit)
    if fields.get("enabled") is not None:
        found["enabled"] = _flag_of(fields["enabled"], "enabled")
    if fields.get("warn_threshold_pct") is not None:
        found["warn_threshold_pct"] = _percent_of(fields["warn_threshold_pct"])
    if (on_stale := _one_of(fields, "on_stale", ("allow", "deny"))) is not None:
        found["on_stale"] = on_stale
    if fields.get("extra") is not None:
        found["extra"] = _extra_of(fields["extra"], unit, strict)
    if fields.get("notify") is not None:
        found["notify"] = _notify_of(fields["notify"])
    return found


def _object_of(body: object, field: str, names: Iterable[str] | None) -> dict[str, object]:
    if not isinstance(body, Mapping):
        raise InvalidField(field, "must be an object")
    fields = dict(cast(Mapping[str, object], body))
    if names is not None:
        unknown = [name for name in fields if name not in names]
        if unknown:
            raise InvalidField(str(unknown[0]), "is no field of a policy")
    return fields


def _text_of(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise InvalidField(name, "is missing")
    if not isinstance(value, str):
        raise InvalidField(name, "must be a string")
    return value


def _one_of(fields: Mapping[str, object], name: str, allowed: tuple[str, ...]) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or value not in allowed:
        raise InvalidField(name, f"must be one of {', '.join(allowed)}")
    return value


def _flag_of(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(name, "must be true or false")
    return value


def _cap_of(value: object, name: str, unit: str) -> int | None:
    if value is None:
        return None
    if unit == "cost":
        amount = parse_nano(value, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        amount = value
    else:
        raise InvalidField(name, "must be an integer number of tokens")
    if not 0 <= amount <= MAX_CAP:
        raise InvalidField(name, "must not be negative" if amount < 0 else "is too large")
    return amount


def _percent_of(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100:
        raise InvalidField("warn_threshold_pct", "must be an integer from 0 to 100")
    return value


def _extra_of(value: object, unit: str, strict: bool) -> Extra:
    fields = _object_of(value, "extra", ("amount", "until") if strict else None)
    amount = _cap_of(fields.get("amount"), "extra.amount", unit)
    until = fields.get("until")
    if isinstance(until, datetime) and until.tzinfo is not None:
        until = until.isoformat()  # YAML reads an unquoted time as one
    if amount is None or not isinstance(until, str):
        name, rule = ("amount", "is missing") if amount is None else ("until", "must be a time")
        raise InvalidField(f"extra.{name}", rule)
    return Extra(amount, parse_ms(until, "extra.until"))


def _notify_of(value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise InvalidField("notify", "must be a list of addresses")
    addresses = tuple(cast("list[object]", value))
    if len(addresses) > MAX_NOTIFY:
        raise InvalidField("notify", f"must have at most {MAX_NOTIFY} addresses")
    for address in addresses:
        if not isinstance(address, str) or len(address) > MAX_NOTIFY_LENGTH:
            raise InvalidField("notify", "must hold strings of a bounded length")
        if not address.startswith(("mailto:", "https://", "http://")):
            raise InvalidField("notify", f"must be mailto:, https: or http:, not {address!r}")
    return cast("tuple[str, ...]", addresses)
