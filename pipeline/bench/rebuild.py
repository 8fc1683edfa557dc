"""``tallyport bench rebuild``: how long a restore from the ledger into an empty Kafka takes."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from clickhouse_connect.driver.client import Client

from pipeline.ledger.client import open_writer
from pipeline.ledger.manifests import LogEpoch, join_epoch
from pipeline.ops.deployment import Deployment
from pipeline.ops.rebuild import rebuild
from pipeline.settings import Settings
from pipeline.stream.topics import create_or_check

DAYS = 30
USERS_PER_PORT = 10
# One entry of each user a day, day after day and then all over again.
_FILL = """
INSERT INTO ledger_entries
    (event_id, requests, occurred_at, recorded_at, port_id, organization_id, user_id, billing_scope,
     provider, model, kind, feature, input_tokens, total_tokens, cost_nano, currency, price_status,
     epoch, source_topic, source_offset)
SELECT
    concat('event-', toString(number)), 1,
    now64(6, 'UTC') - toIntervalDay(intDiv(number, {users:UInt32}) % {days:UInt32}),
    now64(3, 'UTC') - toIntervalDay(intDiv(number, {users:UInt32}) % {days:UInt32}),
    concat('port-', toString(intDiv(number % {users:UInt32}, {each:UInt32}))),
    'organization',
    concat('user-', toString(number % {users:UInt32})), 'org', 'openai', 'gpt-5-nano', 'llm',
    'summary', 1000, 1000, 50000, 'USD', 'priced', 1, {topic:String}, number
FROM numbers({entries:UInt64})
"""


@dataclass(frozen=True, slots=True)
class Restoration:
    """One restore: what it wrote, and how long it took from the call to the epoch being ready."""

    entries: int
    cells: int
    ids: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Figures as plain numbers."""
        return {
            "entries": self.entries,
            "cells": self.cells,
            "ids": self.ids,
            "seconds": round(self.seconds, 1),
        }


async def run(
    settings: Settings, entries: int, cells: int, say: Callable[[str], None]
) -> Restoration:
    """Runs everything on a deployment of its own; raises ``TallyportError`` when a part fails.

    About one in eleven ``cells`` is a port's, the others are users'.
    """
    async with Deployment(settings, parts=()) as deployment:
        settings = deployment.settings
        await create_or_check(settings)
        users = max(1, cells * USERS_PER_PORT // (USERS_PER_PORT + 1) // DAYS)
        say(f"filling the ledger with {entries:,} entries of {users:,} users in {DAYS} days")
        ledger = await asyncio.to_thread(open_writer, settings)
        try:
            await asyncio.to_thread(_fill, ledger, entries, users)
        finally:
            ledger.close()
        say("restoring")
        started_s = time.monotonic()
        report = await rebuild(settings)
        seconds = time.monotonic() - started_s
        return Restoration(report.entries, report.cells, report.ids, seconds)


def _fill(ledger: Client, entries: int, users: int) -> None:
    join_epoch(ledger, LogEpoch(1, "bench", datetime.now(UTC)))
    parameters = {"users": users, "days": DAYS, "each": USERS_PER_PORT, "entries": entries}
    ledger.command(_FILL, parameters={**parameters, "topic": "usage.events"})
