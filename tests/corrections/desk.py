"""A deployment whose events get corrected: what is sent, and what the outside sees of it."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from pipeline.audit.run import run_audit
from pipeline.stream.reader import read_to_end
from tests.e2e.metering import Metering
from tests.processes import WAIT_S
from tests.stream.worker_deployment import RATE, home_of

POLL_S = 0.1
HIGHER = {
    **RATE,
    "rate_id": "higher",
    "provider": "elsewhere",
    "per_million": {"input_tokens": "10", "output_tokens": "20"},
}
FOREIGN = {**RATE, "rate_id": "foreign", "provider": "elsewhere", "currency": "JPY"}
WORDS = {**RATE, "rate_id": "words", "provider": "elsewhere", "per_million": {"characters": "1"}}
HALF = {name: RATE[name] for name in ("effective_from", "published_at", "backdated")} | {
    "rate_id": "half",
    "provider": "elsewhere",
    "model": "m-1",
    "multiplier": "0.5",
}


@dataclass
class Desk(Metering):
    """Metering with a desk for corrections."""

    async def open(self) -> None:
        """Rates, and the parts."""
        await self.prepare()
        for rate in (RATE, HIGHER, FOREIGN, WORDS, HALF):
            await self.set_rate(**rate)
        await self.set_policy(scope="port:*", unit="cost", period="month", hard_cap="1000")
        await self.set_policy(scope="all", unit="tokens", period="month", hard_cap=10**9)
        await self.start()

    async def count(self, *events: dict[str, Any]) -> None:
        """Sends events and waits until the ledger has them."""
        await self.publish(events)
        await self.held()

    async def correct(
        self, *bodies: dict[str, Any] | bytes, partition: int | None = None
    ) -> list[tuple[int, int]]:
        """Sends corrections one after the other; their places on ``usage.corrections``."""
        places: list[tuple[int, int]] = []
        async with AIOKafkaProducer(**self.client) as producer:
            for body in bodies:
                value = body if isinstance(body, bytes) else json.dumps(body).encode()
                port_id = "" if isinstance(body, bytes) else str(body.get("port_id"))
                home = home_of(port_id, self.partitions) if partition is None else partition
                sent = await producer.send_and_wait(
                    self.topics.corrections,
                    value,
                    port_id.encode(),
                    partition=home,
                    headers=[("sent-by", b"\x00a test")],
                )
                places.append((sent.partition, sent.offset))
        return places

    async def entries(self, port_id: str, event_id: str, wanted: int) -> list[dict[str, Any]]:
        """The ledger entries of an event, once there are ``wanted`` of them."""
        names = (
            "entry_no", "requests", "unpriced_requests", "input_tokens", "output_tokens",
            "total_tokens", "cost_nano", "rate_id", "price_status", "correction_id",
            "correction_reason", "source_topic", "source_partition", "source_offset", "occurred_at",
            "user_id",
        )  # fmt: skip
        sql = (
            f"SELECT {', '.join(names)} FROM usage_ledger WHERE port_id = '{port_id}' "
            f"AND event_id = '{event_id}' ORDER BY entry_no"
        )
        async with asyncio.timeout(WAIT_S):
            while len(rows := await asyncio.to_thread(self.query, sql)) < wanted:
                self._check_alive()
                await asyncio.sleep(POLL_S)
        return [dict(zip(names, row, strict=True)) for row in rows]

    async def refused(self, place: tuple[int, int]) -> ConsumerRecord:
        """The record of ``usage.rejected`` for the correction at a place, once it is there."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [r for r in await self.refusals() if _place(r) == place]
                if found:
                    assert len(found) == 1
                    return found[0]
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def refusals(self) -> list[ConsumerRecord]:
        """Every rejected correction."""
        topic = self.topics.corrections.encode()
        return [
            record
            async for records in read_to_end(self.client, self.topics.rejected)
            for record in records
            if dict(record.headers)["source-topic"] == topic
        ]

    async def until_state(self, key: str, **wanted: Any) -> dict[str, Any]:
        """Waits until a budget's state says ``wanted``."""
        async with asyncio.timeout(WAIT_S):
            while True:
                state = (await self.states()).get(key, {})
                if wanted.items() <= state.items():
                    return state
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def assert_sums_agree(self) -> None:
        """Tables hold what the ledger adds up to, on every day and for every scope."""
        sql = (
            "SELECT scope, toInt32(toDate(occurred_at)) AS day, sum(requests), sum(total_tokens), "
            "sum(ifNull(cost_nano, 0)), sumIf(ifNull(cost_nano, 0), billing_scope = 'org'), "
            "sum(unpriced_requests), sumIf(unpriced_requests, billing_scope = 'org') "
            "FROM usage_ledger ARRAY JOIN arrayFilter(s -> NOT endsWith(s, ':'), ['all', "
            "concat('port:', port_id), concat('org:', organization_id), concat('group:', group_id),"
            " concat('user:', user_id)]) AS scope GROUP BY scope, day"
        )
        async with asyncio.timeout(WAIT_S):
            while True:
                rows = await asyncio.to_thread(self.query, sql)
                wanted = {(row[0], row[1]): tuple(int(n) for n in row[2:]) for row in rows}
                if await self.cells() == wanted:
                    return
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def assert_audited(self) -> None:
        """The audit agrees on everything."""
        report = await run_audit(self.settings, wait_s=60)
        assert report.ok, report.to_json()


def _place(record: ConsumerRecord) -> tuple[int, int]:
    headers = dict(record.headers)
    return int(headers["source-partition"]), int(headers["source-offset"])
