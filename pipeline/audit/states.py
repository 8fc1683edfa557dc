"""``budget.state`` against the recount, at what its heartbeats claim to contain.

A state may contain more than the heartbeat behind it says, when not everything that was due could
be sent at once. So the newest heartbeats of a partition are tried, and all of its states must agree
at one of them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.recount.cells import Cells, Entry, Totals, totals_of
from pipeline.audit.recount.count import PartitionCount, Recount
from pipeline.audit.recount.places import home_of
from pipeline.audit.recount.policies import Budget
from pipeline.audit.recount.states import MONEY_FIELDS, ScopeDays, expected_states
from pipeline.audit.state_log import Heartbeat, StateLog

PART = "state"
VERSION_BITS = 36


# -- what the cells of all partitions add up to ----------------------------------------------------


class ScopeSums:
    """The cells of all source partitions added up, by home of the scope, at any ``through``.

    Only scopes that some budget asks for are kept.
    """

    def __init__(
        self, recount: Recount, openings: Iterable[Cells], budgets: Mapping[str, Budget]
    ) -> None:
        self._recount = recount
        self._kinds = {
            b.target.kind for b in budgets.values() if b.target.ident is None
        }  # fmt: skip
        self._scopes = {b.target.text for b in budgets.values()}
        self._sums: dict[int, dict[str, dict[int, list[int]]]] = {
            home: {} for home in range(recount.partitions)
        }
        for count in recount.counts.values():
            for scope, day, totals in count.cells.settled():
                self._add(scope, day, totals)
        for cells in openings:
            for (scope, day), totals in cells.items():
                self._add(scope, day, totals)

    def at(self, home: int, through: Mapping[int, int]) -> ScopeDays | None:
        """The sums of the scopes at ``home``; None where that lies before what is settled."""
        changed: dict[str, dict[int, list[int]]] = {}
        sums = self._sums[home]
        for partition, count in self._recount.counts.items():
            offset = through.get(partition, 0)
            if offset < count.cells.settled_to and count.records:
                return None
            for entry in count.cells.later(offset):
                self._overlay(changed, sums, home, entry)
        merged = {**sums, **changed}
        return {
            scope: {day: totals_of(cell) for day, cell in days.items()}
            for scope, days in merged.items()
        }

    def _overlay(
        self,
        changed: dict[str, dict[int, list[int]]],
        sums: Mapping[str, Mapping[int, list[int]]],
        home: int,
        entry: Entry,
    ) -> None:
        for scope in entry.scopes:
            if not self._is_asked(scope) or self._home(scope) != home:
                continue
            days = changed.get(scope)
            if days is None:
                days = {day: list(cell) for day, cell in sums.get(scope, {}).items()}
                changed[scope] = days
            _add(days.setdefault(entry.day, [0] * 6), entry.amounts)

    def _add(self, scope: str, day: int, totals: Totals) -> None:
        if self._is_asked(scope):
            days = self._sums[self._home(scope)].setdefault(scope, {})
            _add(days.setdefault(day, [0] * 6), totals)

    def _is_asked(self, scope: str) -> bool:
        return scope in self._scopes or scope.partition(":")[0] in self._kinds

    def _home(self, scope: str) -> int:
        return home_of(scope, self._recount.partitions)


def _add(cell: list[int], amounts: Totals) -> None:
    for at, amount in enumerate(amounts):
        cell[at] += amount


# -- comparing -------------------------------------------------------------------------------------


def compare_home(
    findings: Findings,
    log: StateLog,
    sums: ScopeSums,
    budgets: Mapping[str, Budget],
    partitions: int,
    *,
    money: bool = True,
    hides: Callable[[str], bool] = lambda scope: False,
) -> Heartbeat | None:
    """All states of one partition, but of scopes that ``hides`` names; where they agree.

    Where none does, ``findings`` get what differs at the newest one that can be judged, and None
    is returned. Without ``money`` what prices decide is left out.
    """
    newest: Findings | None = None
    for heartbeat in reversed(log.heartbeats):
        scopes = sums.at(log.partition, heartbeat.through)
        if scopes is None:
            continue
        scopes = {scope: days for scope, days in scopes.items() if not hides(scope)}
        expected = _expected(budgets, scopes, heartbeat.as_of_ms, log.partition, partitions)
        states = {k: v for k, v in log.at(heartbeat).items() if not hides(_scope(v))}
        tried = Findings()
        for difference in _differences(expected, states, money=money):
            _add_difference(tried, log.partition, difference)
            if newest is not None:
                break
        if not tried.count:
            findings.compared["states"] += len(states)
            return heartbeat
        newest = newest or tried
    if newest is None:
        what = "heartbeat that covers what the audit began with"
        findings.add(Kind.HEARTBEAT_MISSING, PART, what, "one", "none", partition=log.partition)
    else:
        findings.take(newest)
    return None


def compare_claims(
    findings: Findings,
    log: StateLog,
    counts: Mapping[int, PartitionCount],
    positions: Mapping[int, int],
    ends: Mapping[int, int],
    epoch: int,
) -> None:
    """Versions, and whether a heartbeat claims more than the tables had counted afterwards.

    ``positions`` are the tables', ``ends`` where the log of events ends; both were read after the
    states.
    """
    for key, offset, last, version in log.fallen:
        findings.add(
            Kind.STATE_VERSION,
            PART,
            "version (may only grow)",
            f"at least {last}",
            version,
            partition=log.partition,
            subject=key.decode(errors="replace"),
            offset=offset,
        )
    if log.highest_version >= (epoch + 1) << VERSION_BITS:
        what = "version (of a later epoch)"
        below = f"below {(epoch + 1) << VERSION_BITS}"
        findings.add(
            Kind.STATE_VERSION, PART, what, below, log.highest_version, partition=log.partition
        )
    for source, claimed in sorted(log.farthest.items()):
        count, position = counts.get(source), positions.get(source, 0)
        is_beyond = claimed > max(position, ends.get(source, 0))
        if is_beyond or (count is not None and count.has_records_between(position, claimed)):
            findings.add(
                Kind.HEARTBEAT_AHEAD,
                PART,
                f"through of source partition {source}",
                position,
                claimed,
                partition=log.partition,
                amounts={"records": claimed - position},
            )


def _expected(
    budgets: Mapping[str, Budget],
    scopes: ScopeDays,
    now_ms: int,
    home: int,
    partitions: int,
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    for key, state in expected_states(budgets, scopes, now_ms):
        if home_of(state["scope"], partitions) == home:
            yield key.encode(), state


class _StateDifference(NamedTuple):
    kind: Kind
    key: bytes
    what: str
    expected: object
    found: object
    amounts: Mapping[str, int]


def _differences(
    expected: Iterable[tuple[bytes, dict[str, Any]]],
    states: dict[bytes, bytes],
    *,
    money: bool,
) -> Iterator[_StateDifference]:
    left = set(states)
    for key, state in expected:
        left.discard(key)
        value = states.get(key)
        if value is None:
            yield _StateDifference(Kind.STATE_MISSING, key, "state", _used(state), "none", {})
            continue
        found = _object(value)
        skipped: Sequence[str] = () if money or state["unit"] == "tokens" else MONEY_FIELDS
        names = [n for n, v in state.items() if found.get(n, _ABSENT) != v and n not in skipped]
        if names:
            yield _StateDifference(
                Kind.STATE_CHANGED,
                key,
                ", ".join(names),
                ", ".join(f"{name} {state[name]}" for name in names),
                ", ".join(f"{name} {found.get(name, 'absent')}" for name in names),
                _amounts(state, found, names),
            )
    for key in sorted(left):
        found = _used(_object(states[key]))
        yield _StateDifference(Kind.STATE_UNEXPECTED, key, "state", "none", found, {})


_ABSENT = object()


def _add_difference(findings: Findings, partition: int, difference: _StateDifference) -> None:
    findings.add(
        difference.kind,
        PART,
        difference.what,
        difference.expected,
        difference.found,
        partition=partition,
        subject=difference.key.decode(errors="replace"),
        amounts=difference.amounts,
    )


def _amounts(
    state: Mapping[str, Any], found: Mapping[str, Any], names: Iterable[str]
) -> dict[str, int]:
    amounts: dict[str, int] = {}
    for name in names:
        try:
            if name in ("used", "remaining") and state["unit"] == "cost":
                amounts[f"{name}_nano"] = _nano(found[name]) - _nano(state[name])
            elif type(state[name]) is int and type(found[name]) is int:
                amounts[name] = found[name] - state[name]
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
    return amounts


def _nano(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    whole, _, part = text.lstrip("-").partition(".")
    return sign * int(whole + part.ljust(9, "0"))


def _scope(value: bytes) -> str:
    """The scope a state is of."""
    return str(_object(value).get("scope", ""))


def _used(state: Mapping[str, Any]) -> str:
    return f"used {state.get('used')}"


def _object(value: bytes) -> dict[str, Any]:
    try:
        body = json.loads(value)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
