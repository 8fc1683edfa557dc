"""Cells: what one scope used on one UTC day, as far as one partition of ``usage.events`` knows.

At rest the totals of a cell are a few bytes instead of a row of numbers: nine of ten live cells are
of days for which hardly an event comes any more, and take a third of the memory then.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

Totals = tuple[int, int, int, int, int, int]
"""requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced."""

CellValue = tuple[str, int, Totals]
"""A cell's scope, day and cumulative totals."""

RestingValue = tuple[str, int, Totals | bytes]
"""The same, with bytes for totals at rest."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Totals).decode


class Cell:
    """The cumulative totals of ``scope`` on ``day`` (days since 1970-01-01 UTC).

    What users pay themselves is kept instead of what organisations pay, as it is the rare case.
    ``home`` is the partition that merges the scope, where somebody has looked that up.
    """

    __slots__ = (
        "cost_nano",
        "day",
        "flush",
        "home",
        "requests",
        "scope",
        "tokens",
        "unpriced",
        "user_cost_nano",
        "user_unpriced",
    )

    def __init__(self, scope: str, day: int, home: int | None = None) -> None:
        self.scope = scope
        self.day = day
        self.flush = -1
        self.home = home
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
        """The cell's values now."""
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


def packed(totals: Totals) -> bytes | None:
    """Totals as they rest: MessagePack, which ends at 64 bits; None for a sum that does not."""
    requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced = totals
    # What organisations do not pay is nearly always 0, and takes a byte then.
    user_cost_nano, user_unpriced = cost_nano - org_cost_nano, unpriced - org_unpriced
    try:
        return _encode((requests, tokens, cost_nano, user_cost_nano, unpriced, user_unpriced))
    except OverflowError:
        return None


def unpacked(at_rest: bytes) -> Totals:
    """The totals that ``packed`` was given."""
    requests, tokens, cost_nano, user_cost_nano, unpriced, user_unpriced = _decode(at_rest)
    org_cost_nano = cost_nano - user_cost_nano if user_cost_nano else cost_nano
    return requests, tokens, cost_nano, org_cost_nano, unpriced, unpriced - user_unpriced


def at_work(found: Totals | bytes) -> Totals:
    """The totals, whether they rest or not."""
    return unpacked(found) if isinstance(found, bytes) else found


class DayCells(dict[str, Totals | bytes]):
    """What one source said of one day, by scope; bytes are totals at rest."""

    __slots__ = ()

    def totals(self, scope: str) -> Totals | None:
        """The totals of a scope, at rest or not; they go on resting."""
        return at_work(self[scope]) if scope in self else None

    def rest(self, scope: str) -> None:
        """Packs the totals of a scope that is there, unless they are beyond 64 bits."""
        found = self[scope]
        if not isinstance(found, bytes):
            self[scope] = packed(found) or found


def sum_totals(parts: Iterable[Totals]) -> Totals:
    """Adds totals field by field."""
    result = [0, 0, 0, 0, 0, 0]
    for part in parts:
        for index, value in enumerate(part):
            result[index] += value
    return tuple(result)  # type: ignore[return-value]
