"""The shipped resolver of corrections, beside a simulated sink."""

import asyncio
from collections.abc import Mapping
from functools import cache
from typing import Any, Self
from uuid import UUID

from pipeline.corrections import entries, memory, resolver
from pipeline.corrections.entries import EventKey
from pipeline.corrections.ledger import LedgerLookups
from pipeline.settings import Settings
from tests.sim.ledger import Row, SimulatedClient, SimulatedLedger
from tests.sim.worker import PRICE_LEAD_S, book
from tests.sim.world import World

TOPIC_ID = UUID(int=1)
SMALL: tuple[tuple[Any, str, int], ...] = (
    (resolver, "BATCH_RECORDS", 3),
    (memory, "MAX_PENDING", 2),
)
"""Bounds that are reached in a run with small buffers."""


@cache
def settings(partitions: int) -> Settings:
    """The settings of every simulated resolver."""
    return Settings(
        kafka_bootstrap="simulated:9092",
        clickhouse_url="http://simulated:8123/tallyport",
        partitions=partitions,
        price_lead_s=PRICE_LEAD_S,
    )


class SimulatedLookups(LedgerLookups):
    """The shipped look-ups, connected to the simulated ledger."""

    async def __aenter__(self) -> Self:
        ledger = World.current().ledger
        self._client: Any = CorrectionsClient(ledger)
        await asyncio.to_thread(self._guarded, lambda _: ledger.check_up())
        return self


class CorrectionsClient(SimulatedClient):
    """Answers what the resolver asks. Its statements differ in their conditions only."""

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        given = dict(parameters or {})
        if sql.startswith(entries._ENTRIES):
            return self._answer(lambda ledger: _entries(ledger, given))
        if sql == entries._KNOWN_IDS:
            return self._answer(lambda ledger: _known_ids(ledger, given["ids"]))
        if sql == entries._REACHED:
            return self._answer(lambda ledger: _reached(ledger, given))
        return super().query(sql, parameters)


def _entries(ledger: SimulatedLedger, given: dict[str, Any]) -> list[tuple[Any, ...]]:
    keys: set[EventKey] = set(given["keys"])
    days = given.get("days")
    return [
        tuple(_value(row, name.strip()) for name in _COLUMNS)
        for row in ledger.tables.get("ledger_entries", [])
        if (row["port_id"], row["event_id"]) in keys
        and (days is None or row["occurred_at"].date().isoformat() in days)
    ]


_COLUMNS = entries.ENTRY_COLUMNS.split(", ")


def _value(row: Row, expression: str) -> Any:
    if expression == "toUnixTimestamp64Micro(occurred_at)":
        moment = row["occurred_at"]
        return int(moment.timestamp()) * 1_000_000 + moment.microsecond
    return row[expression]


def _known_ids(ledger: SimulatedLedger, ids: list[str]) -> list[tuple[str]]:
    rows = ledger.tables.get("ledger_entries", [])
    found = {row["correction_id"] for row in rows if row["entry_no"] > 0}
    return [(one,) for one in sorted(found & set(ids))]


def _reached(ledger: SimulatedLedger, given: dict[str, Any]) -> list[tuple[int, int]]:
    reached: dict[int, int] = {}
    for row in ledger.tables.get("sink_manifests", []):
        if (row["epoch"], row["topic"]) == (given["epoch"], given["topic"]):
            reached[row["partition"]] = max(reached.get(row["partition"], 0), row["next_offset"])
    return sorted(reached.items())


async def _topic_id(client: Mapping[str, Any], topic: str) -> UUID:
    return TOPIC_ID


PLACES: tuple[tuple[Any, str, Any], ...] = (
    (resolver, "client_kwargs", lambda settings: {"simulation": World.current()}),
    (resolver, "builtin_book", book),
    (resolver, "topic_id", _topic_id),
    (resolver, "LedgerLookups", SimulatedLookups),
)
"""What stands for connections and book: module, attribute, substitute."""
