"""The oracle: what must come out, counted from the input topics alone with the standard library.

It shares no code with the pipeline, and is written to be read: every question is answered from
scratch, by a loop over all records. It knows the input records, the rates, the policies and the
recorded switches of what decided, and nothing else of what the pipeline wrote.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

DAY_MS = 86_400_000
MAX_AGE_MS = 7 * DAY_MS
MAX_SKEW_MS = 300_000
DEDUPE_MS = 9 * DAY_MS
FREE_PROVIDER = "speaches"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

TOKEN_COUNTERS = (
    "input_tokens",
    "cached_input_tokens",
    "output_tokens",
    "reasoning_tokens",
)
OTHER_COUNTERS = ("characters", "images", "web_searches")
COUNTERS = (*TOKEN_COUNTERS, *OTHER_COUNTERS)
WHOLES = {"cached_input_tokens": "input_tokens", "reasoning_tokens": "output_tokens"}
TEXTS = ("user_id", "organization_id", "group_id")
REQUIRED = ("event_id", "occurred_at", "port_id", "provider", "model")


class Record(NamedTuple):
    """A record of a topic, as a reader of committed records sees it."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


class Accepted(NamedTuple):
    """An event that counts, where it stands and what it costs (``cost_nano`` None: unpriced)."""

    partition: int
    offset: int
    event_id: str
    port_id: str
    user_id: str
    organization_id: str
    group_id: str
    occurred_at_us: int
    recorded_at_ms: int
    billing_scope: str
    tokens: int
    cost_nano: int | None
    status: str
    rate_id: str
    is_estimated: bool

    @property
    def day(self) -> int:
        return self.occurred_at_us // (DAY_MS * 1000)

    @property
    def scopes(self) -> list[str]:
        """The scopes it counts in."""
        named = (
            ("port", self.port_id),
            ("org", self.organization_id),
            ("group", self.group_id),
            ("user", self.user_id),
        )
        return ["all", *(f"{kind}:{name}" for kind, name in named if name)]

    @property
    def amounts(self) -> tuple[int, int, int, int, int, int]:
        """requests, tokens, cost, cost of organisations, unpriced, unpriced of organisations."""
        org = self.billing_scope == "org"
        cost, unpriced = self.cost_nano or 0, int(self.cost_nano is None)
        return 1, self.tokens, cost, cost * org, unpriced, unpriced * org


# -- events ---------------------------------------------------


def read_object(value: bytes | None) -> dict[str, Any] | str:
    """The members of a JSON object that are not null, or the reason why the record is none."""
    try:
        body = json.loads((value or b"").decode())
    except ValueError:
        return "malformed-json"
    if not isinstance(body, dict):
        return "not-an-object"
    return {name: content for name, content in body.items() if content is not None}


def read_event(value: bytes | None) -> dict[str, Any] | str:
    """The event's fields, or the reason why the record is none."""
    if value is not None and len(value) > 65_536:
        return "too-large"
    body = read_object(value)
    if isinstance(body, str):
        return body
    if any(name not in body for name in REQUIRED):
        return "missing-field"
    for name in (*REQUIRED, *TEXTS, "billing_scope"):
        if not isinstance(body.get(name, ""), str):
            return "wrong-type"
    for name in COUNTERS:
        if type(body.get(name, 0)) is not int:
            return "wrong-type"
    if any(not 1 <= len(body[name]) <= 128 for name in REQUIRED if name != "occurred_at"):
        return "out-of-range"
    if any(not 0 <= body.get(name, 0) <= 10**10 for name in COUNTERS):
        return "out-of-range"
    if body.get("billing_scope", "org") not in ("org", "user"):
        return "out-of-range"
    try:
        occurred_at = datetime.fromisoformat(body["occurred_at"])
    except ValueError:
        return "bad-timestamp"
    if occurred_at.tzinfo is None:
        return "bad-timestamp"
    if body.get("cached_input_tokens", 0) > body.get("input_tokens", 0):
        return "inconsistent-tokens"
    if body.get("reasoning_tokens", 0) > body.get("output_tokens", 0):
        return "inconsistent-tokens"
    body["occurred_at_us"] = (occurred_at - EPOCH) // timedelta(microseconds=1)
    return body


def home_of(name: str, partitions: int) -> int:
    """The partition of a port's events: murmur2, as Kafka's Java client computes it."""
    data = name.encode()
    h = 0x9747B28C ^ len(data)
    for at in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[at : at + 4], "little") * 0x5BD1E995 % 2**32
        h = (h * 0x5BD1E995 % 2**32) ^ ((k ^ k >> 24) * 0x5BD1E995 % 2**32)
    tail = data[len(data) & ~3 :]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * 0x5BD1E995 % 2**32
    h = (h ^ h >> 13) * 0x5BD1E995 % 2**32
    return ((h ^ h >> 15) & 0x7FFFFFFF) % partitions


def forwarded_from(record: Record) -> tuple[int, int, int] | None:
    """Partition, offset and time that the last ``forwarded-from`` header names."""
    texts = [value for name, value in record.headers if name == "forwarded-from"]
    if not texts:
        return None
    partition, offset, timestamp_ms = texts[-1].split(b"/")
    return int(partition), int(offset), int(timestamp_ms)


# -- prices ---------------------------------------------------


@dataclass
class RateBook:
    """The rates log up to one offset, and which of its records are used."""

    used: dict[str, tuple[int, dict[str, Any]]] = field(
        default_factory=dict[str, tuple[int, dict[str, Any]]]
    )

    @classmethod
    def of(cls, records: Iterable[Record], next_offset: int, lead_ms: int) -> "RateBook":
        book = cls()
        for record in records:
            if record.offset < next_offset:
                book._feed(record, lead_ms)
        return book

    def _feed(self, record: Record, lead_ms: int) -> None:
        try:
            rate = json.loads(record.value or b"")
            rate_id, effective_us = rate["rate_id"], instant_us(rate["effective_from"])
        except (ValueError, KeyError, TypeError):
            return
        known = self.used.get(rate.get("withdraws", ""))
        if record.key != rate_id.encode() or rate_id in self.used:
            return
        if effective_us < (record.timestamp_ms + lead_ms) * 1000 and not rate.get("backdated"):
            return
        if "withdraws" in rate and (known is None or "withdraws" in known[1]):
            return
        self.used[rate_id] = (record.offset, rate)

    def price(self, event: dict[str, Any]) -> tuple[int | None, str, str, bool]:
        """Cost in nanos, status, rate id, and whether it is an estimate."""
        if event.get("self_hosted"):
            return 0, "free", "self-hosted", False
        if event.get("cache_hit"):
            return 0, "free", "cache-hit", False
        rate = self._best(event, lambda r: "multiplier" not in r and not is_last_resort(r))
        if rate is None and event["provider"] == FREE_PROVIDER:
            return 0, "free", f"book:{FREE_PROVIDER}", False
        estimated = rate is None
        if rate is None:
            rate = self._best(event, lambda r: "multiplier" not in r and is_last_resort(r))
        if rate is None:
            return None, "unpriced", "", False
        multiplier = self._best(event, lambda r: "multiplier" in r)
        cost = cost_of(event, rate)
        if cost is None:
            return None, "unpriced", "", False
        name = rate["rate_id"]
        if multiplier is not None:
            cost *= Fraction(multiplier["multiplier"])
            name += "*" + multiplier["rate_id"]
        return round(cost), "priced", name, estimated

    def _best(self, event: dict[str, Any], wanted: Any) -> dict[str, Any] | None:
        found = [
            (_closeness(rate["model"]), _closeness(rate["provider"]), starts_us, offset, rate)
            for offset, rate in self.used.values()
            if "withdraws" not in rate and wanted(rate)
            for starts_us in [instant_us(rate["effective_from"])]
            if starts_us <= event["occurred_at_us"] < self._end_us(rate["rate_id"])
            and _matches(rate["model"], event["model"])
            and _matches(rate["provider"], event["provider"])
        ]
        return max(found, key=lambda one: one[:4])[4] if found else None

    def _end_us(self, rate_id: str) -> float:
        ends = [
            instant_us(rate["effective_from"])
            for _, rate in self.used.values()
            if rate.get("withdraws") == rate_id
        ]
        return min(ends, default=float("inf"))


def is_last_resort(rate: dict[str, Any]) -> bool:
    return rate["provider"] == "*" and rate["model"] == "*"


def _matches(pattern: str, name: str) -> bool:
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), name) is not None


def _closeness(pattern: str) -> tuple[bool, int]:
    is_exact = "*" not in pattern and "?" not in pattern
    return is_exact, 0 if is_exact else len(pattern)


def cost_of(event: dict[str, Any], rate: dict[str, Any]) -> Fraction | None:
    """Exact nanos; None when something is counted and nothing that is counted has a price."""
    prices = {
        **{n: Fraction(p) * 1000 for n, p in rate.get("per_million", {}).items()},
        **{n: Fraction(p) * 10**9 for n, p in rate.get("per_unit", {}).items()},
    }
    counts = {name: event.get(name, 0) for name in COUNTERS}
    priced = {n: prices.get(n, prices.get(WHOLES.get(n, n))) for n in COUNTERS}
    present = [name for name, count in counts.items() if count]
    if "request" not in prices and present and all(priced[name] is None for name in present):
        return None
    total = prices.get("request", Fraction(0))
    for name, count in counts.items():
        parts = sum(counts[part] for part, whole in WHOLES.items() if whole == name)
        total += (count - parts) * (priced[name] or 0)
    return total


def instant_us(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


# -- the judgement ---------------------------------------------------


class Rules(NamedTuple):
    """Which rates decided a partition's events from ``from_offset`` on."""

    partition: int
    from_offset: int
    rates_next_offset: int
    lead_ms: int


def read_rules(records: Iterable[Record]) -> list[Rules]:
    """The recorded switches, in the order in which they count."""
    found: dict[tuple[int, int], Rules] = {}
    for record in records:
        body = json.loads(record.value or b"")
        place = body["partition"], body["from_offset"]
        found[place] = Rules(*place, body["rates_next_offset"], body["price_lead_s"] * 1000)
    return sorted(found.values())


@dataclass
class Judgement:
    """The fate of every record, by (partition, offset). ``bodies`` are of what was accepted."""

    accepted: dict[tuple[int, int], Accepted] = field(
        default_factory=dict[tuple[int, int], Accepted]
    )
    rejected: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])
    duplicates: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    forwarded: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    undecided: list[str] = field(default_factory=list[str])
    bodies: dict[tuple[int, int], dict[str, Any]] = field(
        default_factory=dict[tuple[int, int], dict[str, Any]]
    )

    def fates(self) -> dict[tuple[int, int], str]:
        """One word for each record."""
        return {
            **dict.fromkeys(self.accepted, "accepted"),
            **dict.fromkeys(self.rejected, "rejected"),
            **dict.fromkeys(self.duplicates, "duplicate"),
            **dict.fromkeys(self.forwarded, "forwarded"),
        }


class Judge:
    """Judges records one by one; those of a partition in the order of their offsets."""

    def __init__(self, partitions: int) -> None:
        self.judgement = Judgement()
        self._partitions = partitions
        self._times: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._books: dict[tuple[int, int], RateBook] = {}

    def feed(self, record: Record, rules: Sequence[Rules], rates: Sequence[Record]) -> None:
        """Decides one record's fate."""
        found, place = self.judgement, (record.partition, record.offset)
        event = read_event(record.value)
        if isinstance(event, str):
            found.rejected[place] = event
            return
        home = home_of(event["port_id"], self._partitions)
        if home != record.partition:
            found.forwarded[place] = home
            return
        origin = forwarded_from(record)
        recorded_ms = record.timestamp_ms
        if origin is not None:
            recorded_ms = min(recorded_ms, origin[2])
        age_us = recorded_ms * 1000 - event["occurred_at_us"]
        if age_us > MAX_AGE_MS * 1000 or (origin and _came_home_late(record, event)):
            found.rejected[place] = "too-old"
        elif -age_us > MAX_SKEW_MS * 1000:
            found.rejected[place] = "in-the-future"
        elif self._is_duplicate(event, record.timestamp_ms, recorded_ms):
            found.duplicates.add(place)
        else:
            book = self._book(record, rules, rates)
            if book is None:
                found.undecided.append(f"no rule was recorded for {place}")
            else:
                found.accepted[place] = _accepted(record, event, recorded_ms, book)
                found.bodies[place] = event

    def _is_duplicate(self, event: dict[str, Any], arrived_ms: int, recorded_ms: int) -> bool:
        times = self._times[event["port_id"], event["event_id"]]
        if any(abs(arrived_ms - known) <= DEDUPE_MS for known in times):
            return True
        times.append(recorded_ms)
        return False

    def _book(
        self, record: Record, rules: Sequence[Rules], rates: Sequence[Record]
    ) -> RateBook | None:
        found = [
            r for r in rules if r.partition == record.partition and r.from_offset <= record.offset
        ]
        if not found:
            return None
        version = found[-1].rates_next_offset, found[-1].lead_ms
        if version not in self._books:
            self._books[version] = RateBook.of(rates, *version)
        return self._books[version]


def _came_home_late(record: Record, event: dict[str, Any]) -> bool:
    """Whether its day began so long before that not all of that day's ids are known any more."""
    day = event["occurred_at_us"] // (DAY_MS * 1000)
    return record.timestamp_ms - day * DAY_MS > DEDUPE_MS - MAX_SKEW_MS


def _accepted(record: Record, event: dict[str, Any], recorded_ms: int, book: RateBook) -> Accepted:
    cost_nano, status, rate_id, is_estimated = book.price(event)
    return Accepted(
        record.partition,
        record.offset,
        event["event_id"],
        event["port_id"],
        *(event.get(name, "") for name in TEXTS),
        event["occurred_at_us"],
        recorded_ms,
        event.get("billing_scope", "org"),
        event.get("input_tokens", 0) + event.get("output_tokens", 0),
        cost_nano,
        status,
        rate_id,
        is_estimated,
    )


Cells = dict[tuple[str, int], tuple[int, ...]]


class Counted(Protocol):
    """What adds to the cells of its scopes: an event, or what a correction changes of one."""

    @property
    def day(self) -> int: ...
    @property
    def scopes(self) -> list[str]: ...
    @property
    def amounts(self) -> tuple[int, int, int, int, int, int]: ...


def cells_of(counted: Iterable[Counted]) -> Cells:
    """(scope, day) → the sums of ``amounts``."""
    sums: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0] * 6)
    for one in counted:
        for scope in one.scopes:
            cell = sums[scope, one.day]
            cell[:] = [a + b for a, b in zip(cell, one.amounts, strict=True)]
    return {place: tuple(cell) for place, cell in sums.items()}


# -- budgets ---------------------------------------------------


def read_policies(records: Iterable[Record]) -> dict[str, dict[str, Any]]:
    """The last valid policy under each key."""
    policies: dict[str, dict[str, Any]] = {}
    for record in records:
        key = (record.key or b"").decode()
        if record.value is None:
            policies.pop(key, None)
        else:
            policy = _policy(record.value)
            if policy is not None and key == key_of(policy):
                policies[key] = policy
    return policies


def _policy(value: bytes) -> dict[str, Any] | None:
    try:
        policy = json.loads(value)
        caps = [_amount(policy, name) for name in ("soft_cap", "hard_cap")]
    except (ValueError, TypeError, KeyError):
        return None
    if any(cap is not None and cap < 0 for cap in caps):
        return None
    if None not in caps and caps[0] > caps[1]:  # type: ignore[operator]
        return None
    return policy


def _amount(policy: dict[str, Any], name: str) -> int | None:
    cap = policy.get(name)
    if cap is None:
        return None
    return int(Fraction(cap) * 10**9) if policy["unit"] == "cost" else int(cap)


def key_of(policy: dict[str, Any]) -> str:
    """The record key of a policy, and of the states under it."""
    return key_for(policy["scope"], policy)


def key_for(scope: str, policy: dict[str, Any]) -> str:
    """The record key of the state of ``scope`` under a policy of its own, or a wildcard's."""
    kind, colon, name = scope.partition(":")
    for special, code in (("%", "%25"), ("|", "%7C"), (":", "%3A")):
        name = name.replace(special, code)
    return f"{kind}{colon}{name}|{policy['unit']}|{policy['period']}"


def window_of(period: str, now_ms: int) -> tuple[int, int]:
    """First day and the day after the last one, as days since 1970."""
    today = (EPOCH + timedelta(milliseconds=now_ms)).date()
    if period == "day":
        first, end = today, today + timedelta(1)
    elif period == "week":
        first = today - timedelta(today.weekday())
        end = first + timedelta(7)
    elif period == "month":
        first = today.replace(day=1)
        end = (first + timedelta(40)).replace(day=1)
    else:
        first, end = today - timedelta(29), today + timedelta(1)
    return (first - EPOCH.date()).days, (end - EPOCH.date()).days


def column_of(scope: str, unit: str) -> tuple[int, int]:
    """Where ``used`` and ``unpriced_events`` stand in a cell."""
    if unit == "tokens":
        return 1, 4
    return (2, 4) if scope.startswith("user:") else (3, 5)


def expected_states(
    policies: dict[str, dict[str, Any]], cells: Cells, now_ms: int
) -> dict[str, dict[str, Any]]:
    """The state that must stand under each key of ``budget.state`` at that time."""
    states: dict[str, dict[str, Any]] = {}
    for key, policy in policies.items():
        kind, _, name = policy["scope"].partition(":")
        first, end = window_of(policy["period"], now_ms)
        states[key] = _state(policy, policy["scope"], cells, now_ms)
        if name == "*":
            ids = {s for s, day in cells if s.startswith(f"{kind}:") and first <= day < end}
            for scope in ids:
                own = key_for(scope, policy)
                if own not in policies:
                    states[own] = _state(policy, scope, cells, now_ms)
    return states


def _state(policy: dict[str, Any], scope: str, cells: Cells, now_ms: int) -> dict[str, Any]:
    unit, period = policy["unit"], policy["period"]
    first, end = window_of(period, now_ms)
    inside = [cell for (s, day), cell in cells.items() if s == scope and first <= day < end]
    used_at, unpriced_at = column_of(scope, unit)
    used = sum(cell[used_at] for cell in inside)
    soft, hard = _amount(policy, "soft_cap"), _amount(policy, "hard_cap")
    extra = policy.get("extra")
    if hard is not None and extra is not None and now_ms * 1000 < instant_us(extra["until"]):
        hard += _amount({**extra, "unit": unit}, "amount") or 0
    line: Fraction | int | None = soft
    if line is None and hard is not None:
        line = Fraction(hard * policy.get("warn_threshold_pct", 80), 100)
    status = "ok"
    if line is not None and used > line:
        status = "soft-cap-exceeded"
    if hard is not None and used >= hard:
        status = "hard-cap-exceeded"
    if not policy.get("enabled", True):
        status = "disabled"
    return {
        "scope": scope,
        "unit": unit,
        "period": period,
        "period_start": _midnight(first),
        "resets_at": _midnight(end),
        "status": status,
        "used": used,
        "remaining": None if hard is None else hard - used,
        "soft_cap": soft,
        "hard_cap": hard,
        "unpriced_events": sum(cell[unpriced_at] for cell in inside),
        "on_stale": policy.get("on_stale", "allow"),
    }


def _midnight(day: int) -> str:
    return (EPOCH + timedelta(day)).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_state(value: bytes) -> dict[str, Any]:
    """A record of ``budget.state`` with amounts as integers (nanos for cost)."""
    state = json.loads(value)
    if state["unit"] == "cost":
        for name in ("used", "remaining", "soft_cap", "hard_cap"):
            if state[name] is not None:
                nanos = Fraction(state[name]) * 10**9
                assert nanos.denominator == 1, f"{name} is finer than a nano: {state[name]}"
                state[name] = int(nanos)
    return state


def read_heartbeat(value: bytes) -> dict[str, Any]:
    """A heartbeat, with ``as_of_ms`` since 1970 beside the rest."""
    body = json.loads(value)
    as_of = datetime.fromisoformat(body["as_of"]) - EPOCH
    return {**body, "as_of_ms": as_of // timedelta(milliseconds=1)}
