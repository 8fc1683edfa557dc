"""A deployment in EUR, end to end: rates in micro-EUR, the book converted by dated fx rates."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.run import run_audit
from pipeline.ledger.client import LedgerAddress
from pipeline.ops.rebuild import rebuild
from tests.e2e.metering import Metering
from tests.stream.worker_deployment import event

NOW = datetime.now(UTC)
FX = {5: Decimal("0.91"), 2: Decimal("0.937")}
"""By how many days ago it began to apply."""
BOOK_MODEL = {"provider": "openai", "model": "gpt-4o-mini"}
BOOK_USD = (Decimal("0.15"), Decimal("0.60"))
"""Per million tokens of input and output, as the provider's price list says."""
LIST = """provider,model,input_micro_per_million,output_micro_per_million
acme,m-1,1250000,7500000
acme,m-2,3,1
"""
MICRO_EUR = {"m-1": (1_250_000, 7_500_000), "m-2": (3, 1)}
BY_DAY = "SELECT model, toDate(occurred_at), currency, sum(cost_nano), sum(unpriced_requests) "


def tallyport(metering: Metering, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        env={**os.environ, **metering.settings.environ(), **settings},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def metering(kafka: str, empty_ledger: LedgerAddress, tmp_path: Path) -> Iterator[Metering]:
    found = Metering(kafka, empty_ledger, tmp_path, more={"currency": "EUR"})
    yield found
    found.end_all()


def nanos(tokens: tuple[int, int], per_million: tuple[Decimal, Decimal], fx: Decimal) -> int:
    exact = sum((n * p for n, p in zip(tokens, per_million, strict=True)), Decimal(0)) * fx * 1000
    return int(exact.to_integral_value(ROUND_HALF_EVEN))


def ago(days: int) -> str:
    return (NOW - timedelta(days=days)).isoformat()


async def send(metering: Metering) -> dict[tuple[str, str], list[Any]]:
    """Publishes events; what the ledger must say of each model and day: nanos and unpriced."""
    expected: dict[tuple[str, str], list[Any]] = {}
    events: list[dict[str, Any]] = []
    for number in range(120):
        days = (0, 1, 3, 6)[number % 4]  # by the newer fx rate, the older one, and before both
        model = (BOOK_MODEL, {"model": "m-1"}, {"model": "m-2"})[number % 3]
        one = event(number, occurred_at=ago(days), **model)
        events.append(one)
        tokens = (one["input_tokens"], one["output_tokens"])
        place = expected.setdefault((one["model"], ago(days)[:10]), [0, 0])
        if one["model"] in MICRO_EUR:
            prices = [Decimal(micro) / 1_000_000 for micro in MICRO_EUR[one["model"]]]
            place[0] += nanos(tokens, (prices[0], prices[1]), Decimal(1))
        elif days > max(FX):
            place[:] = [None, place[1] + 1]
        else:
            fx = FX[min(start for start in FX if start >= days)]
            place[0] += nanos(tokens, BOOK_USD, fx)
    await metering.publish(events)
    return expected


async def test_a_deployment_in_another_currency(metering: Metering) -> None:
    await metering.prepare()
    file = metering.folder / "list.csv"
    file.write_text(LIST)
    past = ("--effective-from", ago(30), "--backdated", "--json")
    for days, rate in FX.items():
        since = ("--effective-from", ago(days), "--backdated", "--json")
        done = await asyncio.to_thread(
            tallyport, metering, "prices", "set", "--fx", f"USD={rate}", *since
        )
        assert done.returncode == 0, done.stderr
    done = await asyncio.to_thread(tallyport, metering, "prices", "import", str(file), *past)
    assert done.returncode == 0, done.stderr
    done = await asyncio.to_thread(
        tallyport, metering, "prices", "set", "--provider", "x", "--model", "y", "--currency",
        "GBP", "--per-unit", "request=1", "--backdated",
    )  # fmt: skip
    assert done.returncode == 2
    assert "must be EUR or one that an earlier fx rate converts" in done.stderr
    await metering.set_policy(scope="all", unit="cost", period="rolling-30d", hard_cap="1000")
    await metering.start()
    expected = await send(metering)
    await metering.held()
    found = metering.query(f"{BY_DAY} FROM usage_ledger GROUP BY 1, 2, 3")
    assert {currency for _, _, currency, _, _ in found} == {"EUR"}
    assert {(m, str(d)): [cost, unpriced] for m, d, _, cost, unpriced in found} == expected
    assert any(cost is None for cost, _ in expected.values())
    report = await run_audit(metering.settings)
    assert report.ok, report.lines()
    assert report.compared["ledger rows"] == 120
    org_nano = metering.query("SELECT sumIf(cost_nano, billing_scope = 'org') FROM usage_ledger")
    state = (await metering.states())["all|cost|rolling-30d"]
    assert Decimal(state["used"]) * 10**9 == org_nano[0][0]
    await metering.stop()
    await another_currency_is_refused(metering)


async def another_currency_is_refused(metering: Metering) -> None:
    wrong = "TALLYPORT_CURRENCY is USD, but this ledger's amounts are in EUR"
    metering.more = {}
    for part in ("worker", "sink"):
        process = metering.launch(part)
        assert await process.ended() == 2
        assert process.printed.strip().splitlines()[-1].startswith(f"tallyport: {wrong}")
    metering.parts.clear()
    done = await asyncio.to_thread(tallyport, metering, "check", "--json")
    assert done.returncode == 2
    [finding] = [c for c in json.loads(done.stdout)["checks"] if c["what"] == "clickhouse"]
    assert finding["problem"].startswith(wrong)
    done = await asyncio.to_thread(tallyport, metering, "up", TALLYPORT_API_PORT="0")
    assert done.returncode == 2
    assert wrong in done.stderr
    with pytest.raises(Exception, match=wrong):
        await rebuild(metering.elsewhere(2).settings, dry_run=True)
