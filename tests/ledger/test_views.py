"""The reading views against a recount in plain Python."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.core.blocks import PricedBlock
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import DayMarks
from tests.ledger.priced_blocks import block, chain, dicts, row

COUNTERS = [
    "input_tokens", "cached_input_tokens", "cache_write_tokens", "cache_write_1h_tokens",
    "input_audio_tokens", "input_image_tokens", "output_tokens", "reasoning_tokens",
    "output_audio_tokens", "characters", "images", "web_searches",
]  # fmt: skip
LEDGER = [
    "event_id", "entry_no", "requests", "unpriced_requests", "occurred_at", "recorded_at",
    "port_id", "organization_id", "group_id", "user_id", "session_id", "service", "feature",
    "kind", "provider", "model", "endpoint", "request_id", "service_tier", "billing_scope",
    *COUNTERS, "total_tokens", "audio_seconds", "cost_nano", "cost", "currency", "rate_id",
    "price_status", "estimated", "reported_cost", "tags", "correction_id", "correction_reason",
    "source_topic", "source_partition", "source_offset",
]  # fmt: skip
DAILY_KEY = [
    "date", "port_id", "organization_id", "group_id", "user_id", "service", "feature", "kind",
    "provider", "model", "billing_scope", "service_tier", "currency",
]  # fmt: skip
DAILY = [
    *DAILY_KEY, "requests", *COUNTERS, "total_tokens", "audio_seconds", "cost_nano", "cost",
    "unpriced_requests", "estimated_requests",
]  # fmt: skip
AI_DAILY = [
    "usage_date", "user_id", "organization_id", "request_type", "total_tokens", "total_input",
    "total_output", "request_count", "total_cost",
]  # fmt: skip
NANO = Decimal("0.000000001")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def insert(client: Client, blocks: Sequence[PricedBlock]) -> None:
    DayMarks().before_change(client, {occurred(entry).date() for entry in dicts(blocks)})
    for month in by_month(entries_table(blocks, "USD")):
        client.insert_arrow("ledger_entries", month, settings={"async_insert": 0})


def select(client: Client, view: str) -> list[dict[str, Any]]:
    result = client.query(f"SELECT * FROM {view}")
    return [dict(zip(result.column_names, values, strict=True)) for values in result.result_rows]


def occurred(entry: dict[str, Any]) -> datetime:
    return EPOCH + timedelta(microseconds=entry["occurred_at_us"])


def recount(entries: Iterable[dict[str, Any]], key: Any) -> dict[Any, dict[str, Any]]:
    """Sums by ``key(entry)``; cost stays None where nothing had a price."""
    sums: dict[Any, dict[str, Any]] = defaultdict(lambda: defaultdict(int, cost_nano=None))
    for entry in entries:
        cell = sums[key(entry)]
        for name in (*COUNTERS, "audio_nano"):
            cell[name] += entry[name]
        cell["requests"] += 1
        cell["total_tokens"] += entry["input_tokens"] + entry["output_tokens"]
        cell["unpriced_requests"] += entry["cost_nano"] is None
        cell["estimated_requests"] += entry["estimated"] or entry["price_estimated"]
        if entry["cost_nano"] is not None:
            cell["cost_nano"] = (cell["cost_nano"] or 0) + entry["cost_nano"]
    return sums


def money(cost_nano: int | None) -> Decimal | None:
    return None if cost_nano is None else cost_nano * NANO


def daily_key(entry: dict[str, Any]) -> tuple[Any, ...]:
    values = {**entry, "date": occurred(entry).date(), "currency": "USD"}
    return tuple(values[name] for name in DAILY_KEY)


@pytest.mark.parametrize(
    ("view", "columns"),
    [("usage_ledger", LEDGER), ("usage_daily", DAILY), ("ai_usage_daily", AI_DAILY)],
)
def test_columns_are_the_contracts(client: Client, view: str, columns: list[str]) -> None:
    assert [column[0] for column in client.query(f"DESCRIBE {view}").result_rows] == columns


def test_the_ledger_shows_every_event_as_it_was_priced(client: Client) -> None:
    blocks = [*chain(1, 12), *chain(1, 12, partition=1)]
    insert(client, blocks)
    expected = {
        (e["port_id"], e["event_id"]): {
            **{name: e[name] for name in LEDGER if name in e},
            "entry_no": 0,
            "requests": 1,
            "unpriced_requests": int(e["cost_nano"] is None),
            "occurred_at": occurred(e),
            "recorded_at": EPOCH + timedelta(milliseconds=e["recorded_at_ms"]),
            "total_tokens": e["input_tokens"] + e["output_tokens"],
            "audio_seconds": e["audio_nano"] * NANO,
            "cost": money(e["cost_nano"]),
            "currency": "USD",
            "estimated": e["estimated"] or e["price_estimated"],
            "correction_id": "",
            "correction_reason": "",
            "source_topic": "usage.events",
            "source_partition": b.partition,
        }
        for b in blocks
        for e in dicts([b])
    }
    found = {(e["port_id"], e["event_id"]): e for e in select(client, "usage_ledger")}
    assert found == expected


def test_a_doubled_insert_changes_no_view(client: Client) -> None:
    blocks = chain(2, 15)
    insert(client, blocks)
    views = ("usage_ledger", "usage_daily", "ai_usage_daily", "focus_charges")
    before = {view: sorted(map(str, select(client, view))) for view in views}
    insert(client, blocks)
    insert(client, blocks[3:7])
    rows = sum(len(b.rows) for b in blocks)
    physical = client.query("SELECT count() FROM ledger_entries").first_row[0]
    assert physical >= rows
    assert len(before["usage_ledger"]) == rows
    assert {view: sorted(map(str, select(client, view))) for view in views} == before


def test_daily_usage_is_the_sum_over_the_ledger(client: Client) -> None:
    blocks = chain(3, 30)
    insert(client, blocks)
    expected = {
        key: {
            **{name: cell[name] for name in DAILY if name in cell},
            "images": 0,
            "audio_seconds": cell["audio_nano"] * NANO,
            "cost": money(cell["cost_nano"]),
        }
        for key, cell in recount(dicts(blocks), daily_key).items()
    }
    found = {
        tuple(e[name] for name in DAILY_KEY): {n: e[n] for n in DAILY if n not in DAILY_KEY}
        for e in select(client, "usage_daily")
    }
    assert found == expected
    assert any(cell["cost"] is None for cell in found.values()), "no group without a price"


def test_the_portals_view_is_by_user_organization_and_feature(client: Client) -> None:
    blocks = chain(4, 20)
    insert(client, blocks)
    cells = recount(
        dicts(blocks),
        lambda e: (occurred(e).date(), e["user_id"], e["organization_id"], e["feature"]),
    )
    expected = {
        (
            *key,
            c["total_tokens"],
            c["input_tokens"],
            c["output_tokens"],
            c["requests"],
            money(c["cost_nano"]),
        )
        for key, c in cells.items()
    }
    assert {tuple(e[n] for n in AI_DAILY) for e in select(client, "ai_usage_daily")} == expected


def test_focus_charges_have_one_row_for_day_port_model_and_user(client: Client) -> None:
    blocks = chain(5, 20)
    insert(client, blocks)
    cells = recount(
        dicts(blocks),
        lambda e: (
            occurred(e).replace(hour=0, minute=0, second=0, microsecond=0),
            e["port_id"],
            f"{e['provider']}/{e['model']}",
            e["user_id"],
        ),
    )
    found = {
        (c["ChargePeriodStart"], c["SubAccountId"], c["SkuId"], c["x_UserId"]): c
        for c in select(client, "focus_charges")
    }
    assert {key: c["BilledCost"] for key, c in found.items()} == {
        key: money(c["cost_nano"]) for key, c in cells.items()
    }
    for (start, *_), charge in found.items():
        assert charge["ChargePeriodEnd"] == start + timedelta(days=1)
        assert charge["BillingPeriodStart"] == start.replace(day=1)
        assert charge["ConsumedUnit"] == "Tokens"
        assert (charge["ChargeCategory"], charge["ChargeClass"]) == ("Usage", None)


def test_focus_units_follow_what_was_consumed(client: Client) -> None:
    rows = [
        row(event_id="a", model="stt", audio_nano=1_500_000_000),
        row(event_id="b", model="tts", characters=7),
        row(event_id="c", model="image", images=2),
        row(event_id="d", model="call"),
        row(event_id="e", model="llm", input_tokens=3, audio_nano=10**9),
    ]
    insert(client, [block(rows, 0, 5)])
    found = {
        c["ResourceId"]: (c["ConsumedQuantity"], c["ConsumedUnit"])
        for c in select(client, "focus_charges")
    }
    assert found == {
        "stt": (Decimal("1.5"), "Seconds"),
        "tts": (Decimal(7), "Characters"),
        "image": (Decimal(2), "Images"),
        "call": (Decimal(1), "Requests"),
        "llm": (Decimal(3), "Tokens"),
    }


def test_sums_of_the_largest_amounts_do_not_wrap(client: Client) -> None:
    largest = 2**63 - 1
    rows = [
        row(event_id=f"e{n}", cost_nano=largest, audio_nano=10**16, source_offset=n)
        for n in range(1000)
    ]
    insert(client, [block(rows, 0, 1000)])
    daily = select(client, "usage_daily")[0]
    assert daily["cost_nano"] == 1000 * largest
    assert daily["cost"] == 1000 * largest * NANO
    assert daily["audio_seconds"] == 1000 * 10**16 * NANO
    assert select(client, "ai_usage_daily")[0]["total_cost"] == 1000 * largest * NANO
    assert select(client, "focus_charges")[0]["BilledCost"] == 1000 * largest * NANO


def test_day_boundaries_are_utc(client: Client) -> None:
    midnight_us = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) * 1_000_000
    rows = [
        row(event_id="before", occurred_at_us=midnight_us - 1),
        row(event_id="after", occurred_at_us=midnight_us),
    ]
    insert(client, [block(rows, 0, 2)])
    days = sorted(str(e["date"]) for e in select(client, "usage_daily"))
    assert days == ["2026-11-30", "2026-12-01"]


def test_a_query_for_one_day_and_port_reads_little(client: Client) -> None:
    insert(client, chain(10, 5))
    plan = client.query(
        "EXPLAIN indexes = 1 SELECT sum(requests) FROM usage_daily "
        "WHERE date = '2026-11-30' AND port_id = 'harbor-0-1'"
    ).result_rows
    text = "\n".join(line for (line,) in plan)
    assert "PrimaryKey" in text
    assert "toDate(occurred_at)" in text
