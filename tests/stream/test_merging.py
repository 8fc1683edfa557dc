"""The merge stage under a backlog whose sources live in the same worker."""

import asyncio
import json
from typing import Any

import pytest
from faust.types import TP

from pipeline.core.accounts import Accounts
from pipeline.core.budgets import is_heartbeat
from pipeline.core.cells import CellValue
from pipeline.core.partials import PARTIAL_VERSION, Partial
from pipeline.core.policies import policy_from_object
from pipeline.core.scopes import PERIODS
from pipeline.core.windows import DAY_MS
from pipeline.settings import load_settings
from pipeline.stream import merging
from pipeline.stream.clock import BrokerClock
from pipeline.stream.context import StreamContext
from pipeline.stream.flush_loop import MAX_FLUSH_RECORDS
from pipeline.stream.inbox import Inbox
from pipeline.stream.merging import MergeStage
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import Outbox
from pipeline.stream.transport import Slice

DAY = 20_000
FLUSHES = 200
SMALL = {"PUBLISH_RECORDS": 20, "CATCH_UP_RECORDS": 50, "HELD_BACK_RECORDS": 8}
"""A hundredth of what they are."""
NEW_SCOPES = 3 * SMALL["PUBLISH_RECORDS"]
"""So many of each flush that is not held back: more than is published at a time."""
SLOTS = [(unit, period) for unit in ("tokens", "cost") for period in PERIODS]


async def no_seek(offset: int) -> None:
    raise AssertionError(f"sought to {offset}")


def partial(flush: int, scopes: int) -> Partial:
    cells: list[CellValue] = [
        (f"user:{flush}-{number}", DAY, (1, 1, 1, 1, 0, 0)) for number in range(scopes)
    ]
    return Partial(PARTIAL_VERSION, 1, 0, flush, 0, True, flush, DAY * DAY_MS + flush, cells)


@pytest.mark.parametrize("budgets", [1, 2, len(SLOTS)])
@pytest.mark.parametrize("flush_apart_s", [0.3, 3.0])
async def test_a_long_backlog_of_ever_new_scopes_lets_heartbeats_and_input_move_on(
    flush_apart_s: float, budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, records in SMALL.items():
        monkeypatch.setattr(merging, name, records)
    rates: Any = None  # the merge prices nothing
    context = StreamContext(load_settings({}), {}, Topics(""), 1, 1, rates, BrokerClock())
    accounts = Accounts(lambda scope: True, DAY * DAY_MS)
    for unit, period in SLOTS[:budgets]:
        cap = 10**6 if unit == "tokens" else "100"
        policy = {"scope": "user:*", "unit": unit, "period": period, "hard_cap": cap}
        accounts.put_policy(policy_from_object(policy))
    inbox = Inbox(0, no_seek, asyncio.Event())
    stage = MergeStage(context, 0, accounts, {}, 1, [0], inbox)
    through: set[int] = set()
    taken = 0
    for flush in range(1, FLUSHES):
        await inbox.offer(Slice(TP("partials", 0), flush - 1, flush, []))
        now_s = 1_000 + flush * flush_apart_s
        scopes = min(stage.input_limit(now_s, MAX_FLUSH_RECORDS), NEW_SCOPES)
        if scopes:
            stage.apply_local(partial(flush, scopes))
            taken += 1
        outbox = Outbox()
        stage.gather(outbox, now_s)
        for record in outbox.records.get((context.topics.state, 0), ()):
            if is_heartbeat(record.key or b""):
                through.add(json.loads(record.value or b"")["through"]["0"])
    assert len(through) > 2
    assert inbox.reached > FLUSHES // 2
    assert taken > FLUSHES // 20
    assert accounts.dirty < 4 * NEW_SCOPES * budgets
