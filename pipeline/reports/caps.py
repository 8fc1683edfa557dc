"""The section "Budgets closest to their caps" as plain text, as HTML and as JSON; pure."""

from collections.abc import Mapping
from typing import Any

from pipeline.core.budgets import State, cap_share_ppm, state_fields
from pipeline.core.forecast import BudgetOutlook, forecast_fields
from pipeline.core.names import with_name
from pipeline.core.scopes import format_scope
from pipeline.core.windows import format_ms
from pipeline.reports import mail_html
from pipeline.reports.amounts import count, money, period_name
from pipeline.reports.figures import Budgets
from pipeline.reports.mail_html import Bar
from pipeline.reports.plain_text import bar_line

_TITLE = "Budgets closest to their caps"
_UNKNOWN = "Budgets are not in this report: they could not be read from Kafka."
_NONE = "No budget with a hard cap is on, or none has been used."
_FIELDS = ("scope", "unit", "period", "used", "hard_cap")
_PPM_OF_PERCENT = 10_000
_FULL_PERCENT = 100


def text_lines(budgets: Budgets | None, currency: str, names: Mapping[str, str]) -> list[str]:
    """The section in plain text."""
    lines = [_TITLE]
    if budgets is None:
        return [*lines, f"  {_UNKNOWN}"]
    for found in budgets.closest:
        ppm = _share_ppm(found.state, budgets)
        lines += [
            bar_line(_label(found.state, names), _share(found.state, ppm), _percent(ppm)),
            f"    {_used(found.state, currency)}",
            f"    {_sentence(found)}",
        ]
    if not budgets.closest:
        lines.append(f"  {_NONE}")
    return [*lines, f"  {_as_of(budgets)}"]


def html_parts(budgets: Budgets | None, currency: str, names: Mapping[str, str]) -> list[str]:
    """The section as parts of a page."""
    title = mail_html.section(_TITLE)
    if budgets is None:
        return [title, mail_html.bars([], _UNKNOWN)]
    bars: list[Bar] = []
    for found in budgets.closest:
        ppm = _share_ppm(found.state, budgets)
        note = f"{_used(found.state, currency)} · {_sentence(found)}"
        label = _label(found.state, names)
        bars.append(Bar(label, _share(found.state, ppm), note, _percent(ppm)))
    return [title, mail_html.bars(bars, _NONE), mail_html.small_print(_as_of(budgets))]


def json_fields(budgets: Budgets | None, names: Mapping[str, str]) -> dict[str, Any]:
    """The section with exact amounts; null where the budgets are not known."""
    if budgets is None:
        return {"budgets_as_of": None, "budgets": None}
    return {
        "budgets_as_of": format_ms(budgets.as_of_ms),
        "budgets": [_fields(found, names) for found in budgets.closest],
    }


def _fields(found: BudgetOutlook, names: Mapping[str, str]) -> dict[str, Any]:
    told = state_fields(found.state, 0, 0)
    return {
        **{name: told[name] for name in _FIELDS},
        "name": names.get(told["scope"]),
        "forecast": forecast_fields(found.forecast, found.state.unit),
    }


def _label(state: State, names: Mapping[str, str]) -> str:
    scope = format_scope(state.scope)
    return with_name(scope, names.get(scope))


def _share_ppm(state: State, budgets: Budgets) -> int:
    return cap_share_ppm(state, budgets.as_of_ms)


def _share(state: State, ppm: int) -> str:
    """The share of the cap, cut; never 0 for what is not, and no number where the cap is 0."""
    if not state.hard_cap:
        return "full"
    return "<1 %" if 0 < ppm < _PPM_OF_PERCENT else f"{count(ppm // _PPM_OF_PERCENT)} %"


def _percent(ppm: int) -> int:
    """The length of the bar."""
    return min(_FULL_PERCENT, max(1, ppm // _PPM_OF_PERCENT)) if ppm else 0


def _used(state: State, currency: str) -> str:
    used, cap = state.used, state.hard_cap or 0
    if state.unit == "cost":
        text = f"{money(used, currency)} of {money(cap, currency)}"
    else:
        text = f"{count(used)} of {count(cap)} tokens"
    text = f"{text} per {period_name(state.period)}"
    unpriced = state.unpriced_events if state.unit == "cost" else 0
    calls = "call" if unpriced == 1 else "calls"
    return f"{text}, {count(unpriced)} {calls} without a price" if unpriced else text


def _sentence(found: BudgetOutlook) -> str:
    text = forecast_fields(found.forecast, found.state.unit)["text"]
    return f"{text[0].upper()}{text[1:]}."


def _as_of(budgets: Budgets) -> str:
    return f"Budgets and forecasts are as of {format_ms(budgets.as_of_ms)[:10]} (UTC)."
