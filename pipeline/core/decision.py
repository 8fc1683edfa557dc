"""Whether a call may go ahead: the contract's decision, section 6, for the SDK and the API alike.

Pure and fast: what a policy says is worked out once, when its state or what is reserved beside it
changes; asking it then costs one comparison.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from math import inf
from typing import Any, TypeVar

import msgspec

from pipeline.core.budgets import (
    DISABLED,
    HARD_CAP_EXCEEDED,
    OK,
    SOFT_CAP_EXCEEDED,
    State,
)
from pipeline.core.money import NANO_PER_UNIT, format_nano
from pipeline.core.scopes import PERIODS, UNITS, event_scopes, format_scope, scope_kind
from pipeline.core.windows import format_boundary, format_ms

NO_POLICY = "no-policy"
ESTIMATED_EXCEEDS_CAP = "estimated-exceeds-cap"
STALE_REASON = "stale"
REASONS = (OK, NO_POLICY, DISABLED, HARD_CAP_EXCEEDED, ESTIMATED_EXCEEDS_CAP, STALE_REASON)

INITIALIZING = "INITIALIZING"
LIVE = "LIVE"
STALE = "STALE"
OFF = "OFF"

_TIE_OF_KIND = {kind: rank for rank, kind in enumerate(("user", "group", "port", "org", "all"))}
_TIE_OF_UNIT = {unit: rank for rank, unit in enumerate(UNITS)}
_TIE_OF_PERIOD = {period: rank for rank, period in enumerate(PERIODS)}
_NOTHING_FITS = -1

Rank = tuple["int | float | _Share", ...]


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


class Asked:
    """One policy that is asked: its state for the id, and how far that can be trusted.

    ``reserved`` is what this process let through and the state does not contain yet. ``room`` is
    the largest estimate that passes: below 0 where none does, ``math.inf`` where nothing limits.
    All but ``as_of_ms`` stay as they were given.
    """

    __slots__ = (
        "_permit",
        "_rank",
        "as_of_ms",
        "freshness",
        "is_cost",
        "reserved",
        "room",
        "state",
    )

    def __init__(
        self, state: State, as_of_ms: int, freshness: str = LIVE, reserved: int = 0
    ) -> None:
        self.state = state
        self.as_of_ms = as_of_ms
        self.freshness = freshness
        self.reserved = reserved
        self.is_cost = state.unit == "cost"
        self._rank: Rank | None = None
        self._permit: tuple[int, Verdict] | None = None
        hard_cap = state.hard_cap
        self.room: int | float = inf
        if state.status == DISABLED:
            return
        if freshness != LIVE:
            if state.on_stale == "deny":
                self.room = _NOTHING_FITS
        elif hard_cap is not None:
            remaining = hard_cap - state.used - reserved
            self.room = remaining if remaining > 0 else _NOTHING_FITS

    @property
    def remaining(self) -> int | None:
        """Hard cap − used − reserved; None where the policy sets no limit."""
        state = self.state
        if state.status == DISABLED or state.hard_cap is None:
            return None
        return state.hard_cap - state.used - self.reserved

    @property
    def rank(self) -> Rank:
        """Among policies that permit, the least answers: the lowest remaining ÷ hard cap."""
        rank = self._rank
        if rank is None:
            rank = self._rank = self._make_rank()
        return rank

    @property
    def refusal_rank(self) -> tuple[int, ...]:
        """Among policies that refuse, the least answers: the latest reset."""
        return (-self.state.resets_at_ms, *_ties(self.state))

    def under(self, freshness: str) -> "Asked":
        """The same policy as a reader in that condition has to ask it."""
        return Asked(self.state, self.as_of_ms, freshness, self.reserved)

    def permit(self) -> Verdict:
        """The verdict of this policy on a call that it lets pass."""
        known = self._permit
        if known is not None and known[0] == self.as_of_ms:
            return known[1]
        if self.state.status == DISABLED:
            verdict = self._verdict(True, DISABLED)
        else:
            reason = OK if self.freshness == LIVE else STALE_REASON
            verdict = self._verdict(True, reason, self._above_soft_line())
        self._permit = (self.as_of_ms, verdict)
        return verdict

    def refuse(self) -> Verdict:
        """The verdict of this policy on a call that it does not let pass."""
        if self.freshness != LIVE:
            return self._verdict(False, STALE_REASON, self._above_soft_line())
        fits_nothing = self.room == _NOTHING_FITS
        return self._verdict(False, HARD_CAP_EXCEEDED if fits_nothing else ESTIMATED_EXCEEDS_CAP)

    def _make_rank(self) -> Rank:
        remaining, hard_cap = self.remaining, self.state.hard_cap
        ties = _ties(self.state)
        if remaining is None or not hard_cap:
            return (2 if self.state.status == DISABLED else 1, 0, *ties)
        # Division of integers is rounded correctly, so equal floats are all that needs a look.
        return (0, remaining / hard_cap, _Share(remaining, hard_cap), *ties)

    def _above_soft_line(self) -> bool:
        state = self.state
        if state.soft_cap is not None:
            return state.used + self.reserved > state.soft_cap
        # A state does not carry the percentage; its status does say which side it is on, and no
        # line is above the hard cap.
        used, hard_cap = state.used + self.reserved, state.hard_cap
        return state.status == SOFT_CAP_EXCEEDED or (hard_cap is not None and used >= hard_cap > 0)

    def _verdict(self, allowed: bool, reason: str, warning: bool = False) -> Verdict:
        state, remaining = self.state, self.remaining
        amount = _units if self.is_cost else int
        return Verdict(
            allowed=allowed,
            reason=reason,
            scope=format_scope(state.scope),
            unit=state.unit,
            period=state.period,
            used=amount(state.used + self.reserved),
            hard_cap=None if state.hard_cap is None else amount(state.hard_cap),
            remaining=inf if remaining is None else amount(remaining),
            soft_cap_warning=warning,
            resets_at=format_boundary(state.resets_at_ms),
            as_of=format_ms(self.as_of_ms),
            freshness=self.freshness,
        )


Policy = TypeVar("Policy", bound=Asked)


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
    dearest = dearest_nano_per_token
    return -(-estimated_tokens * dearest.numerator // dearest.denominator)


def decide(
    asked: Sequence[Asked],
    request: Request,
    freshness: str = LIVE,
    on_stale: str = "allow",
) -> Verdict:
    """The verdict on ``request`` from all policies that apply.

    ``freshness`` is that of the reader as a whole; ``on_stale`` decides while no policy is known.
    """
    if freshness == OFF:
        return Verdict(allowed=True, reason=NO_POLICY, freshness=OFF)
    if freshness != LIVE:
        asked = [policy.under(freshness) for policy in asked]
    chosen = choose(asked, request.estimated_tokens, request.estimated_cost_nano)
    if chosen is None:
        return decide_unsure(None, freshness, on_stale)
    policy, allowed = chosen
    answer = policy.permit() if allowed else policy.refuse()
    return answer if freshness == LIVE else decide_unsure(answer, freshness, on_stale)


def choose(asked: Iterable[Policy], tokens: int, cost_nano: int) -> tuple[Policy, bool] | None:
    """The policy that answers a call with these estimates, and whether it permits; None without."""
    best: Policy | None = None
    refusing: list[Policy] | None = None
    for policy in asked:
        if (cost_nano if policy.is_cost else tokens) > policy.room:
            refusing = [policy] if refusing is None else [*refusing, policy]
        elif best is None or policy.rank < best.rank:
            best = policy
    if refusing is not None:
        return min(refusing, key=_refusal_rank), False
    return None if best is None else (best, True)


def decide_unsure(answer: Verdict | None, freshness: str, on_stale: str) -> Verdict:
    """The verdict, given what the known policies say and how much the reader may not know.

    While a reader is initializing, or stale without a policy, policies that it has not heard of
    may exist: then ``on_stale`` decides.
    """
    if answer is not None and (freshness != INITIALIZING or not answer.allowed):
        return answer
    if freshness == LIVE:
        return Verdict(allowed=True, reason=NO_POLICY)
    allowed = on_stale != "deny"
    if answer is not None and allowed:
        return answer
    return Verdict(allowed=allowed, reason=STALE_REASON, freshness=freshness)


def decide_all(asked: Sequence[Asked], request: Request, freshness: str = LIVE) -> list[Verdict]:
    """What each policy says on its own, in the order in which ``decide`` would prefer them."""
    if freshness != LIVE:
        asked = [policy.under(freshness) for policy in asked]
    tokens, cost_nano = request.estimated_tokens, request.estimated_cost_nano
    refusing = [p for p in asked if (cost_nano if p.is_cost else tokens) > p.room]
    permitting = [p for p in asked if (cost_nano if p.is_cost else tokens) <= p.room]
    refusals = [policy.refuse() for policy in sorted(refusing, key=_refusal_rank)]
    return refusals + [policy.permit() for policy in sorted(permitting, key=lambda p: p.rank)]


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


class _Share:
    """remaining ÷ hard cap, compared exactly: what tells shares apart that are equal as floats."""

    __slots__ = ("_hard_cap", "_remaining")

    def __init__(self, remaining: int, hard_cap: int) -> None:
        self._remaining = remaining
        self._hard_cap = hard_cap

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Share):
            return NotImplemented
        return self._remaining * other._hard_cap == other._remaining * self._hard_cap

    def __lt__(self, other: "_Share") -> bool:
        return self._remaining * other._hard_cap < other._remaining * self._hard_cap

    __hash__ = None  # type: ignore[assignment]


def _refusal_rank(policy: Asked) -> tuple[int, ...]:
    return policy.refusal_rank


def _ties(state: State) -> tuple[int, int, int]:
    kind = _TIE_OF_KIND[scope_kind(state.scope)]
    return kind, _TIE_OF_UNIT[state.unit], _TIE_OF_PERIOD[state.period]


def _units(nano: int) -> Decimal:
    return Decimal(format_nano(nano))
