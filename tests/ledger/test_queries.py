"""The named queries against a recount in plain Python, with days open and with days closed."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.core.policies import Policy
from pipeline.core.scopes import format_scope
from pipeline.core.windows import DAY_MS, window
from pipeline.ledger.budget_actuals import MAX_NAMED, budgets_against_actual
from pipeline.ledger.client import connect
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.filters import DIMENSIONS, UsageFilters, asked
from pipeline.ledger.migrate import migrate_address
from pipeline.ledger.queries import named_queries, named_query
from pipeline.ledger.trends import cost_percentiles, daily_series, focus_charges, month_on_month
from pipeline.ledger.usage import (
    as_of,
    ledger_totals,
    top,
    unpriced_events,
    unpriced_models,
    usage_report,
)
from pipeline.ledger.user_events import EventPlace, user_events
from tests.ledger.closed_days import close_all
from tests.ledger.priced_blocks import chain, dicts

Entry = dict[str, Any]
NANO = Decimal("0.000000001")
# Blocks lie from 29 November to 2 December 2026; this takes them to 30 August to 2 September.
SHIFT_DAYS = -91
FIRST_DAY, END_DAY = date(2026, 8, 28), date(2026, 9, 5)
NASTY = [
    "' OR 1 --", "'); DROP TABLE ledger_entries; --", "\\'", "\\", "a\tb\nc\rd\0e", "{x:String}",
    "%' AND 1=1 --", '"', "`", "/*", "*", "ü|€:%2A", "${jndi:x}", "[where]", "' UNION ALL SELECT 1",
]  # fmt: skip


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    """Entries of about 500 events, some of them corrected, as dictionaries of what is stored."""
    found: list[Entry] = []
    for entry in dicts(chain(1, 25)):
        at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=entry["occurred_at_us"])
        found.append(
            {
                **entry,
                "at": at + timedelta(days=SHIFT_DAYS),
                "entry_no": 0,
                "requests": 1,
                "unpriced_requests": int(entry["cost_nano"] is None),
                "total_tokens": entry["input_tokens"] + entry["output_tokens"],
                "correction_reason": "",
            }
        )
    return [*found, *corrections(found)]


def corrections(entries: Sequence[Entry]) -> Iterable[Entry]:
    """A void, a later price and a changed price, of some events."""
    nothing = dict.fromkeys(
        ("input_tokens", "cached_input_tokens", "output_tokens", "total_tokens", "characters",
         "audio_nano"), 0,
    )  # fmt: skip
    priced = [e for e in entries if e["cost_nano"]]
    unpriced = [e for e in entries if e["cost_nano"] is None]
    for entry in priced[:5]:
        taken_back = {name: -entry[name] for name in nothing}
        yield {**entry, **taken_back, "entry_no": 1, "requests": -1, "unpriced_requests": 0,
               "cost_nano": -entry["cost_nano"], "correction_reason": "void"}  # fmt: skip
    for entry in priced[5:9]:
        yield {**entry, **nothing, "entry_no": 1, "requests": 0, "cost_nano": -1_000,
               "correction_reason": "cheaper"}  # fmt: skip
    for entry in unpriced[:7]:
        yield {**entry, **nothing, "entry_no": 1, "requests": 0, "unpriced_requests": -1,
               "cost_nano": 5_000_000, "price_status": "priced",
               "correction_reason": "rate set"}  # fmt: skip


@pytest.fixture(scope="module", params=["open", "closed"])
def ledger(
    request: pytest.FixtureRequest, ledger_server: Any, entries: list[Entry]
) -> Iterable[Client]:
    """The entries in a database of their own; half of the runs with every day rolled up."""
    from dataclasses import replace
    from uuid import uuid4

    from pipeline.ledger.client import parse_address

    url = ledger_server.url_with_login
    address = replace(parse_address(url), database=f"t_{uuid4().hex[:12]}")
    migrate_address(address)
    client = connect(address)
    fill(client, entries)
    if request.param == "closed":
        assert close_all(client) == 4
    yield client
    client.command(f"DROP DATABASE {address.database}")
    client.close()


def fill(client: Client, entries: Sequence[Entry]) -> None:
    blocks = chain(1, 25)
    first = [e for month in by_month(entries_table(blocks, "USD")) for e in month.to_pylist()]
    by_id = {(e["port_id"], e["event_id"]): e for e in first}
    rows: list[Entry] = []
    for entry in entries:
        stored = {**by_id[entry["port_id"], entry["event_id"]]}
        for name in stored.keys() & entry.keys() - {"estimated", "tags"}:
            stored[name] = entry[name]
        rows.append({**stored, "occurred_at": entry["at"], "tags": dict(stored["tags"])})
    DayMarks().before_change(client, {e["at"].date() for e in entries})
    for month in (8, 9):
        part = [list(r.values()) for r in rows if r["occurred_at"].month == month]
        client.insert("ledger_entries", part, column_names=list(rows[0]))


def summed(entries: Iterable[Entry], key: Callable[[Entry], Any]) -> dict[Any, Entry]:
    """Plain sums by ``key``; a cost stays None where nothing had a price."""
    cells: dict[Any, Entry] = defaultdict(lambda: defaultdict(int, cost_nano=None, entries=0))
    for entry in entries:
        cell = cells[key(entry)]
        for name in ("requests", "input_tokens", "cached_input_tokens", "output_tokens",
                     "total_tokens", "characters", "audio_nano", "unpriced_requests"):  # fmt: skip
            cell[name] += entry[name]
        cell["entries"] += 1
        if entry["estimated"] or entry["price_estimated"]:
            cell["estimated_requests"] += entry["requests"]
        if entry["cost_nano"] is not None:
            cell["cost_nano"] = (cell["cost_nano"] or 0) + entry["cost_nano"]
    return cells


def money(cost_nano: int | None) -> Decimal | None:
    return None if cost_nano is None else cost_nano * NANO


def cost_of(cells: dict[Any, Entry], key: Any) -> int | None:
    """Nothing used costs 0; used without any price is None."""
    return cells[key]["cost_nano"] if key in cells else 0


KEYS: dict[str, Callable[[Entry], Any]] = {
    "hour": lambda e: e["at"].replace(minute=0, second=0, microsecond=0),
    "day": lambda e: e["at"].date(),
    "week": lambda e: e["at"].date() - timedelta(days=e["at"].weekday()),
    "month": lambda e: e["at"].date().replace(day=1),
    "port": lambda e: e["port_id"],
    "organization": lambda e: e["organization_id"],
    "group": lambda e: e["group_id"],
    "user": lambda e: e["user_id"],
    "rate": lambda e: e["rate_id"],
    "session": lambda e: e["session_id"],
    **{
        name: (lambda e, name=name: e[name])
        for name in ("service", "feature", "kind", "provider", "model", "endpoint",
                     "service_tier", "billing_scope", "price_status")
    },
}  # fmt: skip


@pytest.mark.parametrize("by", [*([name] for name in DIMENSIONS), ["month", "user", "model"], []])
def test_usage_by_every_dimension(ledger: Client, entries: list[Entry], by: list[str]) -> None:
    found = {
        tuple(row[name] for name in by): (
            row["requests"], row["input_tokens"], row["cached_input_tokens"], row["output_tokens"],
            row["total_tokens"], row["characters"], row["audio_seconds"], row["cost_nano"],
            row["cost"], row["unpriced_requests"], row["estimated_requests"],
        )
        for row in usage_report(ledger, UsageFilters(), by)
    }  # fmt: skip
    assert found == {
        key: (
            c["requests"], c["input_tokens"], c["cached_input_tokens"], c["output_tokens"],
            c["total_tokens"], c["characters"], c["audio_nano"] * NANO, c["cost_nano"],
            money(c["cost_nano"]), c["unpriced_requests"], c["estimated_requests"],
        )
        for key, c in summed(entries, lambda e: tuple(KEYS[name](e) for name in by)).items()
    }  # fmt: skip


def test_the_cheapest_source_is_asked() -> None:
    day, hour = datetime(2026, 9, 1, tzinfo=UTC), datetime(2026, 9, 1, 1, tzinfo=UTC)
    for filters, by, source in [
        (UsageFilters(), ["user", "month"], "usage_daily_users"),
        (UsageFilters(ports=("a",)), ["group"], "usage_daily_users"),
        (UsageFilters(user_id="u", start=day), ["port"], "usage_daily_users"),
        (UsageFilters(port_id="p", end=day), ["feature", "model"], "usage_daily_ports"),
        (UsageFilters(user_id="u"), ["model"], "usage_daily"),
        (UsageFilters(service="s"), [], "usage_daily"),
        (UsageFilters(start=hour), ["day"], "(SELECT *"),
        (UsageFilters(), ["rate"], "(SELECT *"),
    ]:
        assert asked(filters, by).source.startswith(source), (filters, by)


def test_usage_is_filtered_and_paged(ledger: Client, entries: list[Entry]) -> None:
    start, end = datetime(2026, 8, 31, tzinfo=UTC), datetime(2026, 9, 2, tzinfo=UTC)
    for times in [(start, end), (start + timedelta(hours=3), end - timedelta(minutes=7))]:
        filters = UsageFilters(
            billing_scope="org", feature="ocr", ports=("harbor-0-1", "harbor-0-2"),
            start=times[0], end=times[1],
        )  # fmt: skip
        kept = [
            e for e in entries
            if e["billing_scope"] == "org" and e["feature"] == "ocr"
            and e["port_id"] in filters.ports and times[0] <= e["at"] < times[1]
        ]  # fmt: skip
        cells = summed(kept, lambda e: e["user_id"])
        pages = [usage_report(ledger, filters, ["user"], 2, offset) for offset in (0, 2, 4)]
        assert [len(page) for page in pages] == [2, len(cells) - 2, 0]
        assert {r["user"]: r["cost_nano"] for page in pages for r in page} == {
            user: cell["cost_nano"] for user, cell in cells.items()
        }
    assert usage_report(ledger, UsageFilters(ports=()), ["user"]) == []


@pytest.mark.parametrize("by", ["port", "user", "model", "organization", "feature"])
def test_top(ledger: Client, entries: list[Entry], by: str) -> None:
    cells = summed((e for e in entries if KEYS[by](e)), KEYS[by])
    dearest = sorted(cells, key=lambda name: -(cells[name]["cost_nano"] or 0))[:2]
    found = top(ledger, by, UsageFilters(), 2)
    assert [(row[by], row["cost_nano"], row["requests"]) for row in found] == [
        (name, cells[name]["cost_nano"], cells[name]["requests"]) for name in dearest
    ]


def test_a_series_has_every_day(ledger: Client, entries: list[Entry]) -> None:
    found = daily_series(ledger, UsageFilters(port_id="harbor-0-1"), FIRST_DAY, END_DAY, "USD")
    mine = [e for e in entries if e["port_id"] == "harbor-0-1"]
    whole = summed(mine, lambda e: e["at"].date())
    split = summed(mine, lambda e: (e["at"].date(), e["billing_scope"]))
    expected = []
    for number in range((END_DAY - FIRST_DAY).days):
        day = FIRST_DAY + timedelta(days=number)
        cell = whole[day] if day in whole else defaultdict(int)
        expected.append(
            (day, "USD", cell["requests"], cell["total_tokens"], money(cost_of(whole, day)),
             split[day, "org"]["requests"] if (day, "org") in split else 0,
             money(cost_of(split, (day, "org"))), money(cost_of(split, (day, "user"))),
             cell["unpriced_requests"])
        )  # fmt: skip
    assert len(whole) < len(expected), "no day without usage"
    assert [
        (r["date"], r["currency"], r["requests"], r["total_tokens"], r["cost"], r["org_requests"],
         r["org_cost"], r["user_cost"], r["unpriced_requests"])
        for r in found
    ] == expected  # fmt: skip


def test_a_series_of_nothing_is_zeros(ledger: Client) -> None:
    found = daily_series(ledger, UsageFilters(user_id="nobody"), FIRST_DAY, END_DAY, "EUR")
    assert [(r["date"] - FIRST_DAY).days for r in found] == list(range(8))
    assert {(r["currency"], r["requests"], r["cost"], r["org_cost"]) for r in found} == {
        ("EUR", 0, Decimal(0), Decimal(0))
    }
    assert daily_series(ledger, UsageFilters(), END_DAY, FIRST_DAY, "EUR") == []


@pytest.mark.parametrize("by", ["port", "user", "model", "kind"])
def test_a_month_beside_the_one_before(ledger: Client, entries: list[Entry], by: str) -> None:
    months = [summed((e for e in entries if e["at"].month == m), KEYS[by]) for m in (8, 9)]
    expected = {}
    for name in months[0].keys() | months[1].keys():
        before, now = cost_of(months[0], name), cost_of(months[1], name)
        change = None if before is None or now is None else now - before
        pct = None
        if change is not None and before:
            sign = -1 if change < 0 else 1
            pct = sign * Decimal(abs(change) * 10_000 // before) / 100
        expected[name] = (money(now), money(before), money(change), pct)
    found = month_on_month(ledger, UsageFilters(), date(2026, 9, 17), [by])
    assert {
        r[by]: (r["cost"], r["cost_before"], r["cost_change"], r["change_pct"]) for r in found
    } == expected
    assert {r[by]: (r["requests"], r["total_tokens_before"]) for r in found} == {
        name: (
            months[1][name]["requests"] if name in months[1] else 0,
            months[0][name]["total_tokens"] if name in months[0] else 0,
        )
        for name in expected
    }


def test_a_month_beside_one_without_usage(ledger: Client, entries: list[Entry]) -> None:
    [row] = month_on_month(ledger, UsageFilters(), date(2026, 8, 1))
    cost = summed((e for e in entries if e["at"].month == 8), lambda _: 0)[0]["cost_nano"]
    assert (row["cost"], row["cost_before"], row["change_pct"]) == (money(cost), Decimal(0), None)


def test_percentiles_of_the_cost_of_a_request(ledger: Client, entries: list[Entry]) -> None:
    events = summed(entries, lambda e: (e["model"], e["port_id"], e["event_id"]))
    costs: dict[str, list[int]] = defaultdict(list)
    for (model, *_), event in events.items():
        if event["requests"] > 0 and event["cost_nano"] is not None:
            costs[model].append(event["cost_nano"])
    expected = {}
    for model, all_costs in costs.items():
        ranked = sorted(all_costs)
        at = [ranked[int(len(ranked) * p)] for p in (0.5, 0.9, 0.99)]
        expected[model] = (len(ranked), *(money(c) for c in (*at, ranked[-1])))
    found = cost_percentiles(ledger, UsageFilters())
    assert {
        r["model"]: (r["priced_requests"], r["p50"], r["p90"], r["p99"], r["most"]) for r in found
    } == expected


def test_what_has_no_price_yet(ledger: Client, entries: list[Entry]) -> None:
    events = summed(entries, lambda e: (e["port_id"], e["event_id"]))
    lacking = {key for key, event in events.items() if event["unpriced_requests"] > 0}
    found = unpriced_events(ledger, UsageFilters(), 10_000)
    assert {(r["port_id"], r["event_id"]) for r in found} == lacking
    times = [r["occurred_at"] for r in found]
    assert times == sorted(times, reverse=True)
    models = summed(entries, lambda e: (e["provider"], e["model"]))
    assert {
        (r["provider"], r["model"]): r["unpriced_requests"]
        for r in unpriced_models(ledger, UsageFilters())
    } == {k: c["unpriced_requests"] for k, c in models.items() if c["unpriced_requests"]}


def test_totals_and_the_time_of_the_ledger(ledger: Client, entries: list[Entry]) -> None:
    cell = summed(entries, lambda _: 0)[0]
    [found] = ledger_totals(ledger)
    assert (found["entries"], found["requests"], found["cost_nano"]) == (
        len(entries), cell["requests"], cell["cost_nano"],
    )  # fmt: skip
    days = [e["at"].date() for e in entries]
    assert (found["first_day"], found["last_day"]) == (min(days), max(days))
    assert as_of(ledger) is None


def test_focus_is_cut_to_whole_days(ledger: Client, entries: list[Entry]) -> None:
    found = focus_charges(ledger, date(2026, 8, 31), date(2026, 9, 2))
    kept = [e for e in entries if e["at"].date() in (date(2026, 8, 31), date(2026, 9, 1))]
    cell = summed(kept, lambda _: 0)[0]
    assert sum(r["BilledCost"] or 0 for r in found) == money(cell["cost_nano"])
    assert sum(r["x_Requests"] for r in found) == cell["requests"]


# -- pages of a user ----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_the_events_of_a_user_page_by_page(
    ledger: Client, entries: list[Entry], limit: int
) -> None:
    mine = [e for e in entries if e["user_id"] == "u1"]
    expected = sorted(
        ((e["at"], e["port_id"], e["event_id"], e["entry_no"]) for e in mine), reverse=True
    )
    if limit == 1:
        expected = expected[:9]
    found: list[EventPlace] = []
    after: EventPlace | None = None
    while len(found) < len(expected):
        page = user_events(ledger, "u1", limit, after)
        assert page.total == len(mine)
        found += [
            EventPlace(e["occurred_at"], e["port_id"], e["event_id"], e["entry_no"])
            for e in page.events
        ]
        after = page.next
        assert (after is None) == (len(found) == len(mine))
    assert found == expected


def test_pages_of_a_user_can_be_limited(ledger: Client, entries: list[Entry]) -> None:
    filters = UsageFilters(
        ports=("harbor-0-1",), billing_scope="org", start=datetime(2026, 9, 1, tzinfo=UTC)
    )
    kept = [
        e for e in entries
        if e["user_id"] == "u2" and e["port_id"] == "harbor-0-1"
        and e["billing_scope"] == "org" and e["at"] >= filters.start
    ]  # fmt: skip
    page = user_events(ledger, "u2", 100, None, filters)
    assert (page.total, len(page.events)) == (len(kept), len(kept))
    assert kept
    nobody = user_events(ledger, "nobody", 10)
    assert (nobody.events, nobody.total, nobody.next) == ([], 0, None)


# -- budgets --------------------------------------------------------------------------------------


def test_budgets_against_what_was_used(ledger: Client, entries: list[Entry]) -> None:
    now = datetime(2026, 9, 2, 12, tzinfo=UTC)
    now_ms = int(now.timestamp()) * 1000
    policies = [
        Policy(scope, unit, period, hard_cap=10**13, soft_cap=10)
        for scope in ("all", "org:o1", "port:harbor-0-1", "port:*", "group:g1", "user:u1", "user:*",
                      "user:nobody")
        for unit, period in (("cost", "month"), ("tokens", "day"), ("cost", "rolling-30d"),
                             ("cost", "week"))
    ]  # fmt: skip
    found = budgets_against_actual(ledger, policies, now_ms, "USD")
    fields = {"org": "organization_id", "port": "port_id", "group": "group_id", "user": "user_id"}
    for state in found:
        span = window(state.period, now_ms)
        kind, _, plain_id = state.scope.partition(":")
        mine = [
            e for e in entries
            if span.start_day <= e["at"].timestamp() * 1000 // DAY_MS < span.end_day
            and (kind == "all" or e[fields[kind]] == plain_id)
            and (state.unit == "tokens" or kind == "user" or e["billing_scope"] == "org")
        ]  # fmt: skip
        used = sum(
            e["total_tokens"] if state.unit == "tokens" else e["cost_nano"] or 0 for e in mine
        )
        assert state.used == used, state
        assert state.unpriced_events == sum(e["unpriced_requests"] for e in mine), state
    scopes = {format_scope(s.scope) for s in found}
    ports = {f"port:{e['port_id']}" for e in entries}
    users = {f"user:{e['user_id']}" for e in entries if e["user_id"]}
    assert scopes == {"all", "org:o1", "group:g1", "user:nobody"} | ports | users
    assert len(found) == len({(s.scope, s.unit, s.period) for s in found}), "an id stands twice"


def test_more_ids_than_a_url_holds(ledger: Client) -> None:
    now_ms = int(datetime(2026, 9, 2, 12, tzinfo=UTC).timestamp()) * 1000
    one = Policy("port:harbor-0-1", "tokens", "month", hard_cap=10)
    others = [Policy(f"port:{n:0128d}", "tokens", "month") for n in range(20 * MAX_NAMED)]
    (alone,) = budgets_against_actual(ledger, [one], now_ms, "USD")
    found = budgets_against_actual(ledger, [*others, one], now_ms, "USD")
    assert found[-1] == alone
    assert alone.used > 0
    assert len(found) == len(others) + 1


# -- what a user types never becomes SQL ----------------------------------------------------------


@pytest.mark.parametrize("text", NASTY, ids=repr)
def test_nothing_typed_becomes_sql(ledger: Client, entries: list[Entry], text: str) -> None:
    for name in ("port_id", "user_id", "organization_id", "group_id", "service", "feature",
                 "kind", "provider", "model", "billing_scope"):  # fmt: skip
        filters = UsageFilters(**{name: text})
        assert usage_report(ledger, filters, ["day"]) == [], name
    only = UsageFilters(ports=(text, "harbor-0-1"))
    mine = summed((e for e in entries if e["port_id"] == "harbor-0-1"), lambda _: 0)[0]
    assert usage_report(ledger, only)[0]["requests"] == mine["requests"]
    nothing = UsageFilters(user_id=text)
    assert top(ledger, "port", nothing) == []
    assert unpriced_events(ledger, nothing) == []
    assert unpriced_models(ledger, nothing) == []
    assert month_on_month(ledger, nothing, date(2026, 9, 1), ["port"]) == []
    assert cost_percentiles(ledger, nothing) == []
    assert user_events(ledger, text, 5).events == []
    series = daily_series(ledger, nothing, FIRST_DAY, FIRST_DAY + timedelta(days=1), text)
    assert [(r["currency"], r["requests"]) for r in series] == [(text, 0)]
    place = EventPlace(datetime(2026, 9, 2, tzinfo=UTC), text, text, 0)
    assert len(user_events(ledger, "u1", 3, place).events) == 3
    policy = Policy(f"user:x{text}", "cost", "month", hard_cap=1)
    states = budgets_against_actual(ledger, [policy], 1_788_300_000_000, text)
    assert [state.used for state in states] == [0]
    assert ledger_totals(ledger)[0]["entries"] == len(entries)


@pytest.mark.parametrize("text", ["", "day; --", "u.user_id", "toDate(u.date)", "cost", *NASTY])
def test_a_dimension_is_one_of_the_list(ledger: Client, text: str) -> None:
    for ask in (
        lambda: usage_report(ledger, UsageFilters(), [text]),
        lambda: top(ledger, text, UsageFilters()),
        lambda: month_on_month(ledger, UsageFilters(), date(2026, 9, 1), [text]),
        lambda: cost_percentiles(ledger, UsageFilters(), [text]),
    ):
        with pytest.raises(Exception, match="by: "):
            ask()


def test_a_filter_keeps_text_as_it_is(client: Client) -> None:
    """Every nasty id is found as itself, by itself alone."""
    from tests.ledger.priced_blocks import block, row

    rows = [
        row(event_id=f"e{n}", user_id=text, port_id=text, source_offset=n, cost_nano=n)
        for n, text in enumerate(NASTY)
    ]
    entries = entries_table([block(rows, 0, len(rows))], "USD")
    DayMarks().before_change(client, {entries["occurred_at"][0].as_py().date()})
    client.insert_arrow("ledger_entries", entries)
    for number, text in enumerate(NASTY):
        [found] = usage_report(client, UsageFilters(user_id=text, ports=(text,)), ["user", "port"])
        assert (found["user"], found["port"], found["cost_nano"]) == (text, text, number)
        [event] = user_events(client, text, 5).events
        assert (event["event_id"], event["port_id"]) == (f"e{number}", text)


# -- the file --------------------------------------------------------------------------------------


def test_every_query_says_what_it_answers_and_stands_in_the_docs() -> None:
    queries = named_queries()
    assert len(queries) >= 14
    documented = Path("docs/queries.md").read_text("utf-8")
    for query in queries.values():
        assert query.description.endswith("."), query.name
        assert f"`{query.name}`" in documented, query.name
        if query.name not in ("entries", "totals", "as_of"):
            assert re.search(r"LIMIT \{limit:UInt32\}", query.sql), query.name


def test_a_bracket_that_nobody_fills_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        named_query("usage", source="usage_daily")


@pytest.mark.parametrize(
    "sql",
    re.findall(r"^```sql\n(.*?)^```", Path("docs/queries.md").read_text("utf-8"), re.M | re.DOTALL)
    if Path("docs/queries.md").exists()
    else [],
)
def test_the_examples_in_the_docs_run(ledger: Client, sql: str) -> None:
    ledger.query(sql)
