"""The merge of one partition of ``budget.state``: cells, policies and time become states.

A pure fold. Cells are cumulative per source, so any cell may come again, in any cut; the states
depend only on the newest cell of each (source, scope, day), the policies and the time, not on
the order in which they came.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import chain
from sys import intern

from pipeline.core.budgets import (
    DISABLED,
    HARD_CAP_EXCEEDED,
    SOFT_CAP_EXCEEDED,
    State,
    is_heartbeat,
    status_of,
)
from pipeline.core.cells import CellValue, DayCells, RestingValue, Totals, at_work, packed, unpacked
from pipeline.core.due_records import Change, DueRecords, Publication, Published, published_in
from pipeline.core.errors import InvalidField
from pipeline.core.policies import Policy
from pipeline.core.scopes import (
    PERIODS,
    RecordKey,
    cell_scope,
    is_wildcard,
    parse_key,
    record_key,
    scope_kind,
    wildcard_of,
)
from pipeline.core.windows import DAY_MS, next_midnight_ms, oldest_day_needed, window

__all__ = ["Accounts", "Change"]

Slot = tuple[str, str]
"""unit, period: a scope has at most one policy for each."""

REST_CELLS = 500
"""So many cells are put to rest at a time."""

# Columns of ``Totals``.
_TOKENS, _COST, _ORG_COST, _UNPRICED, _ORG_UNPRICED = 1, 2, 3, 4, 5
# Beyond every amount: the bound of a status that has none.
_NO_BOUND = 1 << 512


class _Period:
    """One period's running window, which its accounts share."""

    __slots__ = ("end_day", "name", "span", "start_day")

    def __init__(self, name: str, now_ms: int) -> None:
        self.name = name
        self.span = window(name, now_ms)
        self.start_day, self.end_day = self.span.start_day, self.span.end_day

    def move_to(self, now_ms: int) -> None:
        self.span = window(self.name, now_ms)
        self.start_day, self.end_day = self.span.start_day, self.span.end_day


class _Judgement:
    """While ``low`` ≤ used < ``high`` under ``terms``, the status and the hard cap are these."""

    __slots__ = ("hard_cap", "high", "low", "status", "terms")

    def __init__(
        self, terms: "_Terms | None", low: int, high: int, status: str, hard_cap: int | None
    ) -> None:
        self.terms = terms
        self.low, self.high = low, high
        self.status = status
        self.hard_cap = hard_cap


_UNJUDGED = _Judgement(None, 0, 0, "", None)


class _Terms:
    """What all accounts under one policy share; a changed policy has new ones.

    Most accounts are judged alike, so the last judgement is tried before another one is made.
    """

    __slots__ = ("_judged", "amount", "period", "policy", "unpriced_column")

    def __init__(self, policy: Policy, period: _Period) -> None:
        self.policy = policy
        self.period = period
        if policy.unit == "tokens":
            self.amount, self.unpriced_column = _TOKENS, _UNPRICED
        elif scope_kind(policy.scope) == "user":
            self.amount, self.unpriced_column = _COST, _UNPRICED
        else:
            self.amount, self.unpriced_column = _ORG_COST, _ORG_UNPRICED
        self._judged = _UNJUDGED

    def judge(self, used: int, now_ms: int) -> _Judgement:
        """What holds for ``used`` at ``now_ms``, and around it."""
        judged = self._judged
        if not judged.low <= used < judged.high or self.policy.extra is not None:
            judged = self._judged = self._judge(used, now_ms)
        return judged

    def _judge(self, used: int, now_ms: int) -> _Judgement:
        policy = self.policy
        status, hard_cap = status_of(policy, used, now_ms), policy.hard_cap_at(now_ms)
        hard = _NO_BOUND if hard_cap is None else hard_cap
        line = policy.soft_line_at(now_ms)
        soft = hard if line is None else min(line + 1, hard)
        if status == DISABLED:
            low, high = -_NO_BOUND, _NO_BOUND
        elif status == HARD_CAP_EXCEEDED:
            low, high = hard, _NO_BOUND
        elif status == SOFT_CAP_EXCEEDED:
            low, high = soft, hard
        else:
            low, high = -_NO_BOUND, soft
        return _Judgement(self, low, high, status, hard_cap)


class _Account(Publication):
    """What one scope used in one period, in one unit, under the policy in force.

    ``own``: the policy is the scope's own, or this is the wildcard's record; otherwise the
    account is shown only while ``cells``, the number of cells in the window, is not 0.
    ``judged`` says between which amounts the status is the one that went out last, and under
    which terms, which are ``terms`` unless the policy has changed since.
    """

    __slots__ = ("cells", "judged", "own", "scope", "terms", "unpriced", "used")

    def __init__(self, scope: str, key: str, terms: _Terms, own: bool) -> None:
        self.key = key
        self.published: Published = None
        self.scope = scope
        self.terms = terms
        self.own = own
        self.used = self.unpriced = self.cells = 0
        self.judged = _UNJUDGED

    @property
    def shown(self) -> bool:
        return self.own or self.cells > 0

    def covers(self, day: int) -> bool:
        period = self.terms.period
        return period.start_day <= day < period.end_day

    def add(self, totals: Totals, sign: int) -> None:
        """Takes one cell into the window (``sign`` 1), or out of it (−1)."""
        terms = self.terms
        self.used += sign * totals[terms.amount]
        self.unpriced += sign * totals[terms.unpriced_column]
        self.cells += sign

    def clear(self) -> None:
        self.used = self.unpriced = self.cells = 0

    def current(self, now_ms: int) -> State | None:
        return self.state(now_ms) if self.shown else None

    def state(self, now_ms: int) -> State:
        """The state now; its status becomes the one that ``judged`` has."""
        terms, judged = self.terms, self.judged
        policy, span = terms.policy, terms.period.span
        is_known = terms is judged.terms and judged.low <= self.used < judged.high
        if not is_known or policy.extra is not None:
            judged = self.judged = terms.judge(self.used, now_ms)
        return State(
            self.scope,
            policy.unit,
            policy.period,
            span.start_ms,
            span.resets_at_ms,
            judged.status,
            self.used,
            policy.soft_cap,
            judged.hard_cap,
            self.unpriced,
            policy.on_stale,
        )


class Accounts:
    """The states of the scopes whose records belong to one partition.

    ``homes`` says which scopes those are. A wildcard's own record is homed like any scope's, but
    every partition takes all wildcard policies; cells are fed only for scopes that are homed.
    Time only moves forward. After a restart feed all cells, policies and published records and
    the time before the first call of ``changes``.

    Owns: what each budget has used, and which records are due. Does not own: versions,
    publishing, which policies are valid.
    """

    def __init__(self, homes: Callable[[str], bool], now_ms: int) -> None:
        self._homes = homes
        self._now_ms = now_ms
        self._midnight_ms = next_midnight_ms(now_ms)
        self._oldest_day = oldest_day_needed(now_ms)
        self._today = now_ms // DAY_MS
        self._periods = {name: _Period(name, now_ms) for name in PERIODS}
        # (day, source) → scope → the newest cumulative totals; at rest where they came when the day
        # was over already, and from the end of the day after it on.
        self._cells: dict[tuple[int, int], DayCells] = {}
        self._rest: Iterator[None] = iter(())
        # A scope has an entry if it has a policy of its own, or cells while its kind has a
        # wildcard. The entry holds an account for every budget that applies to the scope.
        # A wildcard that is homed here has one with its own records.
        self._entries: dict[str, list[_Account]] = {}
        # What was published under keys that no account has now.
        self._orphans: dict[str, Publication] = {}
        # scope or wildcard → its policies.
        self._policies: dict[str, dict[Slot, _Terms]] = {}
        self._extra_ends: list[tuple[int, str]] = []
        self._due = DueRecords()

    @property
    def dirty(self) -> int:
        """How many records may differ from what was published."""
        return len(self._due)

    @property
    def has_urgent(self) -> bool:
        """Whether more than amounts may have changed somewhere."""
        return self._due.has_urgent

    @property
    def now_ms(self) -> int:
        """The time that ``advance`` has come to."""
        return self._now_ms

    @property
    def account_count(self) -> int:
        """How many accounts are kept, shown or not."""
        return sum(map(len, self._entries.values()))

    def policies(self) -> list[Policy]:
        """The policies that are followed here: all wildcards, and those of homed scopes."""
        return [terms.policy for slots in self._policies.values() for terms in slots.values()]

    def states(self) -> Iterator[State]:
        """The current state of every record."""
        return (a.state(self._now_ms) for a in list(self._all()) if a.shown)

    def apply_cells(self, source: int, values: Iterable[CellValue]) -> None:
        """Takes the cumulative totals of scopes on days as ``source`` knows them.

        They replace what that source said before. A scope is ``all`` or ``kind:id`` and never
        a wildcard: ``port:*`` is the id ``*`` here. A day that no window needs is left out.
        """
        entries, mark = self._entries, self._mark
        cells, cells_day = DayCells(), -1
        for scope, day, totals in values:
            if day != cells_day or not cells:
                found = self._day_cells(source, day)
                if found is None:
                    continue
                cells, cells_day = found, day
            if scope.endswith(":*"):
                scope = cell_scope(scope)
            old = cells.get(scope)
            if old is None:
                self._first_cell(cells, scope, day, totals)
                continue
            if isinstance(old, bytes):
                old = unpacked(old)
            if old == totals:
                continue
            cells[scope] = totals
            for account in entries.get(scope, ()):
                terms = account.terms
                if terms.period.start_day <= day < terms.period.end_day:
                    amount, unpriced = terms.amount, terms.unpriced_column
                    account.used += totals[amount] - old[amount]
                    account.unpriced += totals[unpriced] - old[unpriced]
                    mark(account)
        next(self._rest, None)

    def restore_cell(self, source: int, value: RestingValue) -> None:
        """``apply_cells`` for a cell of a table: where it rests, both keep the same object."""
        scope, day, found = value
        cells = self._day_cells(source, day)
        if cells is None:
            return
        totals, at_rest = at_work(found), found if isinstance(found, bytes) else None
        place = cell_scope(scope) if scope.endswith(":*") else scope
        if place in cells:
            self.apply_cells(source, [(scope, day, totals)])
        else:
            self._first_cell(cells, place, day, totals, at_rest)

    def _day_cells(self, source: int, day: int) -> DayCells | None:
        """What ``source`` said of a day; None where that is too long ago."""
        cells = self._cells.get((day, source))
        if cells is None and day >= self._oldest_day:
            cells = self._cells[day, source] = DayCells()
        return cells

    def put_policy(self, policy: Policy) -> None:
        """Takes a new or changed policy."""
        wildcard = is_wildcard(policy.scope)
        if not wildcard and not self._homes(policy.scope):
            return
        slots = self._policies.setdefault(policy.scope, {})
        slot = (policy.unit, policy.period)
        former = slots.get(slot)
        if former is not None and policy == former.policy:
            return
        terms = slots[slot] = _Terms(policy, self._periods[policy.period])
        extra = policy.extra
        if extra is not None and extra.until_ms > self._now_ms:
            heappush(self._extra_ends, (extra.until_ms, policy.key))
        if not wildcard:
            self._put_own(terms)
        elif former is None:
            self._put_wildcard(terms)
        else:
            for account in self._under(former):
                account.terms = terms
                self._due.add_urgent(account)

    def delete_policy(self, key: str) -> None:
        """Takes the deletion of the policy under the record key ``key``."""
        budget = parse_key(key)
        slots = self._policies.get(budget.scope, {})
        slot = (budget.unit, budget.period)
        terms = slots.pop(slot, None)
        if terms is None:
            return
        if not slots:
            del self._policies[budget.scope]
        wildcard = wildcard_of(budget.scope) or ""  # of a wildcard there is none
        follows = self._policies.get(wildcard, {}).get(slot)
        for account in self._under(terms):
            if follows is None:
                self._remove_account(account)
            else:
                account.terms, account.own = follows, False
                self._due.add_urgent(account)
        if wildcard and not any(budget.scope in cells for cells in self._cells.values()):
            self._close_idle(budget.scope)

    def advance(self, now_ms: int) -> None:
        """Moves time forward and ends the periods and extras that are over at ``now_ms``."""
        if now_ms <= self._now_ms:
            return
        self._now_ms = now_ms
        while self._extra_ends and self._extra_ends[0][0] <= now_ms:
            self._end_extra(heappop(self._extra_ends)[1])
        if now_ms < self._midnight_ms:
            return
        self._midnight_ms = next_midnight_ms(now_ms)
        self._oldest_day = oldest_day_needed(now_ms)
        self._today = now_ms // DAY_MS
        self._rest = self._put_to_rest()
        for period in self._periods.values():
            if period.span.resets_at_ms <= now_ms:
                self._roll_over(period)

    def expire(self, now_ms: int) -> list[int]:
        """Advances to ``now_ms`` and drops the days that no window needs; returns them."""
        self.advance(now_ms)
        places = [place for place in self._cells if place[0] < self._oldest_day]
        gone: set[str] = set()
        for place in places:
            gone.update(self._entries.keys() & self._cells.pop(place).keys())
        for cells in self._cells.values():
            gone.difference_update(cells)
        for scope in gone:
            self._close_idle(scope)
        return sorted({day for day, _ in places})

    def restore_published(self, key: str, value: bytes | None) -> None:
        """Takes the newest record under ``key`` of ``budget.state`` (None: a tombstone).

        An equal state is then not due; a record that is no longer wanted gets a tombstone, one
        that cannot be read is replaced. Heartbeats are left out.
        """
        if is_heartbeat(key):
            return
        published = published_in(key, value)
        account = self._account_under(key, published)
        record = account or self._orphans.pop(key, None) or Publication(key)
        record.published = published
        if published is not None:
            self._due.add(record)
        if account is None:
            self._keep_orphan(record)

    def changes(self, limit: int) -> list[Change]:
        """Up to ``limit`` records that are due, to be published in this order.

        First changes of status, new and removed records and changed policies, then new periods,
        then changes of what is used, each oldest first; a share of them goes before new periods.
        Empty when nothing is due.
        """
        taken = self._due.take(limit, self._now_ms)
        if self._orphans:
            for key, state in taken:
                if state is None:
                    self._orphans.pop(key, None)
        return taken

    def _all(self) -> Iterator[_Account]:
        return chain.from_iterable(self._entries.values())

    def _account(self, budget: Policy | State | RecordKey) -> _Account | None:
        for account in self._entries.get(budget.scope, ()):
            policy = account.terms.policy
            if (policy.unit, policy.period) == (budget.unit, budget.period):
                return account
        return None

    def _account_under(self, key: str, published: Published) -> _Account | None:
        try:
            return self._account(published if isinstance(published, State) else parse_key(key))
        except InvalidField:
            return None

    def _keep_orphan(self, record: Publication) -> None:
        if record.published is None:
            self._due.discard(record)
        else:
            self._orphans[record.key] = record

    def _mark(self, account: _Account) -> None:
        judged = account.judged
        if judged.low <= account.used < judged.high:
            self._due.add(account)
        else:
            self._due.add_urgent(account)

    def _first_cell(
        self, cells: DayCells, scope: str, day: int, totals: Totals, at_rest: bytes | None = None
    ) -> None:
        # One string per scope, however many days and sources it has.
        scope = intern(scope)
        is_over = day < self._today
        cells[scope] = at_rest or packed(totals) or totals if is_over else totals
        entry = self._entries.get(scope)
        if entry is None:
            wildcards = self._policies.get(wildcard_of(scope) or "")
            if wildcards is not None:  # had it another cell, it would have an entry by now
                for terms in wildcards.values():
                    account = self._new_account(scope, terms, own=False)
                    if account.covers(day):
                        account.add(totals, 1)
            return
        for account in entry:
            if account.covers(day):
                appears = not account.shown
                account.add(totals, 1)
                if appears:
                    self._due.add_urgent(account)
                else:
                    self._mark(account)

    def _open(self, scope: str) -> None:
        """Makes the entry of a scope with a policy of its own, with all that applies to it and
        all that it used."""
        own = self._policies[scope]
        wildcards = self._policies.get(wildcard_of(scope) or "", {})
        self._entries[scope] = []
        for slot, terms in (wildcards | own).items():
            self._open_account(scope, terms, own=slot in own)

    def _open_account(self, scope: str, terms: _Terms, *, own: bool) -> None:
        account = self._new_account(scope, terms, own=own)
        for cells in self._days(terms.period.start_day, terms.period.end_day):
            totals = cells.totals(scope)
            if totals is not None:
                account.add(totals, 1)

    def _new_account(self, scope: str, terms: _Terms, *, own: bool) -> _Account:
        """An account with nothing in it, in all the indexes."""
        key = record_key(scope, terms.policy.unit, terms.policy.period)
        account = _Account(scope, key, terms, own)
        entry = self._entries.get(scope)
        if entry is None:
            self._entries[scope] = [account]
        else:
            entry.append(account)
        orphan = self._orphans.pop(key, None) if self._orphans else None
        if orphan is not None:
            account.published = orphan.published
            self._due.discard(orphan)
        self._due.add_new(account)
        return account

    def _remove_account(self, account: _Account) -> None:
        entry = self._entries[account.scope]
        entry.remove(account)
        if not entry:
            del self._entries[account.scope]
        self._due.discard(account)
        orphan = Publication(account.key, account.published)
        self._due.add_new(orphan)
        self._keep_orphan(orphan)

    def _under(self, terms: _Terms) -> list[_Account]:
        """The accounts that follow a policy: its own record, of a wildcard also its ids'.

        Wildcards change so rarely that an index of their ids would only cost memory.
        """
        if is_wildcard(terms.policy.scope):
            return [account for account in self._all() if account.terms is terms]
        account = self._account(terms.policy)
        return [] if account is None else [account]

    def _put_own(self, terms: _Terms) -> None:
        scope = terms.policy.scope
        account = self._account(terms.policy)
        if account is not None:
            account.terms, account.own = terms, True
            self._due.add_urgent(account)
        elif scope in self._entries:
            self._open_account(scope, terms, own=True)
        else:
            self._open(scope)

    def _put_wildcard(self, terms: _Terms) -> None:
        if self._homes(terms.policy.scope):
            self._new_account(terms.policy.scope, terms, own=True)
        self._open_governed(terms)

    def _open_governed(self, terms: _Terms) -> None:
        """Makes the accounts under a new wildcard, in one pass over all cells."""
        policy, period = terms.policy, terms.period
        kind = scope_kind(policy.scope)
        prefixes = (f"{kind}:", f"{kind}=")
        slot = (policy.unit, policy.period)
        opened: dict[str, _Account] = {}

        def take(scopes: Iterable[str]) -> None:
            for scope in scopes:
                if scope in opened or not scope.startswith(prefixes):
                    continue
                if slot not in self._policies.get(scope, {}):
                    opened[scope] = self._new_account(scope, terms, own=False)

        take(list(self._entries))
        for (day, _), cells in self._cells.items():
            take(cells)
            if period.start_day <= day < period.end_day:
                for scope in cells.keys() & opened.keys():
                    opened[scope].add(at_work(cells[scope]), 1)

    def _close_idle(self, scope: str) -> None:
        """Drops the entry of a scope that has no cells, unless it has a policy of its own."""
        if scope not in self._policies:
            for account in list(self._entries.get(scope, ())):
                self._remove_account(account)

    def _end_extra(self, key: str) -> None:
        budget = parse_key(key)
        terms = self._policies.get(budget.scope, {}).get((budget.unit, budget.period))
        for account in () if terms is None else self._under(terms):
            self._due.add_urgent(account)

    def _roll_over(self, period: _Period) -> None:
        old_start, old_end = period.start_day, period.end_day
        period.move_to(self._now_ms)
        overlaps = period.start_day < old_end
        leaving = list(self._days(old_start, period.start_day)) if overlaps else []
        entering = list(self._days(old_end if overlaps else period.start_day, period.end_day))
        for account in self._all():
            if account.terms.period is not period:
                continue
            if not overlaps:
                account.clear()
            for scopes in leaving:
                totals = scopes.totals(account.scope)
                if totals is not None:
                    account.add(totals, -1)
            was_used = False
            for scopes in entering:
                totals = scopes.totals(account.scope)
                if totals is not None:
                    account.add(totals, 1)
                    was_used = True
            if was_used:  # by an event that has been waiting for this
                self._due.add_urgent(account)
            else:
                self._due.add_ended(account)

    def _put_to_rest(self) -> Iterator[None]:
        """Packs the cells of days that are over, some at each step: an event may be waiting.

        What is yesterday's and awake is left for tomorrow, as late events still change it.
        """
        over = [place for place in self._cells if place[0] < self._today - 1]
        for place in over:
            cells = self._cells.get(place, DayCells())
            for number, scope in enumerate([*cells]):
                cells.rest(scope)
                if number % REST_CELLS == 0:
                    yield

    def _days(self, start_day: int, end_day: int) -> Iterator[DayCells]:
        return (cells for (day, _), cells in self._cells.items() if start_day <= day < end_day)
