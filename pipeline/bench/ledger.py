"""``tallyport bench ledger``: a year of events in the ledger, and what reading and writing cost."""

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from statistics import median, quantiles
from typing import Any

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.bench.ledger_answers import answers
from pipeline.bench.ledger_blocks import BLOCK_ROWS, priced_blocks
from pipeline.bench.ledger_queries import asked_queries
from pipeline.core.blocks import PricedBlock, encode_block
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import LedgerAddress, connect, ledger_address
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.manifests import INSERT_SETTINGS
from pipeline.ledger.migrate import migrate_address
from pipeline.ledger.rollup import close_day
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.epoch import identities
from pipeline.stream.topics import Topics, create_or_check

DAYS = 365
EVENTS_PER_DAY = 1_000
"""With fewer events than 365,000 it is a shorter time than a year."""
PORTS = 200
USERS_PER_PORT = 25
FILL_ROWS = 500_000
REPEATS = 10
INSERT_ROWS = 50_000
"""Of one insert of the direct contender: what the sink inserts at most at a time."""
SINK_EVENTS = 500_000
SINK_EVENTS_LEAST = 200_000
"""Fewer are over in a round or two."""
FRESH_RATE = 5_000
FRESH_BLOCK_ROWS = 250
FRESH_S = 10
WAIT_S = 300.0
_POLL_S = 0.02
_DRAIN_POLL_S = 0.5  # each look is a query beside the inserts

_FILL = """
INSERT INTO ledger_entries
    (event_id, requests, unpriced_requests, occurred_at, recorded_at, port_id, organization_id,
     group_id, user_id, session_id, service, feature, kind, provider, model, request_id,
     billing_scope, input_tokens, cached_input_tokens, output_tokens, total_tokens, cost_nano,
     currency, rate_id, price_status, epoch, source_topic, source_partition, source_offset)
SELECT
    concat('resp_', lower(hex(MD5(toString(n))))), 1, cost = 0, at, at + 0.25,
    concat('port-', toString(port)), concat('org-', toString(port % 20)),
    concat('group-', toString(port % 50)), concat('user-', toString(port), '-', toString(who)),
    lower(hex(cityHash64(n, 1))), concat('service-', toString(n % 5)),
    ['ocr', 'summary', 'embedding', 'reply_draft'][1 + n % 4], 'llm', 'openai',
    ['gpt-5', 'gpt-5-mini', 'gpt-5-nano', 'gpt-4o'][1 + cityHash64(n, 2) % 4],
    lower(hex(cityHash64(n, 3))), if(n % 11 = 0, 'user', 'org'),
    100 + cityHash64(n, 4) % 4000, cityHash64(n, 4) % 100, cityHash64(n, 5) % 900,
    100 + cityHash64(n, 4) % 4000 + cityHash64(n, 5) % 900, nullIf(cost, 0), 'USD', 'book',
    if(cost = 0, 'unpriced', 'priced'), 1, 'usage.events', port % 4, n
FROM (
    SELECT number AS n, cityHash64(n) % {ports:UInt32} AS port,
        cityHash64(n, 6) % {users:UInt32} AS who,
        if(n % 997 = 0, 0, 1 + cityHash64(n, 7) % 9000000) AS cost,
        toDateTime64({first:Date}, 6, 'UTC')
            + toIntervalMicrosecond(intDiv(n * 86400000000, {per_day:UInt64})) AS at
    FROM numbers({start:UInt64}, {count:UInt64}))
"""
_SIZE = """
SELECT sum(rows), sum(bytes_on_disk) FROM system.parts
WHERE active AND database = {database:String} AND table = {table:String}
"""
_WRITTEN = """
SELECT sum(rows), toUnixTimestamp64Milli(min(written_at)),
    toUnixTimestamp64Milli(max(written_at)), sumIf(rows, written_at = (
        SELECT min(written_at) FROM sink_manifests WHERE rows > 0))
FROM sink_manifests FINAL WHERE rows > 0
"""
_NEWEST = "SELECT max(source_offset) FROM ledger_entries WHERE epoch = 1"

Say = Callable[[str], None]


@dataclass
class LedgerFigures:
    """Milliseconds by query and by answer of the API, and what the rest came to.

    ``days`` of data are closed but one.
    """

    events: int
    days: int
    bytes_per_event: float = 0.0
    rollup_bytes_per_event: float = 0.0
    rollup_s_per_day: float = 0.0
    direct_per_s: float = 0.0
    sink_per_s: float = 0.0
    visible_ms: list[float] = field(default_factory=list[float])
    queries: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    answers: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def to_json(self) -> dict[str, Any]:
        """Figures as plain numbers; a query has its median and 95th percentile."""
        return {
            "events": self.events,
            "days": self.days,
            "bytes_per_event": round(self.bytes_per_event, 1),
            "rollup_bytes_per_event": round(self.rollup_bytes_per_event, 1),
            "rollup_s_per_day": round(self.rollup_s_per_day, 3),
            "direct_per_s": round(self.direct_per_s),
            "sink_per_s": round(self.sink_per_s),
            "sink_to_direct": round(self.sink_per_s / self.direct_per_s, 2),
            "visible_ms": _spread(self.visible_ms) | {"max": round(max(self.visible_ms), 1)},
            "queries": [{"query": n, **_spread(found)} for n, found in self.queries.items()],
            "answers": [{"path": n, **_spread(found)} for n, found in self.answers.items()],
        }


async def run(settings: Settings, events: int, say: Say) -> LedgerFigures:
    """Everything on a deployment of its own; raises ``TallyportError`` when a part fails."""
    figures = LedgerFigures(events, min(DAYS, max(2, events // EVENTS_PER_DAY)))
    async with Deployment(settings, parts=()) as deployment:
        settings = deployment.settings
        address = ledger_address(settings, write=True)
        client = await asyncio.to_thread(connect, address, query_timeout_s=int(WAIT_S))
        try:
            await asyncio.to_thread(_fill, client, figures, say)
            await asyncio.to_thread(_roll_up, client, figures, say)
            await asyncio.to_thread(_measure_size, client, figures)
            await asyncio.to_thread(_ask, client, figures, say)
        finally:
            client.close()
        say("the API over the same")
        figures.answers = await answers(deployment, figures.days)
        blocks = priced_blocks(max(SINK_EVENTS_LEAST, min(events, SINK_EVENTS)))
        say(f"inserting {sum(len(b.rows) for b in blocks):,} events directly, in Arrow batches")
        figures.direct_per_s = await asyncio.to_thread(_insert_directly, settings, blocks)
        say("the sink takes the same from Kafka")
        await _sink(deployment, blocks, figures, say)
    return figures


# -- the year of data ------------------------------------------------------------------------------


def _fill(client: Client, figures: LedgerFigures, say: Say) -> None:
    events = figures.events
    first = datetime.now(UTC).date() - timedelta(days=figures.days - 1)
    for start in range(0, events, FILL_ROWS):
        parameters = {
            "ports": PORTS,
            "users": USERS_PER_PORT,
            "first": first,
            "per_day": max(1, events // figures.days),
            "start": start,
            "count": min(FILL_ROWS, events - start),
        }
        say(f"{start:,} of {events:,} events")
        client.command(_FILL, parameters=parameters)


def _roll_up(client: Client, figures: LedgerFigures, say: Say) -> None:
    days: list[date] = [
        day for (day,) in client.query(
            "SELECT DISTINCT toDate(occurred_at) AS day FROM ledger_entries ORDER BY day"
        ).result_rows
    ]  # fmt: skip
    say(f"rolling up {len(days)} days")
    DayMarks().before_change(client, days)
    started_s = time.monotonic()
    closed = days[:-1]  # the last one is as the running day: open
    for day in closed:
        close_day(client, day, 1)
    figures.rollup_s_per_day = (time.monotonic() - started_s) / max(1, len(closed))


def _measure_size(client: Client, figures: LedgerFigures) -> None:
    def size(table: str) -> tuple[int, int]:
        given = {"database": client.database, "table": table}
        [(rows, size_bytes)] = client.query(_SIZE, parameters=given).result_rows
        return int(rows), int(size_bytes)

    rows, size_bytes = size("ledger_entries")
    figures.bytes_per_event = size_bytes / rows
    rollups = ("rollup_daily", "rollup_users", "rollup_ports")
    figures.rollup_bytes_per_event = sum(size(table)[1] for table in rollups) / rows


def _ask(client: Client, figures: LedgerFigures, say: Say) -> None:
    for name, ask in asked_queries(client, figures.days).items():
        say(f"query: {name}")
        ask()  # what is read from disk for the first time is not the query's own
        found: list[float] = []
        for _ in range(REPEATS):
            started_s = time.perf_counter()
            ask()
            found.append((time.perf_counter() - started_s) * 1000)
        figures.queries[name] = found


# -- the sink --------------------------------------------------------------------------------------


def _elsewhere(settings: Settings, database: str) -> tuple[Settings, LedgerAddress]:
    """The same server and another database, migrated."""
    address = ledger_address(settings, write=True)
    url = f"http://{address.user}:{address.password}@{address.host}:{address.port}/{database}"
    other = settings.replaced(clickhouse_url=url)
    found = ledger_address(other, write=True)
    migrate_address(found)
    return other, found


def _insert_directly(settings: Settings, blocks: Sequence[PricedBlock]) -> float:
    """Rows per second of the same inserts, with the Arrow batches built before."""
    _, address = _elsewhere(settings, "bench_direct")
    step = INSERT_ROWS // BLOCK_ROWS
    batches = [
        month
        for start in range(0, len(blocks), step)
        for month in by_month(entries_table(blocks[start : start + step], settings.currency))
    ]
    client = connect(address)
    try:
        client.insert_arrow("ledger_entries", batches[0].slice(0, 1), settings=INSERT_SETTINGS)
        started_s = time.monotonic()
        for batch in batches:
            client.insert_arrow("ledger_entries", batch, settings=INSERT_SETTINGS)
        return sum(batch.num_rows for batch in batches) / (time.monotonic() - started_s)
    finally:
        client.close()


async def _sink(
    deployment: Deployment, blocks: Sequence[PricedBlock], figures: LedgerFigures, say: Say
) -> None:
    own, address = await asyncio.to_thread(_elsewhere, deployment.settings, "bench_sink")
    await create_or_check(own)
    topics = Topics(own.topic_prefix)
    epoch = {
        "epoch": 1,
        "id": str(uuid.uuid4()),
        "created_at": "2026-01-01T00:00:00.000Z",
        "topic_ids": await identities(client_kwargs(own), topics),
        "partitions": own.partition_count,
    }
    kafka: dict[str, Any] = {"bootstrap_servers": own.kafka_bootstrap, "max_request_size": 8 << 20}
    async with AIOKafkaProducer(**kafka) as producer:
        await producer.send_and_wait(topics.epoch, json.dumps(epoch).encode(), partition=0)
        for block in blocks:
            value = encode_block(block)
            await producer.send_and_wait(topics.priced, value, partition=block.partition)
        deployment.settings = own
        deployment.launch("sink")
        await deployment.wait_ready("sink")
        client = await asyncio.to_thread(connect, address)
        try:
            figures.sink_per_s = await _drained(client, blocks)
            say(f"{FRESH_RATE:,} events/s for {FRESH_S} s")
            figures.visible_ms = await _fresh(client, producer, topics.priced, blocks)
        finally:
            client.close()


async def _drained(client: Client, blocks: Sequence[PricedBlock]) -> float:
    """Rows per second from the first manifest to the last."""
    wanted = sum(len(block.rows) for block in blocks)
    async with asyncio.timeout(WAIT_S):
        while True:
            row = (await asyncio.to_thread(client.query, _WRITTEN)).first_row or (0, 0, 0, 0)
            rows, first_ms, last_ms, of_first = (int(value or 0) for value in row)
            if rows >= wanted:
                return (rows - of_first) / max(0.001, (last_ms - first_ms) / 1000)
            await asyncio.sleep(_DRAIN_POLL_S)


async def _fresh(
    client: Client, producer: AIOKafkaProducer, topic: str, blocks: Sequence[PricedBlock]
) -> list[float]:
    """Milliseconds from sending a block to its last row being queryable."""
    start = max(block.next_offset for block in blocks)
    more = priced_blocks(
        FRESH_RATE * FRESH_S, start=start, rows=FRESH_BLOCK_ROWS, partition=0, first=start
    )
    sent: list[tuple[int, float]] = []

    async def send() -> None:
        began_s = time.monotonic()
        for number, block in enumerate(more):
            due_s = began_s + number * FRESH_BLOCK_ROWS / FRESH_RATE
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            sent.append((block.next_offset - 1, time.monotonic()))
            await producer.send_and_wait(topic, encode_block(block), partition=0)

    sending = asyncio.create_task(send())
    found: list[float] = []
    async with asyncio.timeout(WAIT_S):
        while len(found) < len(more):
            row = (await asyncio.to_thread(client.query, _NEWEST)).first_row
            now_s = time.monotonic()
            newest = int(row[0]) if row else -1
            found += [
                (now_s - at_s) * 1000 for offset, at_s in sent[len(found) :] if offset <= newest
            ]
            await asyncio.sleep(_POLL_S)
    await sending
    return found


def _spread(millis: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(median(millis), 1),
        "p95": round(quantiles(millis, n=20, method="inclusive")[-1], 1),
    }
