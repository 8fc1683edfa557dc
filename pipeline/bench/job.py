"""The job that every contender of ``tallyport bench stream`` does, apart from its framework.

Decode, validate, price, and add up per port and day and per user and day, with the worker's own
codec and its own compiled prices. Imports nothing but the core, so that it runs in the environment
of the peers.
"""

import hashlib
from collections.abc import Iterable, Iterator

import msgspec

from pipeline.core.book import builtin_book
from pipeline.core.event_codec import decode_event
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateLog
from pipeline.core.rejections import Rejection
from pipeline.core.totals import DAY_US

Amounts = tuple[int, int, int]
"""requests, tokens, cost in nanos (0 for what is unpriced)."""
Key = tuple[str, int]
"""A scope (``port:…`` or ``user:…``) and a day since 1970 UTC."""
Cell = list[int]


def built_in_prices() -> PriceVersion:
    """The prices of a deployment in which no rate was set."""
    return PriceVersion(RateLog("USD").snapshot(), builtin_book())


class Usage(msgspec.Struct, gc=False):
    """What one valid event adds to its port's and to its user's day."""

    port_id: str
    user_id: str
    day: int
    tokens: int
    cost_nano: int


class Job:
    """Reads events one by one, for frameworks whose unit of work is one record."""

    def __init__(self) -> None:
        self._price = built_in_prices().price
        self.rejected = 0

    def read(self, value: bytes | None) -> Usage | None:
        """What the event in ``value`` adds; None, and counted, where it is not valid."""
        event = decode_event(value)
        if isinstance(event, Rejection):
            self.rejected += 1
            return None
        return Usage(
            event.port_id,
            event.user_id,
            event.occurred_at_us // DAY_US,
            event.input_tokens + event.output_tokens,
            self._price(event).cost_nano or 0,
        )


class DayTotals:
    """Cells by day and name, folded in place."""

    def __init__(self) -> None:
        self.ports: dict[int, dict[str, Cell]] = {}
        self.users: dict[int, dict[str, Cell]] = {}

    def cells(self) -> Iterator[tuple[Key, Amounts]]:
        """Every cell."""
        for kind, days in (("port", self.ports), ("user", self.users)):
            for day, cells in days.items():
                for name, (requests, tokens, cost_nano) in cells.items():
                    yield (f"{kind}:{name}", day), (requests, tokens, cost_nano)


class Folding:
    """Reads many events at once into ``totals``, for frameworks that hand over batches."""

    def __init__(self) -> None:
        self._price = built_in_prices().price
        self.totals = DayTotals()
        self.rejected = 0

    def fold(self, values: Iterable[bytes | None]) -> None:
        """Adds up the events in ``values``; what is not valid is counted."""
        price = self._price
        ports, users = self.totals.ports, self.totals.users
        day = -1
        port_cells: dict[str, Cell] = {}
        user_cells: dict[str, Cell] = {}
        for value in values:
            event = decode_event(value)
            if isinstance(event, Rejection):
                self.rejected += 1
                continue
            event_day = event.occurred_at_us // DAY_US
            if event_day != day:
                day = event_day
                port_cells = ports.setdefault(day, {})
                user_cells = users.setdefault(day, {})
            cost_nano = price(event).cost_nano or 0
            tokens = event.input_tokens + event.output_tokens
            for cells, name in ((port_cells, event.port_id), (user_cells, event.user_id)):
                cell = cells.get(name)
                if cell is None:
                    cells[name] = [1, tokens, cost_nano]
                else:
                    cell[0] += 1
                    cell[1] += tokens
                    cell[2] += cost_nano


def digest(cells: Iterable[tuple[Key, Amounts]]) -> str:
    """Identifies a set of totals; cells of the same key are added up, the order does not matter."""
    summed: dict[Key, Cell] = {}
    for key, amounts in cells:
        cell = summed.setdefault(key, [0, 0, 0])
        for index, amount in enumerate(amounts):
            cell[index] += amount
    lines = sorted((scope, day, *cell) for (scope, day), cell in summed.items())
    return hashlib.sha256(msgspec.json.encode(lines)).hexdigest()
