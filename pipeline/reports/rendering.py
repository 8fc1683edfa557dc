"""The weekly report as a subject, as plain text, as HTML for a mail, and as JSON; pure."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from pipeline.core.money import format_nano
from pipeline.core.names import with_name
from pipeline.reports import caps, mail_html
from pipeline.reports.amounts import change, count, money
from pipeline.reports.figures import Compared, Spent, WeeklyFigures
from pipeline.reports.mail_html import Bar
from pipeline.reports.plain_text import bar_line

TITLE = "AI usage & cost"

_PAYERS = {"org": "paid by the organisation", "user": "paid by users"}
_NO_USAGE = "Nothing was used in this week."
_NO_USERS = "No usage of this week names a user."

Names = Mapping[str, str]
"""Display names by scope, such as ``user:u1``; an id without one is shown as it is."""


def subject(figures: WeeklyFigures) -> str:
    """The line that a mail client lists."""
    cost = money(figures.total.week.cost_nano, figures.currency)
    return f"{TITLE}: {cost} in the week of {figures.first_day.isoformat()}"


def as_text(figures: WeeklyFigures, names: Names | None = None) -> str:
    """The report in plain text, at most 80 columns wide but for long names."""
    currency = figures.currency
    rolling = figures.rolling
    lines = [
        TITLE,
        _span(figures.first_day, figures.end_day),
        "",
        f"Week             {money(figures.total.week.cost_nano, currency)}",
        f"  {_beside(figures.total, currency)}",
        f"  {_used(figures.total.week)}",
        *(f"  {_payer(line, currency)}" for line in figures.by_payer),
        f"Rolling 30 days  {money(rolling.cost_nano, currency)}",
        f"  {_span(figures.rolling_first_day, figures.rolling_end_day)}",
        f"  {_used(rolling)}",
        "",
        "Cost by kind",
        *_text_bars(figures.kinds, currency, {}, _NO_USAGE),
        "",
        "Top users by cost",
        *_text_bars(figures.users, currency, _users(figures, names), _NO_USERS),
        "",
        *caps.text_lines(figures.budgets, currency, names or {}),
        "",
        *_notes(figures),
    ]
    return "\n".join(lines) + "\n"


def as_html(figures: WeeklyFigures, names: Names | None = None) -> str:
    """The report as a document for mail clients; whatever is in a name is shown as text."""
    currency, total = figures.currency, figures.total
    payers = " · ".join(_payer(line, currency) for line in figures.by_payer)
    parts = [
        mail_html.heading(TITLE, _span(figures.first_day, figures.end_day)),
        mail_html.figure(
            "Cost of the week", money(total.week.cost_nano, currency), _beside(total, currency)
        ),
        mail_html.small_print(" · ".join(filter(None, [_used(total.week), payers]))),
        mail_html.figure(
            "Cost of the rolling 30 days",
            money(figures.rolling.cost_nano, currency),
            _span(figures.rolling_first_day, figures.rolling_end_day),
        ),
        mail_html.small_print(_used(figures.rolling)),
        mail_html.section("Cost by kind"),
        mail_html.bars(_html_bars(figures.kinds, currency, {}), _NO_USAGE),
        mail_html.section("Top users by cost"),
        mail_html.bars(_html_bars(figures.users, currency, _users(figures, names)), _NO_USERS),
        *caps.html_parts(figures.budgets, currency, names or {}),
        *map(mail_html.small_print, _notes(figures)),
    ]
    return mail_html.page(subject(figures), parts)


def as_json(figures: WeeklyFigures, names: Names | None = None) -> dict[str, Any]:
    """The report with exact amounts: decimal strings, null where nothing has a price."""
    shown = _users(figures, names)
    return {
        "report": TITLE,
        "currency": figures.currency,
        "week": {
            "from": figures.first_day.isoformat(),
            "to": figures.end_day.isoformat(),
            **_line(figures.total),
        },
        "rolling_30_days": {
            "from": figures.rolling_first_day.isoformat(),
            "to": figures.rolling_end_day.isoformat(),
            **_spent(figures.rolling),
        },
        "by_billing_scope": [{"billing_scope": p.key, **_line(p)} for p in figures.by_payer],
        "kinds": [{"kind": kind.key, **_line(kind)} for kind in figures.kinds],
        "top_users": [
            {"user_id": user.key, "name": shown.get(user.key), **_line(user)}
            for user in figures.users
        ],
        **caps.json_fields(figures.budgets, names or {}),
        "other_currencies": list(figures.other_currencies),
    }


def _users(figures: WeeklyFigures, names: Names | None) -> dict[str, str]:
    """Display names of the users in the report, by id."""
    found = {line.key: (names or {}).get(f"user:{line.key}") for line in figures.users}
    return {key: name for key, name in found.items() if name}


def _label(line: Compared, shown: Mapping[str, str]) -> str:
    return with_name(line.key, shown.get(line.key))


def _text_bars(
    lines: Sequence[Compared], currency: str, shown: Mapping[str, str], none: str
) -> list[str]:
    if not lines:
        return [f"  {none}"]
    found: list[str] = []
    for line, percent in zip(lines, _percents(lines), strict=True):
        amount = money(line.week.cost_nano, currency)
        found.append(bar_line(_label(line, shown), amount, percent))
        found.append(f"    {_used(line.week)}; {_beside(line, currency)}")
    return found


def _html_bars(lines: Sequence[Compared], currency: str, shown: Mapping[str, str]) -> list[Bar]:
    return [
        Bar(
            _label(line, shown),
            money(line.week.cost_nano, currency),
            f"{_used(line.week)} · {_beside(line, currency)}",
            percent,
        )
        for line, percent in zip(lines, _percents(lines), strict=True)
    ]


def _percents(lines: Sequence[Compared]) -> list[int]:
    """The length of each bar: its cost in percent of the dearest one; 1 for what is not nothing."""
    costs = [max(0, line.week.cost_nano or 0) for line in lines]
    most = max(costs, default=0)
    return [max(1, cost * 100 // most) if cost else 0 for cost in costs]


def _used(spent: Spent) -> str:
    text = f"{count(spent.requests)} requests, {count(spent.tokens)} tokens"
    return f"{text}, {count(spent.unpriced)} without a price" if spent.unpriced else text


def _beside(line: Compared, currency: str) -> str:
    return f"week before {money(line.before.cost_nano, currency)}, change {change(line)}"


def _payer(line: Compared, currency: str) -> str:
    return f"{money(line.week.cost_nano, currency)} {_PAYERS.get(line.key, line.key)}"


def _span(first_day: date, end_day: date) -> str:
    return f"{first_day.isoformat()} to {(end_day - timedelta(days=1)).isoformat()} (UTC days)"


def _notes(figures: WeeklyFigures) -> list[str]:
    found: list[str] = []
    if figures.total.week.unpriced or figures.rolling.unpriced:
        found.append(
            "What has no price is not in these amounts: set a rate, then it can be priced."
        )
    if figures.other_currencies:
        others = ", ".join(figures.other_currencies)
        found.append(f"The ledger also has amounts in {others}, which are not added up here.")
    return [*found, f"Amounts in {figures.currency}, as the ledger had them when this was made."]


def _line(line: Compared) -> dict[str, Any]:
    change_nano = line.change_nano
    return {
        **_spent(line.week),
        "week_before": _spent(line.before),
        "cost_change": None if change_nano is None else format_nano(change_nano),
        "change_permille": line.change_permille,
    }


def _spent(spent: Spent) -> dict[str, Any]:
    return {
        "cost": None if spent.cost_nano is None else format_nano(spent.cost_nano),
        "requests": spent.requests,
        "total_tokens": spent.tokens,
        "unpriced_requests": spent.unpriced,
    }
