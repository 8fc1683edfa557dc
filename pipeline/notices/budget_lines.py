"""Budgets over their lines: which alerts their states call for; pure.

The soft line and the hard cap of a policy are told once each in a period. A line is what it is at
an amount: after a cap was raised, reaching the higher one is told again in the same period, while
one that was lowered, or whose extra has ended, is not.
"""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final, Literal, NamedTuple

from pipeline.core.budgets import (
    HARD_CAP_EXCEEDED,
    SOFT_CAP_EXCEEDED,
    State,
    StateRecord,
    state_fields,
)
from pipeline.core.money import format_nano
from pipeline.core.names import with_name
from pipeline.core.policies import Policy
from pipeline.core.scopes import RecordKey, format_scope, record_key, wildcard_of
from pipeline.core.windows import format_boundary, window
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft
from pipeline.reports.amounts import period_name

KEEP_DAYS: Final = 8
"""How long an alert is remembered after its period is over."""

Line = Literal["soft", "hard"]
_TYPES: Final[dict[Line, str]] = {"soft": "budget.soft_line", "hard": "budget.hard_cap"}
_EXCEEDED = (SOFT_CAP_EXCEEDED, HARD_CAP_EXCEEDED)


class Crossed(NamedTuple):
    """A line of a policy that a budget has reached, and where it lies."""

    line: Line
    amount: int


class OverLines:
    """Which budgets are over a line, and which of them have not been looked at since they changed.

    Takes every change of the mirror of ``budget.state``; what it keeps is bounded by how many
    budgets are over a line.
    """

    def __init__(self) -> None:
        self._over: dict[RecordKey, StateRecord] = {}
        self._unseen: dict[RecordKey, None] = {}

    def take(self, key: RecordKey, record: StateRecord | None) -> None:
        """The newest state under ``key``; None when it was taken away."""
        if record is None or record.state.status not in _EXCEEDED or record.state.used <= 0:
            self._over.pop(key, None)
            self._unseen.pop(key, None)
            return
        self._over[key] = record
        self._unseen[key] = None

    def unseen(self, most: int) -> list[tuple[RecordKey, StateRecord]]:
        """The first of those to be looked at; they stay until ``seen``."""
        return [(key, self._over[key]) for key in islice(self._unseen, most)]

    def postpone(self, key: RecordKey) -> None:
        """Looked at again after all others."""
        self._unseen.pop(key, None)
        self._unseen[key] = None

    def seen(self, key: RecordKey) -> None:
        """Its lines have been told."""
        self._unseen.pop(key, None)


def crossed(state: State, policy: Policy, now_ms: int) -> list[Crossed]:
    """The lines of a budget that is over one, the lower first.

    A burst may pass both at once. Where the soft line is the cap itself only the cap is told.
    """
    hard_cap = state.hard_cap
    soft_line = policy.soft_line_at(now_ms)
    found: list[Crossed] = []
    is_under_cap = hard_cap is None or (soft_line or 0) < hard_cap
    if soft_line is not None and state.used > soft_line and is_under_cap:
        found.append(Crossed("soft", soft_line))
    elif state.status == SOFT_CAP_EXCEEDED:  # the policy has changed meanwhile
        found.append(Crossed("soft", soft_line or 0))
    if state.status == HARD_CAP_EXCEEDED and hard_cap is not None:
        found.append(Crossed("hard", hard_cap))
    return found


def policy_of(state: State, policies: Mapping[str, Policy]) -> Policy | None:
    """The policy that a state belongs to: its own, or its wildcard's."""
    own = policies.get(state.key)
    wildcard = wildcard_of(state.scope)
    if own is not None or wildcard is None:
        return own
    return policies.get(record_key(wildcard, state.unit, state.period))


def lines_to_tell(
    state: State, policy: Policy, now_ms: int, is_news: Callable[[Mapping[str, int]], bool]
) -> list[Crossed]:
    """The lines a budget is over that have not been told; none once its period is over."""
    if state.resets_at_ms <= now_ms:
        return []
    return [line for line in crossed(state, policy, now_ms) if is_news(covers_of(state, line))]


def told_period_ms(state: State) -> int:
    """The start of the span in which a line is told once: the period, and for ``rolling-30d``,
    which is another one each day, the calendar month that it ends in."""
    if state.period != "rolling-30d":
        return state.period_start_ms
    return window("month", state.resets_at_ms - 1).start_ms


def covers_of(state: State, line: Crossed) -> dict[str, int]:
    """What an alert on a line covers: the policy, the period and the line, at its amount."""
    started = format_boundary(told_period_ms(state))[:10]
    return {f"budget|{state.key}|{started}|{line.line}": line.amount}


def budget_draft(
    record: StateRecord,
    line: Crossed,
    now_ms: int,
    currency: str,
    names: Mapping[str, str],
    notify: tuple[str, ...],
) -> Draft:
    """The alert on a line of a budget, for those whom the policy names."""
    state = record.state
    ends_ms = max(state.resets_at_ms, window("month", told_period_ms(state)).resets_at_ms)
    covers = covers_of(state, line)
    kind = _TYPES[line.line]
    shown = _shown(state, currency)
    scope = format_scope(state.scope)
    name = names.get(scope)
    who = with_name(scope, name)
    verb = "has reached its hard cap" if line.line == "hard" else "is over its soft line"
    subject = (
        f"{who} {verb}: {shown(state.used)} of {shown(line.amount)} per {period_name(state.period)}"
    )
    data: dict[str, Any] = {
        "line": line.line,
        "line_amount": format_nano(line.amount) if state.unit == "cost" else line.amount,
        "currency": currency if state.unit == "cost" else None,
        "name": name,
        "state": state_fields(*record),
    }
    facts = [
        ("Budget", f"{who}, {state.unit} per {period_name(state.period)}"),
        ("Used", shown(state.used)),
        ("Soft line" if line.line == "soft" else "Hard cap", shown(line.amount)),
        *([("Hard cap", shown(state.hard_cap))] if line.line == "soft" and state.hard_cap else []),
        ("Period began", format_boundary(state.period_start_ms)),
        ("Resets at", format_boundary(state.resets_at_ms)),
    ]
    message = letter(kind, subject, _sentence(line, state), facts, now_ms, data)
    draft_id = f"{next(iter(covers))}|{line.amount}"
    return Draft(draft_id, kind, covers, ends_ms + KEEP_DAYS * DAY_MS, message, notify)


def _sentence(line: Crossed, state: State) -> str:
    if line.line == "hard":
        return "Calls that ask first are refused until the budget resets or its cap is raised."
    if state.hard_cap is None:
        return "Nothing is refused: the budget has no hard cap."
    return "Nothing is refused yet. Calls that ask first are once the hard cap is reached."


def _shown(state: State, currency: str) -> Callable[[int], str]:
    if state.unit == "cost":
        return lambda nano: f"{currency} {format_nano(nano)}"
    return lambda tokens: f"{tokens:,} tokens"
