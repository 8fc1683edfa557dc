"""Totals: the fold of priced events into day cells, per source partition.

A cell is what one scope used on one UTC day, as far as one partition of ``usage.events`` knows.
The fold adds integers only, so it is the same whatever slices the stream is cut into.
"""

import zlib
from collections.abc import Iterable, Iterator
from sys import intern
from typing import Final

from pipeline.core.events import Event, PricedEvent

DAY_US: Final = 86_400_000_000

Totals = tuple[int, int, int, int, int, int]
"""requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced (see ``TOTALS_FIELDS``)."""

TOTALS_FIELDS: Final = (
    "requests",
    "tokens",
    "cost_nano",
    "org_cost_nano",
    "unpriced",
    "org_unpriced",
)


SHARDS: Final = 256


def shard_of(scope: str) -> int:
    """The hash class of a scope's cells, 0 … ``SHARDS`` − 1, in which a journal rewrites them."""
    return zlib.crc32(scope.encode()) % SHARDS


class Cell:
    """The cumulative totals of ``scope`` on ``day`` (days since 1970-01-01 UTC).

    What users pay themselves is kept instead of what organisations pay, as it is the rare case.
    """

    __slots__ = (
        "cost_nano",
        "day",
        "flush",
        "requests",
        "scope",
        "tokens",
        "unpriced",
        "user_cost_nano",
        "user_unpriced",
    )

    def __init__(self, scope: str, day: int) -> None:
        self.scope = scope
        self.day = day
        self.flush = -1
        self.requests = self.tokens = self.cost_nano = self.unpriced = 0
        self.user_cost_nano = self.user_unpriced = 0

    def set(self, totals: Totals) -> None:
        """Replaces all values."""
        self.requests, self.tokens, self.cost_nano, org_cost_nano, self.unpriced, org_unpriced = (
            totals
        )
        self.user_cost_nano = self.cost_nano - org_cost_nano
        self.user_unpriced = self.unpriced - org_unpriced

    def totals(self) -> Totals:
        """The cell's values in the order of ``TOTALS_FIELDS``."""
        cost_nano, user_cost_nano = self.cost_nano, self.user_cost_nano
        return (
            self.requests,
            self.tokens,
            cost_nano,
            # The same number is the same object, which whoever keeps the tuple need not pay for.
            cost_nano - user_cost_nano if user_cost_nano else cost_nano,
            self.unpriced,
            self.unpriced - self.user_unpriced,
        )


class _Day:
    """One day's cells, by kind of scope, so that the hot path builds no scope strings."""

    __slots__ = ("all", "group", "number", "org", "port", "user")

    def __init__(self, number: int) -> None:
        self.number = number
        self.all: dict[str, Cell] = {}
        self.port: dict[str, Cell] = {}
        self.org: dict[str, Cell] = {}
        self.group: dict[str, Cell] = {}
        self.user: dict[str, Cell] = {}

    def kind_of(self, scope: str) -> tuple[dict[str, Cell], str]:
        kind, _, ident = scope.partition(":")
        return getattr(self, kind), ident

    def count(self) -> int:
        """How many cells the day has. Not ``__len__``, which every ``or`` in the fold would ask."""
        return sum(map(len, (self.all, self.port, self.org, self.group, self.user)))


class SourceTotals:
    """All live cells of one source partition, and which of them changed since the last flush."""

    def __init__(self) -> None:
        self._days: dict[int, _Day] = {}
        self._shards: list[list[Cell]] = [[] for _ in range(SHARDS)]
        self._changed: list[Cell] = []
        self._flush = 0

    def __len__(self) -> int:
        return sum(day.count() for day in self._days.values())

    def put(self, scope: str, day: int, totals: Totals) -> None:
        """Sets a cell to recovered values; it does not count as changed."""
        cells = self._day(day)
        kind, ident = cells.kind_of(scope)
        cell = kind.get(ident) or self._new(kind, ident, scope, cells.number)
        cell.set(totals)

    def cells(self) -> Iterator[Cell]:
        """Every live cell."""
        for shard in self._shards:
            yield from shard

    def shard(self, number: int) -> list[Cell]:
        """The live cells of one hash class; not a copy."""
        return self._shards[number]

    def add(self, events: Iterable[PricedEvent]) -> None:
        """Counts accepted events; a cost of None means unpriced.

        Users are many, and what they share is few: what a port, an organisation and a group have
        in common is added up first.
        """
        flush, changed = self._flush, self._changed
        # What the days of the events have had so far; most have the day of the one before.
        days: dict[int, dict[tuple[str, str, str], list[int]]] = {}
        number, begins_us, ends_us = 0, 0, 0
        users, shared = dict[str, Cell](), dict[tuple[str, str, str], list[int]]()
        for event in events:
            cost_nano = event.cost_nano
            if cost_nano is None or event.billing_scope != "org":
                self._add_rare(event)
                continue
            at_us = event.occurred_at_us
            if not begins_us <= at_us < ends_us:
                number = at_us // DAY_US
                begins_us = number * DAY_US
                ends_us = begins_us + DAY_US
                users, shared = self._day(number).user, days.setdefault(number, {})
            tokens = event.input_tokens + event.output_tokens
            key = (event.port_id, event.organization_id, event.group_id)
            sums = shared.get(key)
            if sums is None:
                shared[key] = [1, tokens, cost_nano]
            else:
                sums[0] += 1
                sums[1] += tokens
                sums[2] += cost_nano
            ident = event.user_id
            if not ident:
                continue
            cell = users.get(ident) or self._new(users, ident, "user:" + ident, number)
            if cell.flush != flush:
                cell.flush = flush
                changed.append(cell)
            cell.requests += 1
            cell.tokens += tokens
            cell.cost_nano += cost_nano
        for number, shared in days.items():
            for idents, (requests, tokens, cost_nano) in shared.items():
                for cell in self._shared_cells(number, *idents):
                    self._change(cell)
                    cell.requests += requests
                    cell.tokens += tokens
                    cell.cost_nano += cost_nano

    def _add_rare(self, event: PricedEvent) -> None:
        """Counts one event that is unpriced or that the user pays."""
        tokens = event.input_tokens + event.output_tokens
        is_unpriced = event.cost_nano is None
        priced_nano = event.cost_nano or 0
        for cell in self._touched(event):
            self._change(cell)
            cell.requests += 1
            cell.tokens += tokens
            cell.cost_nano += priced_nano
            cell.unpriced += is_unpriced
            if event.billing_scope == "user":
                cell.user_cost_nano += priced_nano
                cell.user_unpriced += is_unpriced

    def adjust(self, event: Event, requests: int, cost_nano: int, unpriced: int) -> None:
        """Adds the deltas of a correction; the amounts of ``event`` are deltas, too."""
        tokens = event.input_tokens + event.output_tokens
        for cell in self._touched(event):
            self._change(cell)
            cell.requests += requests
            cell.tokens += tokens
            cell.cost_nano += cost_nano
            cell.unpriced += unpriced
            if event.billing_scope == "user":
                cell.user_cost_nano += cost_nano
                cell.user_unpriced += unpriced

    def _touched(self, event: Event) -> list[Cell]:
        """The cells of every scope of ``event`` on its day."""
        number = event.occurred_at_us // DAY_US
        touched = self._shared_cells(number, event.port_id, event.organization_id, event.group_id)
        user = event.user_id
        if user:
            day = self._day(number)
            touched.append(day.user.get(user) or self._new(day.user, user, "user:" + user, number))
        return touched

    def _shared_cells(self, number: int, port: str, org: str, group: str) -> list[Cell]:
        """The cells of every scope but a user's, on day ``number``."""
        day = self._day(number)
        cells = [
            day.all.get("") or self._new(day.all, "", "all", number),
            day.port.get(port) or self._new(day.port, port, "port:" + port, number),
        ]
        if org:
            cells.append(day.org.get(org) or self._new(day.org, org, "org:" + org, number))
        if group:
            cells.append(
                day.group.get(group) or self._new(day.group, group, "group:" + group, number)
            )
        return cells

    def _change(self, cell: Cell) -> None:
        if cell.flush != self._flush:
            cell.flush = self._flush
            self._changed.append(cell)

    def take_changed(self) -> list[Cell]:
        """The cells that changed since the last call, each once; starts a new flush."""
        changed, self._changed = self._changed, []
        self._flush += 1
        return changed

    def drop_before(self, oldest_day: int) -> int:
        """Forgets the cells of days before ``oldest_day``; returns how many."""
        gone = [day for day in self._days if day < oldest_day]
        dropped = sum(self._days.pop(day).count() for day in gone)
        if dropped:
            self._shards = [[c for c in shard if c.day >= oldest_day] for shard in self._shards]
        return dropped

    def _day(self, number: int) -> _Day:
        day = self._days.get(number)
        if day is None:
            day = self._days[number] = _Day(number)
        return day

    def _new(self, kind: dict[str, Cell], ident: str, scope: str, day: int) -> Cell:
        # A scope has cells of many days: one string for all of them.
        cell = kind[intern(ident)] = Cell(intern(scope), day)
        self._shards[shard_of(scope)].append(cell)
        return cell


def sum_totals(parts: Iterable[Totals]) -> Totals:
    """Adds totals field by field."""
    result = [0, 0, 0, 0, 0, 0]
    for part in parts:
        for index, value in enumerate(part):
            result[index] += value
    return tuple(result)  # type: ignore[return-value]
