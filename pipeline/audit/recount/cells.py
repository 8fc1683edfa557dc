"""Day cells: what every scope used on every UTC day, added up from the accepted events."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipeline.audit.recount.events import Reading

DAY_US = 86_400_000_000
AMOUNTS = ("requests", "tokens", "cost_nano", "org_cost_nano", "unpriced", "org_unpriced")

Totals = tuple[int, int, int, int, int, int]
"""In the order of ``AMOUNTS``."""
ZERO: Totals = (0, 0, 0, 0, 0, 0)
Cells = Mapping[tuple[str, int], Totals]
"""(scope, day) → totals; a scope is ``all`` or ``kind:id``, a day counts from 1970-01-01 UTC."""


class Entry(NamedTuple):
    """What one event adds to which cells."""

    scopes: tuple[str, ...]
    day: int
    amounts: Totals


def entry_of(event: Reading, cost_nano: int | None) -> Entry:
    """An accepted event's entry."""
    texts = event.texts
    named = (
        ("org", texts["organization_id"]),
        ("group", texts["group_id"]),
        ("user", texts["user_id"]),
    )
    scopes = ["all", f"port:{event.port_id}", *(f"{kind}:{i}" for kind, i in named if i)]
    tokens = event.counts["input_tokens"] + event.counts["output_tokens"]
    cost, unpriced = cost_nano or 0, int(cost_nano is None)
    is_org = event.billing_scope == "org"
    amounts = (1, tokens, cost, cost if is_org else 0, unpriced, unpriced if is_org else 0)
    return Entry(tuple(scopes), event.occurred_at_us // DAY_US, amounts)


class RunningCells:
    """The cells of one partition at any offset that is not settled yet.

    What lies below the settled offset is one sum; later entries are kept one by one, so that the
    sum can be told at each of their offsets.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, int], list[int]] = {}
        self._names: dict[str, str] = {}
        self._settled_to = 0
        self._offsets = array("q")
        self._later: list[Entry] = []

    @property
    def settled_to(self) -> int:
        """The lowest offset that ``below`` can answer."""
        return self._settled_to

    def add(self, offset: int, entry: Entry) -> None:
        """Takes the entry of a later offset than any before."""
        if offset < self._settled_to:
            self._settle(entry)
        else:
            self._offsets.append(offset)
            self._later.append(entry)

    def settle(self, offset: int) -> None:
        """From now on nobody asks below ``offset``."""
        if offset <= self._settled_to:
            return
        self._settled_to = offset
        end = bisect_left(self._offsets, offset)
        for entry in self._later[:end]:
            self._settle(entry)
        del self._later[:end], self._offsets[:end]

    def below(self, offset: int) -> dict[tuple[str, int], Totals]:
        """The cells of the entries below ``offset``; ``ValueError`` when that is settled."""
        if offset < self._settled_to:
            raise ValueError(f"cells are settled up to offset {self._settled_to}, not {offset}")
        sums = {key: totals_of(cell) for key, cell in self._sums.items()}
        added: dict[tuple[str, int], list[int]] = {}
        for entry in self.later(offset):
            for scope in entry.scopes:
                key = (scope, entry.day)
                cell = added.get(key)
                if cell is None:
                    cell = added[key] = list(sums.get(key, ZERO))
                _add(cell, entry.amounts)
        sums.update((key, totals_of(cell)) for key, cell in added.items())
        return sums

    def settled(self) -> Iterator[tuple[str, int, Totals]]:
        """Scope, day and totals of everything below the settled offset."""
        for (scope, day), cell in self._sums.items():
            yield scope, day, totals_of(cell)

    def later(self, offset: int) -> list[Entry]:
        """The entries from the settled offset on and below ``offset``."""
        return self._later[: bisect_left(self._offsets, offset)]

    def _settle(self, entry: Entry) -> None:
        sums, day = self._sums, entry.day
        added = [(at, amount) for at, amount in enumerate(entry.amounts) if amount]
        for scope in entry.scopes:
            cell = sums.get((scope, day))
            if cell is None:
                # One string per scope, however many days it has.
                name = self._names.setdefault(scope, scope)
                cell = sums[name, day] = [0, 0, 0, 0, 0, 0]
            for at, amount in added:
                cell[at] += amount


def sum_cells(parts: Iterable[Cells]) -> dict[tuple[str, int], Totals]:
    """Cells of several partitions added up."""
    sums: dict[tuple[str, int], list[int]] = {}
    for cells in parts:
        for key, totals in cells.items():
            _add(sums.setdefault(key, [0, 0, 0, 0, 0, 0]), totals)
    return {key: totals_of(cell) for key, cell in sums.items()}


def totals_of(numbers: Iterable[int]) -> Totals:
    """Six numbers as a cell's totals."""
    requests, tokens, cost, org_cost, unpriced, org_unpriced = numbers
    return requests, tokens, cost, org_cost, unpriced, org_unpriced


def _add(cell: list[int], amounts: Totals) -> None:
    for at, amount in enumerate(amounts):
        if amount:
            cell[at] += amount
