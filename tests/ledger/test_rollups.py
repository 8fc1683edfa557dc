"""Daily rollups: the views show exact sums whatever is open, closed, rebuilt or left half done."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline import faults, metrics
from pipeline.core.blocks import PricedBlock
from pipeline.ledger import day_marks, rolling, rollup
from pipeline.ledger.client import LedgerAddress, connect
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import MARK_HOLDS_S, QUIET_S, DayMarks
from pipeline.ledger.rollup import ROLLUPS, Roller, close_day, drop_generations
from pipeline.settings import load_settings
from tests.ledger.closed_days import close_all
from tests.ledger.priced_blocks import block, chain, dicts, row

# Days that lie in the past for sure, as only those are closed.
SHIFT_US = 60 * 86_400_000_000
FAULTS = [
    "rollup-before-begin:1",
    "rollup-after-begin:1",
    *(f"rollup-after-build:{n}" for n in (1, 2, len(ROLLUPS), len(ROLLUPS) + 1)),
    "rollup-after-closing:1",
    *(f"rollup-after-drop:{n}" for n in (1, 2, len(ROLLUPS), len(ROLLUPS) + 1)),
]
_SUMS = (
    "sum(requests), sum(total_tokens), sum(cached_input_tokens), "
    "sum(toInt128(cost_nano)), sum(unpriced_requests), sum(audio_seconds)"
)


def past_blocks(seed: int, count: int) -> list[PricedBlock]:
    """Random blocks over four days in two months that are over."""
    blocks = chain(seed, count)
    for each in blocks:
        each.rows = [(values[0], values[1] - SHIFT_US, *values[2:]) for values in each.rows]
    return blocks


def days_of(blocks: Iterable[PricedBlock]) -> set[date]:
    return {day_of(entry) for entry in dicts(blocks)}


def day_of(entry: dict[str, Any]) -> date:
    return (datetime(1970, 1, 1) + timedelta(microseconds=entry["occurred_at_us"])).date()


def insert(client: Client, marks: DayMarks, blocks: Sequence[PricedBlock]) -> None:
    """As the sink inserts."""
    days = days_of(blocks)
    marks.before_change(client, days)
    for month in by_month(entries_table(blocks, "USD")):
        client.insert_arrow("ledger_entries", month, settings={"async_insert": 0})
    marks.after_change(client, days)


def open_days(client: Client) -> set[date]:
    sql = "SELECT day FROM day_states WHERE generation = 0"
    return {day for (day,) in client.query(sql).result_rows}


def recount(blocks: Iterable[PricedBlock]) -> dict[date, tuple[Any, ...]]:
    sums: dict[date, list[int]] = defaultdict(lambda: [0] * 6)
    for entry in dicts(blocks):
        cell = sums[day_of(entry)]
        cell[0] += 1
        cell[1] += entry["input_tokens"] + entry["output_tokens"]
        cell[2] += entry["cached_input_tokens"]
        cell[3] += entry["cost_nano"] or 0
        cell[4] += entry["cost_nano"] is None
        cell[5] += entry["audio_nano"]
    return {day: tuple(cell) for day, cell in sums.items()}


def by_day(client: Client, view: str) -> dict[date, tuple[Any, ...]]:
    day = "toDate(occurred_at)" if view == "usage_ledger" else "date"
    rows = client.query(f"SELECT {day} AS day, {_SUMS} FROM {view} GROUP BY day").result_rows
    return {day: (*sums[:5], int(sums[5] * 10**9)) for day, *sums in rows}


def assert_exact(client: Client, blocks: Sequence[PricedBlock]) -> None:
    """Every daily view has the recount's sums, and the ledger has them as well."""
    expected = recount(blocks)
    for view in ("usage_ledger", "usage_daily", "usage_daily_users", "usage_daily_ports"):
        assert by_day(client, view) == expected, view
    rows = client.query(
        "SELECT usage_date, sum(request_count), sum(total_tokens), "
        "sum(toInt128(total_cost * 1000000000)) FROM ai_usage_daily GROUP BY usage_date"
    ).result_rows
    assert {day: tuple(sums) for day, *sums in rows} == {
        day: (cell[0], cell[1], cell[3]) for day, cell in expected.items()
    }
    rows = client.query(
        "SELECT toDate(ChargePeriodStart) AS day, sum(x_Requests), "
        "sum(toInt128(BilledCost * 1000000000)), sum(x_UnpricedRequests) "
        "FROM focus_charges GROUP BY day"
    ).result_rows
    assert {day: tuple(sums) for day, *sums in rows} == {
        day: (cell[0], cell[3], cell[4]) for day, cell in expected.items()
    }


def contents(client: Client) -> dict[str, list[str]]:
    views = ("usage_daily", "usage_daily_users", "usage_daily_ports", "ai_usage_daily",
             "focus_charges")  # fmt: skip
    return {
        view: sorted(map(str, client.query(f"SELECT * FROM {view}").result_rows)) for view in views
    }


@pytest.mark.parametrize("table", ROLLUPS)
def test_a_rollup_table_has_the_columns_of_its_source(client: Client, table: str) -> None:
    def columns(name: str) -> list[tuple[str, str]]:
        rows = client.query(f"DESCRIBE {name}").result_rows
        return [(str(r[0]), str(r[1])) for r in rows]

    source = columns(table.replace("rollup", "entries"))
    found = columns(table)
    assert found[0] == ("generation", "UInt64")
    assert [name for name, _ in found[1:]] == [name for name, _ in source]
    assert found[1:] == source or table == "rollup_charges"


def test_closing_a_day_changes_no_view(client: Client) -> None:
    blocks = past_blocks(1, 30)
    insert(client, DayMarks(), blocks)
    before = contents(client)
    days = sorted(days_of(blocks))
    assert open_days(client) == set(days)
    for number, day in enumerate(days, 1):
        close_day(client, day, 1)
        assert open_days(client) == set(days[number:])
        assert contents(client) == before
    assert_exact(client, blocks)
    kept = client.query("SELECT sum(requests) FROM rollup_daily").first_row[0]
    assert kept == sum(len(b.rows) for b in blocks)


def test_a_late_event_opens_its_day_and_no_other(client: Client) -> None:
    blocks = past_blocks(2, 20)
    marks = DayMarks(clock=lambda: 0.0)
    insert(client, marks, blocks[:10])
    close_all(client)
    assert open_days(client) == set()
    late = [each for each in blocks[10:] if each.rows][:1]
    marks.forget()
    insert(client, marks, late)
    assert open_days(client) == days_of(late)
    assert_exact(client, blocks[:10] + late)
    assert close_all(client) == len(days_of(late))
    assert open_days(client) == set()
    assert_exact(client, blocks[:10] + late)


def test_a_correction_restates_its_day(client: Client) -> None:
    when = datetime(2026, 9, 30, 12, tzinfo=UTC)
    rows = [
        row(
            event_id=f"e{n}", occurred_at_us=int(when.timestamp()) * 1_000_000, cost_nano=None,
            price_status="unpriced", input_tokens=10, source_offset=n, user_id=f"u{n}",
        )
        for n in range(2)
    ]  # fmt: skip
    first = entries_table([block(rows, 0, 2)], "USD")
    marks = DayMarks(clock=lambda: 0.0)
    marks.before_change(client, [when.date()])
    client.insert_arrow("ledger_entries", first)
    close_all(client)
    correction = first.slice(0, 1).to_pylist()[0] | {
        "entry_no": 1, "requests": 0, "unpriced_requests": -1, "input_tokens": 0,
        "total_tokens": 0, "cost_nano": 700, "price_status": "priced",
        "recorded_at": datetime(2026, 11, 2, tzinfo=UTC), "correction_id": "c1", "tags": {},
    }  # fmt: skip
    marks.forget()
    marks.before_change(client, [when.date()])
    client.insert("ledger_entries", [list(correction.values())], column_names=list(correction))
    expected = [
        ("u0", None, None, 1, 1, 10),
        ("u0", "Correction", 700, 0, -1, 0),
        ("u1", None, None, 1, 1, 10),
    ]
    sql = (
        "SELECT x_UserId, ChargeClass, toInt64(BilledCost * 1000000000), x_Requests, "
        "x_UnpricedRequests, toInt64(if(ConsumedUnit = 'Tokens', ConsumedQuantity, 0)) "
        "FROM focus_charges ORDER BY x_UserId, x_Requests DESC"
    )
    daily = "SELECT sum(requests), sum(cost_nano), sum(unpriced_requests) FROM usage_daily"
    for _ in ("open", "closed"):
        assert client.query(sql).result_rows == expected
        assert client.query(daily).first_row == (2, 700, 1)
        close_all(client)
    assert open_days(client) == set()


def test_a_kill_between_any_two_steps_shows_nothing_half_built(
    client: Client, address: LedgerAddress
) -> None:
    blocks = past_blocks(3, 12)
    insert(client, DayMarks(), blocks)
    close_all(client)
    for fault in FAULTS:
        insert(client, DayMarks(), blocks[:1])  # the same rows: days to close again, and to drop
        assert killed_at(address, fault), fault
        assert_exact(client, blocks)
    close_all(client)
    drop_generations(client, drop_after_s=-1, given_up_after_s=-1)
    assert open_days(client) == set()
    assert_exact(client, blocks)
    assert kept_rows(client, "1") == kept_rows(
        client, "generation IN (SELECT generation FROM day_states WHERE generation != 0)"
    ), "rows of generations that do not count were left behind"


def kept_rows(client: Client, condition: str) -> dict[str, int]:
    return {
        table: client.query(f"SELECT count() FROM {table} WHERE {condition}").first_row[0]
        for table in ROLLUPS
    }


def killed_at(address: LedgerAddress, fault: str) -> bool:
    """Closes and drops whatever can be, in a process that dies at ``fault``."""
    code = (
        "from pipeline.ledger import rollup\n"
        "from pipeline.ledger.client import connect, parse_address\n"
        f"client = connect(parse_address({url_of(address)!r}))\n"
        "rollup.Roller(quiet_s=0, clock=lambda: 0.0).turn(client)\n"
        "rollup.drop_generations(client, drop_after_s=-1, given_up_after_s=-1)\n"
    )
    environ = {**os.environ, "FAULT_POINT": fault}
    ended = subprocess.run([sys.executable, "-c", code], env=environ, timeout=120)
    return ended.returncode == -signal.SIGKILL


def url_of(a: LedgerAddress) -> str:
    return f"http://{a.user}:{a.password}@{a.host}:{a.port}/{a.database}"


def test_a_mark_that_comes_while_a_day_is_built_keeps_it_open(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = past_blocks(4, 12)
    insert(client, DayMarks(), blocks[:6])
    others = [blocks[6:8], blocks[8:10], blocks[10:]]

    def meanwhile(name: str) -> None:
        if name == "rollup-after-build" and others:
            insert(client, DayMarks(), others.pop())

    monkeypatch.setattr(faults, "point", meanwhile)
    close_day(client, min(days_of(blocks)), 1)
    assert min(days_of(blocks)) in open_days(client)
    assert_exact(client, blocks)


def test_readers_see_exact_sums_while_days_are_closed_and_opened(
    client: Client, address: LedgerAddress
) -> None:
    blocks = past_blocks(5, 20)
    insert(client, DayMarks(), blocks)
    expected = recount(blocks)
    wrong: list[Any] = []
    done = threading.Event()
    reads = 0

    def read(view: str) -> None:
        nonlocal reads
        reader = connect(address)
        while not done.is_set():
            if (found := by_day(reader, view)) != expected:
                wrong.append(found)
            reads += 1
        reader.close()

    threads = [
        threading.Thread(target=read, args=(view,))
        for view in ("usage_daily", "usage_daily_users", "usage_daily_ports")
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    rounds = 0
    while rounds < 3 or (time.monotonic() - started < 3 and rounds < 12):
        close_all(client)
        drop_generations(client, drop_after_s=5, given_up_after_s=5)
        DayMarks().before_change(client, random.Random(rounds).sample(sorted(expected), 2))
        rounds += 1
    done.set()
    for thread in threads:
        thread.join(30)
    assert reads >= len(threads)
    assert wrong == []


def test_readers_see_every_row_once_while_rows_arrive(
    client: Client, address: LedgerAddress
) -> None:
    """What a reader sees lies between what was acknowledged before and begun after its query."""
    blocks = [each for each in past_blocks(6, 18) if each.rows]
    begun = acknowledged = 0
    seen: list[tuple[int, int, int]] = []
    done = threading.Event()

    def read() -> None:
        reader = connect(address)
        while not done.is_set():
            least = acknowledged
            found = reader.query("SELECT sum(requests) FROM usage_daily").first_row[0]
            seen.append((least, int(found), begun))
        reader.close()

    thread = threading.Thread(target=read)
    thread.start()
    marks = DayMarks(clock=lambda: 0.0)
    for number, each in enumerate(blocks):
        begun += len(each.rows)
        insert(client, marks, [each])
        acknowledged = begun
        if number % 4 == 0:
            close_all(client)
            marks.forget()
    done.set()
    thread.join(30)
    assert len(seen) > 3
    assert [s for s in seen if not s[0] <= s[1] <= s[2]] == []
    assert_exact(client, blocks)


def test_two_rollers_at_once_do_no_harm(client: Client, address: LedgerAddress) -> None:
    blocks = past_blocks(7, 20)
    insert(client, DayMarks(), blocks)
    other = connect(address)
    threads = [threading.Thread(target=close_all, args=(c,)) for c in (client, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    other.close()
    assert open_days(client) == set()
    assert_exact(client, blocks)
    assert drop_generations(client, drop_after_s=-1, given_up_after_s=-1) in range(5)
    assert_exact(client, blocks)


def test_what_a_reader_may_still_use_is_not_dropped(client: Client) -> None:
    blocks = past_blocks(8, 6)
    insert(client, DayMarks(), blocks)
    close_all(client)
    insert(client, DayMarks(), blocks)
    assert drop_generations(client, drop_after_s=-1) == 0, "open days: nothing has replaced them"
    close_all(client)
    assert drop_generations(client) == 0, "replaced just now"
    assert drop_generations(client, drop_after_s=-1) == len(days_of(blocks))
    assert drop_generations(client, drop_after_s=-1) == 0
    assert_exact(client, blocks)


def test_a_roller_waits_until_a_day_is_quiet(client: Client) -> None:
    blocks = past_blocks(9, 6)
    now_s = 0.0
    roller = Roller(quiet_s=30, clock=lambda: now_s)
    insert(client, DayMarks(), blocks)
    assert roller.turn(client) == 0
    now_s = 29.0
    assert roller.turn(client) == 0
    late = min(days_of(blocks))
    DayMarks().before_change(client, [late])
    now_s = 31.0
    assert roller.turn(client) == len(days_of(blocks)) - 1
    assert open_days(client) == {late}
    now_s = 61.5
    assert roller.turn(client) == 1


@pytest.mark.usefixtures("one_day")
def test_today_is_not_closed(client: Client) -> None:
    now_us = int(time.time()) * 1_000_000
    insert(client, DayMarks(), [block([row(occurred_at_us=now_us)], 0, 1)])
    assert close_all(client) == 0
    assert by_day(client, "usage_daily")[datetime.now(UTC).date()][0] == 1


def test_days_that_nobody_marked_are_found(client: Client) -> None:
    blocks = past_blocks(10, 6)
    for month in by_month(entries_table(blocks, "USD")):
        client.insert_arrow("ledger_entries", month)
    assert close_all(client) == len(days_of(blocks))
    assert_exact(client, blocks)


def test_marks_are_written_as_often_as_needed(client: Client) -> None:
    now_s = 100.0
    marks = DayMarks(clock=lambda: now_s)
    days = [date(2026, 9, 1), date(2026, 9, 2)]

    def total() -> int:
        return client.query("SELECT sum(marks) FROM marked_days").first_row[0]

    marks.before_change(client, days)
    assert total() == 2
    now_s += MARK_HOLDS_S
    marks.before_change(client, days)
    marks.after_change(client, days)
    assert total() == 2, "a fresh mark holds"
    now_s += 0.1
    marks.before_change(client, days[:1])
    assert total() == 3
    now_s += QUIET_S / 2 + 0.1
    marks.after_change(client, days[:1])
    assert total() == 4, "an insert that took long marks its day once more"
    marks.forget()
    marks.before_change(client, days)
    assert total() == 6
    assert DayMarks()._owner != DayMarks()._owner  # pyright: ignore[reportPrivateUsage]


def test_a_failed_mark_uses_its_number_up(client: Client, address: LedgerAddress) -> None:
    marks = DayMarks()
    closed = connect(replace(address, database="system"))
    with pytest.raises(Exception, match="day_marks"):
        marks.before_change(closed, [date(2026, 9, 1)])
    closed.close()
    marks.before_change(client, [date(2026, 9, 1)])
    assert client.query("SELECT marks FROM marked_days").first_row == (2,)


def test_the_roller_beside_a_sink_closes_days(
    client: Client, address: LedgerAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "TURN_EVERY_S", 0.05)
    monkeypatch.setattr(rolling, "Roller", lambda: Roller(quiet_s=0.1))
    settings = load_settings({"TALLYPORT_CLICKHOUSE_URL": url_of(address)})
    blocks = past_blocks(11, 6)
    insert(client, DayMarks(), blocks)
    mine, asked = False, 0

    def is_mine() -> bool:
        nonlocal asked
        asked += 1
        return mine

    with rolling.rolling_up(settings, is_mine):
        wait_for(lambda: asked > 5)
        assert open_days(client) == days_of(blocks)
        client.command("RENAME TABLE rollup_users TO away")
        before = failures()
        mine = True
        wait_for(lambda: failures() > before)
        client.command("RENAME TABLE away TO rollup_users")
        wait_for(lambda: not open_days(client))
    assert_exact(client, blocks)


def failures() -> float:
    return metrics.REGISTRY.get_sample_value("tallyport_rollup_failures_total") or 0.0


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_waits_fit_together() -> None:
    """An insert may begin on a mark of this age, and is marked again when it took too long."""
    assert day_marks.MARK_HOLDS_S < day_marks.QUIET_S / 2
    assert rollup.DROP_AFTER_S > 60, "a reader's query may run for a minute"
