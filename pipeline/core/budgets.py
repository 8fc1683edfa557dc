"""States of budgets, and the decision whether a call may go ahead (contract, section 6).

Amounts are tokens, or nanos where ``unit`` is ``cost``; instants are milliseconds UTC.
"""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import inf
from typing import Any, NamedTuple

import msgspec

from pipeline.core.errors import CorruptRecord, InvalidField
from pipeline.core.money import NANO_PER_UNIT, format_nano, parse_decimal
from pipeline.core.policies import Policy
from pipeline.core.scopes import (
    ALL,
    PERIODS,
    UNITS,
    RecordKey,
    event_scopes,
    format_scope,
    parse_key,
    record_key,
    scope_kind,
    wildcard_of,
)
from pipeline.core.windows import (
    Window,
    format_boundary,
    format_ms,
    parse_ms,
    window,
)

DISABLED = "disabled"
HARD_CAP_EXCEEDED = "hard-cap-exceeded"
SOFT_CAP_EXCEEDED = "soft-cap-exceeded"
OK = "ok"
STATUSES = (DISABLED, HARD_CAP_EXCEEDED, SOFT_CAP_EXCEEDED, OK)

NO_POLICY = "no-policy"
ESTIMATED_EXCEEDS_CAP = "estimated-exceeds-cap"
STALE_REASON = "stale"

INITIALIZING = "INITIALIZING"
LIVE = "LIVE"
STALE = "STALE"
OFF = "OFF"

_HEARTBEAT = "!heartbeat|"
_TIE_KINDS = ("user", "group", "port", "org", "all")


class State(msgspec.Struct, frozen=True, gc=False):
    """What a record on ``budget.state`` says, but for its version and ``as_of``."""

    scope: str
    unit: str
    period: str
    period_start_ms: int
    resets_at_ms: int
    status: str
    used: int
    soft_cap: int | None
    hard_cap: int | None
    unpriced_events: int
    on_stale: str

    @property
    def key(self) -> str:
        """The record key ``scope|unit|period``."""
        return record_key(self.scope, self.unit, self.period)

    @property
    def remaining(self) -> int | None:
        """Hard cap − used, negative when it is exceeded; None without a hard cap."""
        return None if self.hard_cap is None else self.hard_cap - self.used


class StateRecord(NamedTuple):
    """A state with the two fields that its publisher assigns."""

    state: State
    version: int
    as_of_ms: int


def status_of(policy: Policy, used: int, now_ms: int) -> str:
    """``disabled``, ``hard-cap-exceeded``, ``soft-cap-exceeded`` or ``ok``: the first to apply."""
    if not policy.enabled:
        return DISABLED
    hard_cap = policy.hard_cap_at(now_ms)
    if hard_cap is not None and used >= hard_cap:
        return HARD_CAP_EXCEEDED
    soft_line = policy.soft_line_at(now_ms)
    return SOFT_CAP_EXCEEDED if soft_line is not None and used > soft_line else OK


def state_of(
    policy: Policy, scope: str, span: Window, used: int, unpriced_events: int, now_ms: int
) -> State:
    """The state of ``scope`` (the policy's own, or an id under a wildcard) at ``now_ms``."""
    return State(
        scope,
        policy.unit,
        policy.period,
        span.start_ms,
        span.resets_at_ms,
        status_of(policy, used, now_ms),
        used,
        policy.soft_cap,
        policy.hard_cap_at(now_ms),
        unpriced_events,
        policy.on_stale,
    )


def state_fields(state: State, version: int, as_of_ms: int) -> dict[str, Any]:
    """The state as on the wire, in the contract's order."""
    amount: Callable[[int], int | str] = format_nano if state.unit == "cost" else int
    remaining = state.remaining
    return {
        "scope": format_scope(state.scope),
        "unit": state.unit,
        "period": state.period,
        "period_start": format_boundary(state.period_start_ms),
        "resets_at": format_boundary(state.resets_at_ms),
        "status": state.status,
        "used": amount(state.used),
        "remaining": None if remaining is None else amount(remaining),
        "soft_cap": None if state.soft_cap is None else amount(state.soft_cap),
        "hard_cap": None if state.hard_cap is None else amount(state.hard_cap),
        "unpriced_events": state.unpriced_events,
        "version": version,
        "as_of": format_ms(as_of_ms),
        "on_stale": state.on_stale,
    }


def state_json(state: State, version: int, as_of_ms: int) -> bytes:
    """The record value of ``state``."""
    return _encode_json(state_fields(state, version, as_of_ms))


def parse_state(key: str | bytes, value: bytes) -> StateRecord:
    """Reads a record of ``budget.state``; raises ``CorruptRecord`` when it is no state.

    The key decides the scope: JSON alone cannot tell the id ``*`` from the wildcard.
    """
    try:
        scope, unit, period = parse_key(key)
        body = _decode_json(value)
        if not isinstance(body, dict):
            raise InvalidField("state", "is no object")
        if (body["scope"], body["unit"], body["period"]) != (format_scope(scope), unit, period):
            raise InvalidField("key", "does not match the body")
        amount = _parse_wide_nano if unit == "cost" else _integer
        soft_cap, hard_cap = body["soft_cap"], body["hard_cap"]
        if body["status"] not in STATUSES or body["on_stale"] not in ("allow", "deny"):
            raise InvalidField("status", "or on_stale has an unknown value")
        state = State(
            scope,
            unit,
            period,
            parse_ms(body["period_start"]),
            parse_ms(body["resets_at"]),
            body["status"],
            amount(body["used"]),
            None if soft_cap is None else amount(soft_cap),
            None if hard_cap is None else amount(hard_cap),
            _integer(body["unpriced_events"]),
            body["on_stale"],
        )
        return StateRecord(state, _integer(body["version"]), parse_ms(body["as_of"]))
    except (InvalidField, KeyError, TypeError, ValueError) as error:
        shown = key.decode(errors="replace") if isinstance(key, bytes) else key
        raise CorruptRecord(f"budget.state record {shown!r}: {error}") from error


class Heartbeat(NamedTuple):
    """What partition ``partition`` of ``budget.state`` contains, and up to when.

    ``through``: by partition of ``usage.events``, the next offset that is contained.
    """

    partition: int
    as_of_ms: int
    through: dict[int, int]


def heartbeat_key(partition: int) -> str:
    """The record key of the heartbeat of one partition of ``budget.state``."""
    return f"{_HEARTBEAT}{partition}"


def is_heartbeat(key: str | bytes) -> bool:
    """Whether the record under ``key`` is a heartbeat rather than a state."""
    if isinstance(key, bytes):
        return key.startswith(_HEARTBEAT.encode())
    return key.startswith(_HEARTBEAT)


def heartbeat_json(heartbeat: Heartbeat) -> bytes:
    """The record value of ``heartbeat``."""
    through = {str(source): heartbeat.through[source] for source in sorted(heartbeat.through)}
    return msgspec.json.encode({"as_of": format_ms(heartbeat.as_of_ms), "through": through})


def parse_heartbeat(key: str | bytes, value: bytes) -> Heartbeat:
    """Reads a heartbeat record; raises ``CorruptRecord`` when it is none."""
    text = key.decode(errors="replace") if isinstance(key, bytes) else key
    try:
        body = _decode_json(value)
        through = {int(source): _integer(offset) for source, offset in body["through"].items()}
        return Heartbeat(int(text.removeprefix(_HEARTBEAT)), parse_ms(body["as_of"]), through)
    except (InvalidField, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptRecord(f"budget.state record {text!r}: {error}") from error


class Request(msgspec.Struct, frozen=True, gc=False):
    """A call that asks to go ahead; an empty id is not asked about.

    ``estimated_cost_nano`` comes from ``estimate_cost_nano``.
    """

    port_id: str = ""
    user_id: str = ""
    organization_id: str = ""
    group_id: str = ""
    estimated_tokens: int = 0
    estimated_cost_nano: int = 0

    @property
    def scopes(self) -> tuple[str, ...]:
        """The internal scopes whose policies are asked."""
        return event_scopes(self.port_id, self.organization_id, self.group_id, self.user_id)


def estimate_cost_nano(
    estimated_cost_nano: int | None,
    estimated_tokens: int,
    dearest_nano_per_token: Fraction | int | None,
) -> int:
    """The cost estimate: the given one, else tokens at the model's dearest token price, else 0.

    A fraction of a nano is rounded up, as an estimate should rather be too high.
    """
    if estimated_cost_nano is not None:
        return estimated_cost_nano
    if dearest_nano_per_token is None:
        return 0
    return -(-estimated_tokens * Fraction(dearest_nano_per_token) // 1)


class Asked(msgspec.Struct, frozen=True, gc=False):
    """One policy that is asked: its state for the id, and how far that can be trusted.

    ``reserved`` is what this process let through and the state does not contain yet.
    """

    state: State
    as_of_ms: int
    freshness: str = LIVE
    reserved: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a call, from the one policy that decided.

    ``used``, ``hard_cap`` and ``remaining`` are token counts, or ``Decimal`` units of currency
    for a cost budget. ``remaining`` is ``math.inf`` where nothing limits. ``scope`` is the one
    asked, as JSON shows it; the fields of a policy are None when none decided.
    """

    allowed: bool
    reason: str
    scope: str | None = None
    unit: str | None = None
    period: str | None = None
    used: int | Decimal | None = None
    hard_cap: int | Decimal | None = None
    remaining: int | Decimal | float = inf
    soft_cap_warning: bool = False
    resets_at: str | None = None
    as_of: str | None = None
    freshness: str = LIVE


def verdict_fields(verdict: Verdict) -> dict[str, Any]:
    """The verdict as on the wire: decimal strings for cost, null for no limit."""
    fields = msgspec.structs.asdict(verdict)
    for name in ("used", "hard_cap", "remaining"):
        value = fields[name]
        if isinstance(value, Decimal):
            fields[name] = format_nano(int(Fraction(value) * NANO_PER_UNIT))
        elif value == inf:
            fields[name] = None
    return fields


class StateTable:
    """The newest states, as a reader of ``budget.state`` knows them."""

    def __init__(self) -> None:
        self._by_scope: dict[str, dict[tuple[str, str], StateRecord]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_scope.values()))

    def put(self, key: str | bytes, value: bytes | None) -> StateRecord | None:
        """Takes a record (not a heartbeat); returns it unless it is older than the one known.

        Raises ``CorruptRecord`` or ``InvalidField`` for what is no state.
        """
        if value is None:
            self._remove(parse_key(key))
            return None
        record = parse_state(key, value)
        state = record.state
        slots = self._by_scope.setdefault(state.scope, {})
        known = slots.get((state.unit, state.period))
        if known is not None and known.version > record.version:
            return None
        slots[state.unit, state.period] = record
        return record

    def get(self, scope: str, unit: str, period: str) -> StateRecord | None:
        """The record under exactly this key."""
        return self._by_scope.get(scope, {}).get((unit, period))

    def records(self) -> Iterable[StateRecord]:
        """Every record."""
        for slots in self._by_scope.values():
            yield from slots.values()

    def asked(self, scopes: Iterable[str], now_ms: int) -> list[StateRecord]:
        """The states that count for ``scopes`` at ``now_ms``.

        An id without a record takes its wildcard's, with nothing used; a state whose period is
        over takes the running one, with nothing used.
        """
        found: list[StateRecord] = []
        for scope in scopes:
            own = self._by_scope.get(scope, {})
            found += [_as_now(record, now_ms) for record in own.values()]
            wildcard = wildcard_of(scope)
            if wildcard is not None and wildcard in self._by_scope:
                for slot, record in self._by_scope[wildcard].items():
                    if slot not in own:
                        state = msgspec.structs.replace(record.state, scope=scope)
                        found.append(_as_now(record._replace(state=state), now_ms))
        return found

    def _remove(self, key: RecordKey) -> None:
        slots = self._by_scope.get(key.scope)
        if slots is not None:
            slots.pop((key.unit, key.period), None)
            if not slots:
                del self._by_scope[key.scope]


def decide(
    asked: Sequence[Asked],
    request: Request,
    freshness: str = LIVE,
    on_stale: str = "allow",
) -> Verdict:
    """The verdict on ``request`` from all policies that apply.

    ``asked`` comes from ``StateTable.asked`` (or the same made from elsewhere). ``freshness``
    is that of the reader as a whole; ``on_stale`` decides while no policy is known.
    """
    if freshness == OFF:
        return Verdict(allowed=True, reason=NO_POLICY, freshness=OFF)
    answers = [_answer(policy, request, freshness) for policy in asked]
    refusals = [answer for answer in answers if not answer.allowed]
    if refusals:
        return _verdict(min(refusals, key=_refusal_order))
    if freshness == INITIALIZING or (freshness == STALE and not answers):
        # Policies that nobody has heard of yet may exist.
        allowed = on_stale != "deny"
        if not allowed or not answers:
            return Verdict(allowed=allowed, reason=STALE_REASON, freshness=freshness)
    if not answers:
        return Verdict(allowed=True, reason=NO_POLICY, freshness=freshness)
    return _verdict(min(answers, key=_permit_order) if len(answers) > 1 else answers[0])


def decide_all(asked: Sequence[Asked], request: Request, freshness: str = LIVE) -> list[Verdict]:
    """What each policy says on its own, in the order in which ``decide`` would prefer them."""
    answers = [_answer(policy, request, freshness) for policy in asked]
    refusals = sorted((a for a in answers if not a.allowed), key=_refusal_order)
    permits = sorted((a for a in answers if a.allowed), key=_permit_order)
    return [_verdict(answer) for answer in refusals + permits]


class _Answer(NamedTuple):
    """What one policy says; ``remaining`` None means that it sets no limit."""

    allowed: bool
    reason: str
    state: State
    used: int
    remaining: int | None
    soft_cap_warning: bool
    as_of_ms: int
    freshness: str


def _answer(asked: Asked, request: Request, reader: str) -> _Answer:
    state = asked.state
    used = state.used + asked.reserved
    freshness = asked.freshness if reader == LIVE else reader
    limited = state.status != DISABLED and state.hard_cap is not None
    remaining = state.hard_cap - used if limited and state.hard_cap is not None else None

    def answer(allowed: bool, reason: str, warning: bool = False) -> _Answer:
        fields = (state, used, remaining, warning, asked.as_of_ms, freshness)
        return _Answer(allowed, reason, *fields)

    if state.status == DISABLED:
        return answer(True, DISABLED)
    if freshness != LIVE:
        return answer(state.on_stale != "deny", STALE_REASON, _above_soft_line(state, used))
    if remaining is not None and remaining <= 0:
        return answer(False, HARD_CAP_EXCEEDED)
    is_cost = state.unit == "cost"
    estimate = request.estimated_cost_nano if is_cost else request.estimated_tokens
    if remaining is not None and estimate > remaining:
        return answer(False, ESTIMATED_EXCEEDS_CAP)
    return answer(True, OK, _above_soft_line(state, used))


def _above_soft_line(state: State, used: int) -> bool:
    if state.soft_cap is not None:
        return used > state.soft_cap
    # A state does not carry the percentage; its status does say which side it is on.
    return state.status == SOFT_CAP_EXCEEDED


def _refusal_order(answer: _Answer) -> tuple[int, int, int, int]:
    return (-answer.state.resets_at_ms, *_tie_order(answer.state))


def _permit_order(answer: _Answer) -> tuple[int, Fraction | int, int, int, int]:
    ties = _tie_order(answer.state)
    hard_cap = answer.state.hard_cap
    if answer.remaining is None or not hard_cap:
        return (2 if answer.reason == DISABLED else 1, 0, *ties)
    return (0, Fraction(answer.remaining, hard_cap), *ties)


def _tie_order(state: State) -> tuple[int, int, int]:
    kind = scope_kind(state.scope)
    return _TIE_KINDS.index(kind), UNITS.index(state.unit), PERIODS.index(state.period)


def _verdict(answer: _Answer) -> Verdict:
    state = answer.state
    amount = _units if state.unit == "cost" else int
    return Verdict(
        allowed=answer.allowed,
        reason=answer.reason,
        scope=format_scope(state.scope) if state.scope != ALL else ALL,
        unit=state.unit,
        period=state.period,
        used=amount(answer.used),
        hard_cap=None if state.hard_cap is None else amount(state.hard_cap),
        remaining=inf if answer.remaining is None else amount(answer.remaining),
        soft_cap_warning=answer.soft_cap_warning,
        resets_at=format_boundary(state.resets_at_ms),
        as_of=format_ms(answer.as_of_ms),
        freshness=answer.freshness,
    )


def _as_now(record: StateRecord, now_ms: int) -> StateRecord:
    state = record.state
    if now_ms < state.resets_at_ms:
        return record
    span = window(state.period, now_ms)
    if state.status == DISABLED:
        status = DISABLED
    else:
        status = HARD_CAP_EXCEEDED if state.hard_cap == 0 else OK
    fresh = msgspec.structs.replace(
        state,
        period_start_ms=span.start_ms,
        resets_at_ms=span.resets_at_ms,
        status=status,
        used=0,
        unpriced_events=0,
    )
    return record._replace(state=fresh)


_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode


def _units(nano: int) -> Decimal:
    return Decimal(format_nano(nano))


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not an integer")
    return value


def _parse_wide_nano(text: object) -> int:
    """Nanos of a decimal string without the bound of 64 bits: sums may exceed it."""
    ratio = Fraction(parse_decimal(text)) * NANO_PER_UNIT
    if ratio.denominator != 1:
        raise ValueError(f"{text!r} has more than nine decimals")
    return ratio.numerator
