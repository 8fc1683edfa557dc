"""The weekly report on known figures: as text to the letter, as HTML by its parts, as JSON."""

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.core.forecast import Forecast
from pipeline.reports.amounts import change, money
from pipeline.reports.figures import (
    Budgets,
    Compared,
    Spent,
    due_week,
    last_week,
    rolling_span,
    total_of,
    week_of,
)
from pipeline.reports.rendering import as_html, as_json, as_text, subject
from tests.reports.figures_of_a_week import AS_OF_MS, FIGURES, NAMES, N, outlook

GOLDEN = Path(__file__).parent.parent / "golden" / "weekly_report.txt"
ALLOWED = {
    "html", "head", "meta", "title", "body", "table", "tr", "td", "p", "h1", "h2",
}  # fmt: skip


class Outline(HTMLParser):
    """Tags, attributes and texts of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def test_the_text_to_the_letter() -> None:
    assert as_text(FIGURES, NAMES) == GOLDEN.read_text("utf-8")
    assert subject(FIGURES) == "AI usage & cost: USD 1,246.92 in the week of 2026-11-16"


def test_nothing_in_a_name_becomes_markup() -> None:
    found = Outline(as_html(FIGURES, NAMES))
    assert set(found.tags) == ALLOWED
    assert found.open == []
    assert 'Anna "<img src=x onerror=alert(1)>" & Co (u1)' in found.texts
    assert "u<script>alert(1)</script>" in found.texts
    assert "North <b>Quay</b> & Sons (port:harbor-1)" in found.texts
    assert "user:<i>" in found.texts
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert not [value for _, value in found.attributes if "javascript:" in value]


def test_the_html_fetches_nothing_and_fits_narrow_and_wide_clients() -> None:
    text = as_html(FIGURES, NAMES)
    found = Outline(text)
    assert not {name for name, _ in found.attributes} & {"src", "href", "background"}
    assert "url(" not in text
    assert "@import" not in text
    assert "max-width:640px" in text
    widths = re.findall(r"(?<!max-)width[:=]\"?(\d+(?:%|px)?)", text)
    assert widths
    assert all(width.endswith("%") for width in widths)


def test_html_says_what_the_text_says() -> None:
    texts = Outline(as_html(FIGURES, NAMES)).texts
    for figure in ("USD 1,246.92", "USD 4,321.00", "no price", "USD 0.00234", "USD 300.00"):
        assert figure in texts
        assert figure in as_text(FIGURES)


def test_html_has_a_bar_for_each_budget_with_its_share_of_the_cap() -> None:
    text = as_html(FIGURES, NAMES)
    section = text[text.index("Budgets closest to their caps") :]
    assert re.findall(r'<td width="(\d+)%" style="background', section) == ["100", "62", "1"]
    found = Outline(text).texts
    assert found[found.index("North <b>Quay</b> & Sons (port:harbor-1)") + 1] == "62 %"
    assert (
        "USD 34.10 of USD 55.00 per month, 3 calls without a price · "
        "At this pace the cap is reached on 2026-11-28."
    ) in found
    assert "Budgets and forecasts are as of 2026-11-23 (UTC)." in found


def test_budgets_in_json_are_as_on_the_wire() -> None:
    told = as_json(FIGURES, NAMES)
    assert told["budgets_as_of"] == "2026-11-23T07:00:00.000Z"
    assert told["budgets"][1] == {
        "scope": "port:harbor-1",
        "name": NAMES["port:harbor-1"],
        "unit": "cost",
        "period": "month",
        "used": "34.1",
        "hard_cap": "55",
        "forecast": {
            "outlook": "on-date",
            "date": "2026-11-28",
            "at": "2026-11-28T03:00:00.000Z",
            "per_day": "4.1",
            "days": 7,
            "text": "at this pace the cap is reached on 2026-11-28",
        },
    }
    assert [(one["scope"], one["used"], one["hard_cap"]) for one in told["budgets"]][::2] == [
        ("user:<i>", 1_320_000, 1_000_000), ("all", "5", "1000"),
    ]  # fmt: skip


def test_without_budgets_it_says_in_a_line_why() -> None:
    unknown, none = replace(FIGURES, budgets=None), replace(FIGURES, budgets=Budgets(AS_OF_MS, ()))
    for figures, line in (
        (unknown, "Budgets are not in this report: they could not be read from Kafka."),
        (none, "No budget with a hard cap is on, or none has been used."),
    ):
        assert f"\nBudgets closest to their caps\n  {line}\n" in as_text(figures)
        assert line in Outline(as_html(figures)).texts
    assert (as_json(unknown)["budgets"], as_json(unknown)["budgets_as_of"]) == (None, None)
    assert as_json(none)["budgets"] == []


@pytest.mark.parametrize(
    ("used", "hard_cap", "shown", "marks"),
    [
        (0, 100, "0 %", 0),
        (1, 1_000, "<1 %", 1),
        (999, 1_000, "99 %", 20),
        (123_456, 100, "123,456 %", 20),
        (0, 0, "full", 20),
        (7, 0, "full", 20),
    ],
)
def test_shares_for_people(used: int, hard_cap: int, shown: str, marks: int) -> None:
    one = outlook("all", "tokens", "day", used, hard_cap, Forecast("reached"))
    text = as_text(replace(FIGURES, budgets=Budgets(AS_OF_MS, (one,))))
    (line,) = [line for line in text.splitlines() if line.startswith("  all ")]
    assert line.removeprefix("  all ").rstrip("#").strip() == shown
    assert line.count("#") == marks


def test_json_is_exact() -> None:
    told = as_json(FIGURES, NAMES)
    assert told["week"]["cost"] == "1246.915018901"
    assert told["week"]["week_before"]["cost"] == "1024"
    assert told["week"]["cost_change"] == "222.915018901"
    assert told["week"]["unpriced_requests"] == 4
    assert told["kinds"][3]["cost"] is None
    assert told["kinds"][3]["cost_change"] is None
    assert told["kinds"][2]["change_permille"] is None
    assert [user["user_id"] for user in told["top_users"]] == [one.key for one in FIGURES.users]
    assert told["top_users"][0]["name"] == NAMES["user:u1"]
    assert told["top_users"][1]["name"] is None
    assert (told["week"]["from"], told["week"]["to"]) == ("2026-11-16", "2026-11-23")


def test_a_week_without_usage_says_so() -> None:
    empty = replace(
        FIGURES, total=total_of(()), rolling=Spent(), by_payer=(), kinds=(), users=(),
        other_currencies=(),
    )  # fmt: skip
    for text in (as_text(empty), as_html(empty)):
        assert "USD 0.00" in text
        assert "Nothing was used in this week." in text
        assert "No usage of this week names a user." in text


@pytest.mark.parametrize(
    ("nano", "shown"),
    [
        (0, "USD 0.00"),
        (None, "no price"),
        (1, "USD <0.000001"),
        (-1, "USD -<0.000001"),
        (500, "USD <0.000001"),  # half to even
        (1_500, "USD 0.000002"),
        (125_000, "USD 0.000125"),
        (12 * N, "USD 12.00"),
        (12 * N + 345_000_000, "USD 12.34"),
        (999_999_999, "USD 1.00"),
        (-1_234_567 * N - 885_000_000, "USD -1,234,567.88"),
        (2**63 * 1000, "USD 9,223,372,036,854.78"),
    ],
)
def test_amounts_for_people(nano: int | None, shown: str) -> None:
    assert money(nano, "USD") == shown


@pytest.mark.parametrize(
    ("week", "before", "shown"),
    [
        (110, 100, "+10.0 %"),
        (90, 100, "-10.0 %"),
        (100, 100, "none"),
        (0, 100, "-100.0 %"),
        (5, 0, "new"),
        (0, 0, "none"),
        (1_009, 1_000, "+0.9 %"),
        (None, 1, "unknown"),
        (1, None, "unknown"),
    ],
)
def test_changes_for_people(week: int | None, before: int | None, shown: str) -> None:
    assert change(Compared("", Spent(week, 1), Spent(before, 1))) == shown


def test_unknown_is_never_zero_in_sums() -> None:
    unknown, known = Spent(None, 2, 5, 2), Spent(7, 1, 1)
    assert Spent() + unknown == unknown
    assert unknown + unknown == Spent(None, 4, 10, 4)
    assert unknown + known == Spent(7, 3, 6, 2)
    assert Spent() + Spent() == Spent()


def test_weeks_begin_on_monday_and_are_reported_at_seven() -> None:
    assert week_of(date(2026, 11, 22)) == date(2026, 11, 16)
    assert week_of(date(2026, 11, 23)) == date(2026, 11, 23)
    assert last_week(date(2026, 11, 23)) == date(2026, 11, 16)
    assert last_week(date(2026, 11, 29)) == date(2026, 11, 16)
    assert due_week(datetime(2026, 11, 23, 6, 59, 59, tzinfo=UTC)) == date(2026, 11, 9)
    assert due_week(datetime(2026, 11, 23, 7, tzinfo=UTC)) == date(2026, 11, 16)
    assert due_week(datetime(2026, 11, 29, 23, 59, tzinfo=UTC)) == date(2026, 11, 16)
    assert due_week(datetime(2026, 11, 30, 7, tzinfo=UTC)) == date(2026, 11, 23)


def test_thirty_days_end_today_for_the_newest_report() -> None:
    monday = date(2026, 11, 23)
    assert rolling_span(last_week(monday), monday) == (date(2026, 10, 25), date(2026, 11, 24))
    assert rolling_span(monday, monday) == (date(2026, 10, 25), date(2026, 11, 24))
    assert rolling_span(date(2026, 9, 7), monday) == (date(2026, 8, 15), date(2026, 9, 14))
