"""The usual events of a slice, read, priced, summed up and encoded by the compiled library.

What it does not take, and whether there is such a library at all, makes no difference but in time:
``core.intake`` has all of it in Python, and tests hold the two to the same answers.
"""

import secrets
from collections.abc import Iterable
from functools import cache
from itertools import repeat
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.core.dedupe_segment import Mask, Words
from pipeline.core.event_codec import TimeLimits
from pipeline.core.event_fields import COUNTERS
from pipeline.core.prices import Fixed, PriceVersion
from pipeline.core.record_columns import RecordColumns
from pipeline.core.rows import Rows
from pipeline.core.totals import Rare, Sums
from pipeline.native.library import MODEL, SUM, Groups, Rules, library

MAX_RECORDS: Final = 4_096
"""Sums over so many events stay within 64 bits, and where none of them is usual, the others of the
event loop need not wait for long."""
_BY_COUNT, _FIXED = 1, 2
_STATUSES: Final = ("priced", "free", "unpriced")
_MOST: Final = 2**62
_LONGEST_NAME: Final = 4_096
_FREE_COUNTS: Final = (0,) * len(COUNTERS)
_NOT_HERE: Final = (0, 0, 0, 0, 0, *_FREE_COUNTS, 1, 0, 0)

# Columns of ``SUM``; of places and lengths there are three.
_DAY, _AT, _LENGTH, _HOME, _REQUESTS, _TOKENS, _COST_NANO = 0, 1, 4, 7, 8, 9, 10
_RARE: Final = slice(11, 14)

_NOTHING: Final = RecordColumns.of([])

_Row = tuple[int, ...]
"""The values of ``RATE``."""
_MAX_RATES: Final = 4_096


def usual_reader(partition: int, partitions: int) -> "UsualSlice | None":
    """A reader for the events at home on ``partition``; None where nothing was compiled."""
    compiled = library()
    return None if compiled is None else UsualSlice(compiled, partition, partitions)


class _Array:
    """An array whose address is known."""

    __slots__ = ("address", "items")

    def __init__(self, shape: int | tuple[int, int], dtype: npt.DTypeLike) -> None:
        self.items: npt.NDArray[Any] = np.zeros(shape, dtype)
        self.address: int = self.items.ctypes.data


class _Workspace:
    """Room for the numbers of one slice, for all partitions of this process."""

    def __init__(self, compiled: Any) -> None:
        self.events = _Array(MAX_RECORDS * compiled.tp_event_bytes() // 8, np.int64)
        self.keys = _Array((MAX_RECORDS, 2), "<u8")
        self.usual = _Array(MAX_RECORDS, np.bool_)
        self.priced = _Array(MAX_RECORDS, np.bool_)
        self.model_of = _Array(MAX_RECORDS, np.uint32)
        self.models = _Array((MAX_RECORDS, len(MODEL)), np.int64)
        self.costs_nano = _Array(MAX_RECORDS, np.int64)
        self.ends = _Array(MAX_RECORDS, np.int64)
        self.shared = _Array((MAX_RECORDS, len(SUM)), np.int64)
        self.users = _Array((MAX_RECORDS, len(SUM)), np.int64)
        self.counts = _Array(2, np.int64)
        self.slots = _Array(2 * MAX_RECORDS, np.uint32)
        self.names = _Array(MAX_RECORDS * compiled.tp_name_bytes() // 8, np.int64)


_workspace = cache(_Workspace)


class UsualSlice:
    """Reads one slice after the other, and has to be done with it before any other one of this
    process reads the next: they share their memory.

    ``usual`` says which records are usual events, ``keys`` are their identities (two words each).
    Not for several threads.
    """

    max_records = MAX_RECORDS

    def __init__(self, compiled: Any, partition: int, partitions: int) -> None:
        self._compiled = compiled
        self._rules = Rules(partition, partitions)
        self._work = work = _workspace(compiled)
        self._groups = Groups(work.slots.address, 0, secrets.randbits(64), work.names.address, 0)
        self._row_bytes: int = compiled.tp_row_bytes()
        self.release()
        self._prices: PriceVersion | None = None
        self._known_rates: dict[tuple[str, str, str], tuple[_Row, bytes]] = {}

    def release(self) -> None:
        """Lets go of the slice."""
        self._records, self._table = _NOTHING, _NOTHING.table

    def read(self, records: RecordColumns, limits: TimeLimits) -> None:
        """Reads at most ``MAX_RECORDS`` records."""
        count = len(records)
        if count > MAX_RECORDS:
            raise ValueError(f"{count} records; a slice has at most {MAX_RECORDS}")
        self._records = records
        self._table = np.ascontiguousarray(records.table)
        self._table_at: int = self._table.ctypes.data
        self._begin, self._end = _extent(self._table)
        self._rules.max_age_us, self._rules.max_skew_us = limits.max_age_us, limits.max_skew_us
        # As many slots as names at least twice, and a power of two.
        self._groups.mask = (1 << max(count, 1).bit_length() + 1) - 1 & 2 * MAX_RECORDS - 1
        self._compiled.tp_read(
            records.data, self._table_at, count, self._rules, self._work.events.address,
            self._work.keys.address, self._work.usual.address,
        )  # fmt: skip

    @property
    def usual(self) -> Mask:
        return self._work.usual.items[: len(self._records)]

    @property
    def keys(self) -> Words:
        return self._work.keys.items[: len(self._records)]

    def price(self, admitted: Mask, prices: PriceVersion) -> tuple[Mask, int]:
        """Prices the admitted ones of the usual events.

        Returns for which of them the price, or that there is none, is certain, and how many have
        none. The others are for ``PriceVersion.price``.
        """
        count, work = len(self._records), self._work
        priced: Mask = work.priced.items[:count]
        np.logical_and(admitted, self.usual, out=priced)
        models = self._compiled.tp_models(
            self._records.data, work.events.address, work.priced.address, count, self._groups,
            work.model_of.address, work.models.address,
        )  # fmt: skip
        rates, names = self._rates_of(work.models.items[:models].tolist(), prices)
        self._rates, self._rate_names = np.array(rates, np.int64), b"".join(names)
        self._longest_name = max(map(len, names), default=0)
        unpriced = self._compiled.tp_price(
            work.events.address, work.priced.address, count, work.model_of.address,
            self._rates.ctypes.data, work.costs_nano.address,
        )  # fmt: skip
        return priced, unpriced

    def rows(self) -> Rows:
        """The rows of those events, one for each in their order."""
        count, work = len(self._records), self._work
        priced = work.priced.items[:count]
        most = self._end - self._begin + count * (self._row_bytes + self._longest_name)
        packed = np.empty(most, np.uint8)
        size = self._compiled.tp_rows(
            self._records.data, work.events.address, work.priced.address, count,
            self._table_at, work.costs_nano.address, work.model_of.address,
            self._rates.ctypes.data, self._rate_names, packed.ctypes.data, work.ends.address,
        )  # fmt: skip
        ends, offsets = work.ends.items[:count], self._records.offsets
        if not priced.all():
            ends, offsets = ends[priced], offsets[priced]
        return Rows(packed[:size].data, ends.copy(), offsets.copy())

    def sums(self) -> Sums:
        """What those events add to the cells."""
        count, work = len(self._records), self._work
        self._compiled.tp_add_up(
            self._records.data, work.events.address, work.priced.address, count,
            work.costs_nano.address, work.model_of.address, self._rates.ctypes.data,
            self._rules.partitions, self._groups, work.shared.address, work.users.address,
            work.counts.address,
        )  # fmt: skip
        shared, users = work.counts.items.tolist()
        # A character for each byte, from the first value to the last; the names are all ASCII.
        text = str(memoryview(self._records.data)[self._begin : self._end], "latin-1")
        shared, users = work.shared.items[:shared], work.users.items[:users]
        names = [self._names(text, shared, number) for number in range(3)]
        scopes = ["user:" + user for user in self._names(text, users, 0)]
        return Sums(
            zip(_column(shared, _DAY), *names, *_amounts(shared), _rare(shared), strict=False),
            zip(
                _column(users, _DAY), scopes, _column(users, _HOME), *_amounts(users),
                _rare(users), strict=False,
            ),
        )  # fmt: skip

    def _names(self, text: str, sums: npt.NDArray[Any], number: int) -> list[str]:
        """One of the three names of each sum; ``text`` begins with the first value."""
        starts, lengths = _column(sums, _AT + number), _column(sums, _LENGTH + number)
        begin = self._begin
        return [
            text[at - begin : at - begin + length]
            for at, length in zip(starts, lengths, strict=True)
        ]

    def _rates_of(
        self, models: list[list[int]], prices: PriceVersion
    ) -> tuple[list[_Row], list[bytes]]:
        if prices is not self._prices or len(self._known_rates) > _MAX_RATES:
            self._prices = prices
            self._known_rates.clear()
        rates, names, named = list[_Row](), list[bytes](), 0
        data = self._records.data
        for provider_at, model_at, tier_at, provider, model, tier, first_us in models:
            key = (
                str(data[provider_at : provider_at + provider], "ascii"),
                str(data[model_at : model_at + model], "ascii"),
                str(data[tier_at : tier_at + tier], "ascii"),
            )
            known = self._known_rates.get(key)
            if known is None or not known[0][1] <= first_us < known[0][2]:
                known = self._known_rates[key] = _rate(prices, key, first_us)
            row, name = known
            rates.append((*row, named, len(name)))
            names.append(name)
            named += len(name)
        return rates, names


def _column(sums: npt.NDArray[Any], number: int) -> list[int]:
    return sums[:, number].tolist()


def _amounts(sums: npt.NDArray[Any]) -> list[list[int]]:
    return [_column(sums, number) for number in (_REQUESTS, _TOKENS, _COST_NANO)]


def _rare(sums: npt.NDArray[Any]) -> Iterable[Rare | None]:
    """The rare amounts of each sum; without end where there are none."""
    rare = sums[:, _RARE]
    if not rare.any():
        return repeat(None)
    return [tuple(values) if any(values) else None for values in rare.tolist()]


def _extent(table: npt.NDArray[Any]) -> tuple[int, int]:
    """Where the first value begins, and where the last one ends."""
    if not len(table):
        return 0, 0
    last = table[-1]
    return int(table[0]["value_at"]), int(last["value_at"]) + max(int(last["value_length"]), 0)


def _rate(prices: PriceVersion, key: tuple[str, str, str], at_us: int) -> tuple[_Row, bytes]:
    """A row of ``RATE`` but for its name, and that."""
    found = prices.price_at(key, at_us)
    if isinstance(found, Fixed):
        since_us, until_us, price = found
        cost_nano, status = price.cost_nano or 0, _STATUSES.index(price.status)
        estimated = price.estimated
        row = (_FIXED, since_us, until_us, 0, cost_nano, *_FREE_COUNTS, 1, status, estimated)
        name = price.rate_id
    else:
        since_us, until_us, most, request, per_count, denominator, name, estimated = found
        limits = (since_us, until_us, min(most, _MOST))
        row = (_BY_COUNT, *limits, request, *per_count, denominator, 0, estimated)
    if max(map(abs, row)) > _MOST or len(name) > _LONGEST_NAME:
        return _NOT_HERE, b""
    return row, name.encode()
