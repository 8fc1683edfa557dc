"""What the weekly report says, as figures; pure. Amounts are nanos of one currency."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any

from pipeline.core.forecast import BudgetOutlook

WEEK_DAYS = 7
ROLLING_DAYS = 30
TOP_USERS = 5
CLOSEST_BUDGETS = 5
SENT_AT = time(7)
"""On Mondays, UTC: when the report on the week that has just ended is due."""


@dataclass(frozen=True)
class Spent:
    """What was used in a span. ``cost_nano`` is None when nothing of it has a price."""

    cost_nano: int | None = 0
    requests: int = 0
    tokens: int = 0
    unpriced: int = 0

    def __add__(self, other: "Spent") -> "Spent":
        parts = [part for part in (self, other) if part != Spent()]
        known = [part.cost_nano for part in parts if part.cost_nano is not None]
        return Spent(
            sum(known) if known or not parts else None,
            self.requests + other.requests,
            self.tokens + other.tokens,
            self.unpriced + other.unpriced,
        )


NOTHING = Spent()


@dataclass(frozen=True)
class Compared:
    """One line of the report: a week beside the one before; ``key`` is an id of the ledger."""

    key: str
    week: Spent
    before: Spent

    @property
    def change_nano(self) -> int | None:
        """How much more the week cost; None when either is unknown."""
        if self.week.cost_nano is None or self.before.cost_nano is None:
            return None
        return self.week.cost_nano - self.before.cost_nano

    @property
    def change_permille(self) -> int | None:
        """The change in thousandths of the week before, cut; None when that was 0 or unknown."""
        if self.change_nano is None or not self.before.cost_nano or self.before.cost_nano < 0:
            return None
        thousandths = abs(self.change_nano) * 1000 // self.before.cost_nano
        return thousandths if self.change_nano >= 0 else -thousandths


@dataclass(frozen=True)
class Budgets:
    """The budgets closest to their hard caps, the closest first, as they are at ``as_of_ms``."""

    as_of_ms: int
    closest: tuple[BudgetOutlook, ...]


@dataclass(frozen=True)
class WeeklyFigures:
    """Everything one report says. Ends of spans are exclusive.

    ``total`` and ``kinds`` count everything, ``by_payer`` splits it into what the organisation and
    what users pay for. ``other_currencies`` are those that the ledger also has in these days.
    ``budgets`` is None where nobody could say which there are.
    """

    currency: str
    first_day: date
    end_day: date
    rolling_first_day: date
    rolling_end_day: date
    total: Compared
    rolling: Spent
    by_payer: tuple[Compared, ...]
    kinds: tuple[Compared, ...]
    users: tuple[Compared, ...]
    other_currencies: tuple[str, ...] = ()
    budgets: Budgets | None = None


def week_of(day: date) -> date:
    """The Monday of the week that ``day`` lies in."""
    return day - timedelta(days=day.weekday())


def last_week(today: date) -> date:
    """The Monday of the last week that is over."""
    return week_of(today) - timedelta(days=WEEK_DAYS)


def due_week(now: datetime) -> date:
    """The Monday of the week that the newest scheduled report is on, at ``now`` (UTC)."""
    monday = week_of(now.date())
    if now.weekday() == 0 and now.time() < SENT_AT:
        monday -= timedelta(days=WEEK_DAYS)
    return monday - timedelta(days=WEEK_DAYS)


def rolling_span(first_day: date, today: date) -> tuple[date, date]:
    """The 30 days that a report on a week shows: up to today for the newest two weeks, else up to
    the end of that week; first day and end day, the latter exclusive."""
    end_of_week = first_day + timedelta(days=WEEK_DAYS)
    newest = first_day >= last_week(today)
    end_day = today + timedelta(days=1) if newest else end_of_week
    return end_day - timedelta(days=ROLLING_DAYS), end_day


def spent_of(row: Mapping[str, Any]) -> Spent:
    """What a row of the ledger's sums says."""
    cost_nano = row["cost_nano"]
    return Spent(
        None if cost_nano is None else int(cost_nano),
        int(row["requests"]),
        int(row["total_tokens"]),
        int(row["unpriced_requests"]),
    )


def compared(
    week: Iterable[Mapping[str, Any]], before: Iterable[Mapping[str, Any]], by: str
) -> tuple[Compared, ...]:
    """Rows of two weeks by the dimension ``by``, the dearest of the week first."""
    sums = [_sums(rows, by) for rows in (week, before)]
    keys = dict.fromkeys([*sums[0], *sums[1]])
    lines = [Compared(key, sums[0].get(key, NOTHING), sums[1].get(key, NOTHING)) for key in keys]
    return tuple(sorted(lines, key=_dearest_first))


def total_of(lines: Iterable[Compared]) -> Compared:
    """All lines added up."""
    week, before = NOTHING, NOTHING
    for line in lines:
        week, before = week + line.week, before + line.before
    return Compared("", week, before)


def _sums(rows: Iterable[Mapping[str, Any]], by: str) -> dict[str, Spent]:
    found: dict[str, Spent] = {}
    for row in rows:
        found[row[by]] = found.get(row[by], NOTHING) + spent_of(row)
    return found


def _dearest_first(line: Compared) -> tuple[int, int, int, str]:
    return (
        -1 if line.week.cost_nano is None else -line.week.cost_nano,
        0 if line.before.cost_nano is None else -line.before.cost_nano,
        -line.week.tokens,
        line.key,
    )
