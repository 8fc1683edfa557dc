"""Totals: the fold of priced events into day cells, per source partition.

The fold adds integers only, so it is the same whatever slices the stream is cut into.
"""

import zlib
from collections.abc import Iterable, Iterator
from sys import intern
from typing import Final, NamedTuple

from pipeline.core.cells import Cell, CellValue, RestingValue, Totals, at_work, packed, unpacked
from pipeline.core.events import Event, PricedEvent

DAY_US: Final = 86_400_000_000

SHARDS: Final = 256
_NO_DAY: Final = 1 << 62

Rare = tuple[int, int, int]
"""unpriced requests, user_cost_nano, user_unpriced; None where all are 0, as nearly always."""
SharedSum = tuple[int, str, str, str, int, int, int, Rare | None]
"""A day, port, organisation and group, and the requests, tokens, cost_nano and the rare amounts of
some events that have them."""
UserSum = tuple[int, str, int, int, int, int, Rare | None]
"""The same of a day and the scope of a user, which comes with the partition that merges it."""


class Sums(NamedTuple):
    """What some events add to the cells; events without a user are in ``shared`` alone."""

    shared: Iterable[SharedSum]
    users: Iterable[UserSum]


def shard_of(scope: str) -> int:
    """The hash class of a scope's cells, 0 … ``SHARDS`` − 1, in which a journal rewrites them."""
    return zlib.crc32(scope.encode()) % SHARDS


def _awake(value: RestingValue) -> CellValue:
    scope, day, totals = value
    return scope, day, at_work(totals)


class _Shard:
    """The cells of one hash class of scopes: those awake, and by day and scope those at rest."""

    __slots__ = ("at_rest", "awake")

    def __init__(self) -> None:
        self.awake: list[Cell] = []
        self.at_rest: dict[int, dict[str, bytes]] = {}

    def values(self) -> Iterator[RestingValue]:
        """Each of them; those at rest go on resting."""
        for cell in self.awake:
            yield cell.scope, cell.day, cell.totals()
        for day, resting in self.at_rest.items():
            for scope, totals in resting.items():
                yield scope, day, totals

    def drop_before(self, oldest_day: int) -> int:
        """Forgets the cells at rest of days before ``oldest_day``; returns how many."""
        gone = [day for day in self.at_rest if day < oldest_day]
        return sum(len(self.at_rest.pop(day)) for day in gone)


class SourceTotals:
    """All live cells of one source partition, and which of them changed since the last flush.

    A cell is awake, an object in ``_days``, from the event that finds none there. It is at rest
    after recovery, and once its day and the one after it are over: when a new day begins, the
    flushes after that put the older cells of one shard each to rest. One that a late event wakes
    stays awake until the next day begins, and a sum beyond 64 bits never rests.
    """

    def __init__(self) -> None:
        self._days: dict[int, dict[str, Cell]] = {}
        self._shards = [_Shard() for _ in range(SHARDS)]
        self._resting = 0
        self._oldest_at_rest = _NO_DAY
        self._newest_day = -_NO_DAY
        self._next_to_rest = 0
        self._shards_to_rest = 0
        self._changed: list[Cell] = []
        self._flush = 0

    def __len__(self) -> int:
        return self._resting + sum(map(len, self._days.values()))

    def put(self, scope: str, day: int, totals: Totals) -> None:
        """Sets a cell to recovered values; it does not count as changed."""
        cell = self._days.get(day, {}).get(scope)
        if cell is not None:
            cell.set(totals)
            return
        at_rest = packed(totals)
        if at_rest is None:  # beyond 64 bits; it stays awake
            self._new(self._day(day), scope, day).set(totals)
        else:
            self._rest(self._shards[shard_of(scope)], intern(scope), day, at_rest)

    def values(self) -> Iterator[RestingValue]:
        """Every live cell as it is."""
        for shard in self._shards:
            yield from shard.values()

    def cells(self) -> Iterator[CellValue]:
        """Every live cell with its totals."""
        return map(_awake, self.values())

    def shard(self, number: int) -> list[CellValue]:
        """The live cells of one hash class with their totals."""
        return [*map(_awake, self._shards[number].values())]

    def add(self, events: Iterable[PricedEvent]) -> None:
        """Counts accepted events; a cost of None means unpriced.

        Users are many, and what they share is few: what a port, an organisation and a group have
        in common is added up first.
        """
        flush, changed = self._flush, self._changed
        # What the days of the events have had so far; most have the day of the one before.
        days: dict[int, dict[tuple[str, str, str], list[int]]] = {}
        number, begins_us, ends_us = 0, 0, 0
        cells, shared = dict[str, Cell](), dict[tuple[str, str, str], list[int]]()
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
                cells, shared = self._day(number), days.setdefault(number, {})
            tokens = event.input_tokens + event.output_tokens
            key = (event.port_id, event.organization_id, event.group_id)
            sums = shared.get(key)
            if sums is None:
                shared[key] = [1, tokens, cost_nano]
            else:
                sums[0] += 1
                sums[1] += tokens
                sums[2] += cost_nano
            if not event.user_id:
                continue
            scope = "user:" + event.user_id
            cell = cells.get(scope) or self._new(cells, scope, number)
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

    def add_sums(self, sums: Sums) -> None:
        """Counts events that somebody has added up already."""
        flush, changed = self._flush, self._changed
        number, cells = -_NO_DAY, dict[str, Cell]()
        for day, scope, home, requests, tokens, cost_nano, rare in sums.users:
            if day != number:
                number, cells = day, self._day(day)
            cell = cells.get(scope) or self._new(cells, scope, day, home)
            if cell.flush != flush:
                cell.flush = flush
                changed.append(cell)
            cell.requests += requests
            cell.tokens += tokens
            cell.cost_nano += cost_nano
            if rare is not None:
                _add_rare_sums(cell, *rare)
        for day, port, org, group, requests, tokens, cost_nano, rare in sums.shared:
            for cell in self._shared_cells(day, port, org, group):
                self._change(cell)
                cell.requests += requests
                cell.tokens += tokens
                cell.cost_nano += cost_nano
                if rare is not None:
                    _add_rare_sums(cell, *rare)

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
        if event.user_id:
            touched.append(self._cell(self._day(number), "user:" + event.user_id, number))
        return touched

    def _shared_cells(self, number: int, port: str, org: str, group: str) -> list[Cell]:
        """The cells of every scope but a user's, on day ``number``."""
        day = self._day(number)
        cells = [self._cell(day, "all", number), self._cell(day, "port:" + port, number)]
        if org:
            cells.append(self._cell(day, "org:" + org, number))
        if group:
            cells.append(self._cell(day, "group:" + group, number))
        return cells

    def _cell(self, cells: dict[str, Cell], scope: str, day: int) -> Cell:
        return cells.get(scope) or self._new(cells, scope, day)

    def _change(self, cell: Cell) -> None:
        if cell.flush != self._flush:
            cell.flush = self._flush
            self._changed.append(cell)

    def take_changed(self) -> list[Cell]:
        """The cells that changed since the last call, each once; starts a new flush."""
        changed, self._changed = self._changed, []
        self._flush += 1
        if self._shards_to_rest:
            self._shards_to_rest -= 1
            self._put_to_rest(self._shards[self._next_to_rest])
            self._next_to_rest = (self._next_to_rest + 1) % SHARDS
        return changed

    def drop_before(self, oldest_day: int) -> int:
        """Forgets the cells of days before ``oldest_day``; returns how many."""
        gone = [day for day in self._days if day < oldest_day]
        dropped = sum(len(self._days.pop(day)) for day in gone)
        if dropped:
            for shard in self._shards:
                shard.awake = [cell for cell in shard.awake if cell.day >= oldest_day]
        if self._oldest_at_rest < oldest_day:
            resting = sum(shard.drop_before(oldest_day) for shard in self._shards)
            self._oldest_at_rest = oldest_day
            self._resting -= resting
            dropped += resting
        return dropped

    def _day(self, number: int) -> dict[str, Cell]:
        day = self._days.get(number)
        if day is None:
            day = self._days[number] = {}
            if number > self._newest_day:
                self._newest_day = number
                self._shards_to_rest = SHARDS
        return day

    def _new(self, cells: dict[str, Cell], scope: str, day: int, home: int | None = None) -> Cell:
        """A cell that is not awake: as it rests, or with nothing in it."""
        scope = intern(scope)  # it has cells of many days: one string for all of them
        cell = cells[scope] = Cell(scope, day, home)
        shard = self._shards[shard_of(scope)]
        shard.awake.append(cell)
        resting = shard.at_rest.get(day)
        if resting:
            totals = resting.pop(scope, None)
            if totals is not None:
                self._resting -= 1
                cell.set(unpacked(totals))
        return cell

    def _put_to_rest(self, shard: _Shard) -> None:
        awake: list[Cell] = []
        for cell in shard.awake:
            at_rest = packed(cell.totals()) if cell.day < self._newest_day - 1 else None
            if at_rest is None:
                awake.append(cell)
                continue
            del self._days[cell.day][cell.scope]
            self._rest(shard, cell.scope, cell.day, at_rest)
        shard.awake = awake

    def _rest(self, shard: _Shard, scope: str, day: int, at_rest: bytes) -> None:
        resting = shard.at_rest.setdefault(day, {})
        self._resting += scope not in resting
        resting[scope] = at_rest
        self._oldest_at_rest = min(self._oldest_at_rest, day)


def _add_rare_sums(cell: Cell, unpriced: int, user_cost_nano: int, user_unpriced: int) -> None:
    cell.unpriced += unpriced
    cell.user_cost_nano += user_cost_nano
    cell.user_unpriced += user_unpriced
