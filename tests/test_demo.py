"""What the demo shows is no matter of speed."""

import asyncio
import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from pipeline.core.budgets import HARD_CAP_EXCEEDED, OK, SOFT_CAP_EXCEEDED
from pipeline.ops import demo
from pipeline.ops.demo import COST_KEY, TOKENS_KEY, Traffic, _send_burst
from pipeline.ops.state_watcher import StateWatcher
from producers.simulator import BURST_LABEL, expectations, simulate

END = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Publisher:
    """Acknowledges at once."""

    async def send(self, *_: Any) -> "asyncio.Future[Any]":
        done = asyncio.get_running_loop().create_future()
        done.set_result(type("Placed", (), {"partition": 0, "offset": 0}))
        return done


def publish(watcher: StateWatcher, key: str, used: str, soft: Any, hard: Any) -> None:
    over = [Decimal(used) > Decimal(str(soft)), Decimal(used) >= Decimal(str(hard))]
    status = (OK, SOFT_CAP_EXCEEDED, HARD_CAP_EXCEEDED)[sum(over)]
    state = {"used": used, "status": status, "soft_cap": soft, "hard_cap": hard}
    watcher._take(0, key, json.dumps(state).encode(), 0.0)
    watcher._changed.set()


async def test_a_worker_that_is_slow_shows_both_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """It publishes nothing but what the newest event of a budget has brought it to."""
    monkeypatch.setattr(demo, "BURST_PAUSE_S", 0.0)
    sent = simulate(1, 1_000, END)
    expected = expectations(sent, END)
    burst = [record for record in sent if record.label == BURST_LABEL]
    caps: dict[str, tuple[Any, Any]] = {
        TOKENS_KEY: (expected.soft_cap, expected.hard_cap),
        COST_KEY: ("1.5", "3"),
    }
    watcher, traffic = StateWatcher({}, ""), Traffic()
    publish(watcher, TOKENS_KEY, str(expected.tokens_before_burst), *caps[TOKENS_KEY])
    publish(watcher, COST_KEY, "0", *caps[COST_KEY])

    async def work() -> None:
        while True:
            await asyncio.sleep(0.05)
            for key, used in dict(traffic.sent_s.keys()).items():
                publish(watcher, key, used, *caps[key])

    def is_counted() -> bool:
        return all(watcher.states[k]["used"] == u for k, u in dict(traffic.sent_s.keys()).items())

    working = asyncio.create_task(work())
    publisher: Any = Publisher()
    await _send_burst(publisher, burst, traffic, watcher, "USD")
    await watcher.until("the burst", is_counted, 60)
    working.cancel()
    for key in caps:
        statuses = [seen.status for seen in watcher.sightings if seen.key == key]
        assert statuses[-1] == HARD_CAP_EXCEEDED
        assert SOFT_CAP_EXCEEDED in statuses
