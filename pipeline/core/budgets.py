"""States of budgets on the wire, and the table of the newest ones (contract, section 6).

Amounts are tokens, or nanos where ``unit`` is ``cost``; instants are milliseconds UTC.
"""

from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from sys import intern
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pipeline.core.errors import CorruptRecord, InvalidField
from pipeline.core.money import NANO_PER_UNIT, format_nano, parse_decimal
from pipeline.core.scopes import (
    RecordKey,
    format_scope,
    parse_key,
    record_key,
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

if TYPE_CHECKING:
    # States are read where no policy is, and there this would double the time of the import.
    from pipeline.core.policies import Policy

_HEARTBEAT = "!heartbeat|"
_MILLION = 1_000_000


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


def status_of(policy: "Policy", used: int, now_ms: int) -> str:
    """``disabled``, ``hard-cap-exceeded``, ``soft-cap-exceeded`` or ``ok``: the first to apply."""
    if not policy.enabled:
        return DISABLED
    hard_cap = policy.hard_cap_at(now_ms)
    if hard_cap is not None and used >= hard_cap:
        return HARD_CAP_EXCEEDED
    soft_line = policy.soft_line_at(now_ms)
    return SOFT_CAP_EXCEEDED if soft_line is not None and used > soft_line else OK


def cap_share_ppm(state: State, now_ms: int) -> int:
    """Used of the hard cap in millionths, -1 without a cap that is in force."""
    if state.hard_cap is None or state.status == DISABLED:
        return -1
    used = 0 if now_ms >= state.resets_at_ms else max(0, state.used)
    return _MILLION * (1 + used) if state.hard_cap <= 0 else used * _MILLION // state.hard_cap


def state_of(
    policy: "Policy", scope: str, span: Window, used: int, unpriced_events: int, now_ms: int
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


def state_json(state: State, version: int, as_of_ms: int) -> bytes:
    """The record value of ``state``: the fields of the contract in its order.

    Put together from pieces of which most are shared by many states.
    """
    is_cost = state.unit == "cost"
    amount = _nano_json if is_cost else _integer_json
    used, hard_cap = state.used, state.hard_cap
    return b"".join(
        (
            b'{"scope":',
            _encode_json(format_scope(state.scope)),
            _before_used(
                state.unit, state.period, state.period_start_ms, state.resets_at_ms, state.status
            ),
            amount(used),
            b',"remaining":',
            b"null" if hard_cap is None else amount(hard_cap - used),
            _caps(is_cost, state.soft_cap, hard_cap),
            b"%d" % state.unpriced_events,
            _after_events(version, as_of_ms, state.on_stale),
        )
    )


def state_fields(state: State, version: int, as_of_ms: int) -> dict[str, Any]:
    """The state as on the wire, in the contract's order."""
    return _decode_json(state_json(state, version, as_of_ms))


def _integer_json(number: int) -> bytes:
    return b"%d" % number


def _nano_json(nano: int) -> bytes:
    return b'"%b"' % format_nano(nano).encode()


@lru_cache(maxsize=1024)
def _before_used(
    unit: str, period: str, period_start_ms: int, resets_at_ms: int, status: str
) -> bytes:
    fields = {
        "unit": unit,
        "period": period,
        "period_start": format_boundary(period_start_ms),
        "resets_at": format_boundary(resets_at_ms),
        "status": status,
    }
    return b',%b,"used":' % _encode_json(fields)[1:-1]


@lru_cache(maxsize=1024)
def _caps(is_cost: bool, *caps: int | None) -> bytes:
    amount = _nano_json if is_cost else _integer_json
    soft, hard = (b"null" if cap is None else amount(cap) for cap in caps)
    return b',"soft_cap":%b,"hard_cap":%b,"unpriced_events":' % (soft, hard)


@lru_cache(maxsize=1024)
def _after_events(version: int, as_of_ms: int, on_stale: str) -> bytes:
    fields = {"version": version, "as_of": format_ms(as_of_ms), "on_stale": on_stale}
    return b",%b" % _encode_json(fields)[1:]


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
            # Words that all states share: whoever keeps many of them keeps each word once.
            intern(unit),
            intern(period),
            parse_ms(body["period_start"]),
            parse_ms(body["resets_at"]),
            intern(body["status"]),
            amount(body["used"]),
            None if soft_cap is None else amount(soft_cap),
            None if hard_cap is None else amount(hard_cap),
            _integer(body["unpriced_events"]),
            intern(body["on_stale"]),
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
