"""Corrections while a chaos run is on: of events new and old, again, of unknown ones, and broken.

Most of them name a few favourites, so that corrections of one event depend on each other. Each is
sent until it is acknowledged, so some arrive twice.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.ledger.client import ledger_reader
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics
from producers.partitions import home_partition

PAUSE_S = (0.05, 0.4)
RETRY_S = 0.3
REQUEST_TIMEOUT_MS = 3_000
FAVOURITES = 12
UNKNOWN_SHARE = 0.15
SHOWN = 5
SUMS = (
    "requests", "unpriced_requests", "input_tokens", "cached_input_tokens", "output_tokens",
    "total_tokens", "cost_nano",
)  # fmt: skip
ENTRIES = f"""
SELECT source_partition, source_offset, correction_id, port_id, event_id, toDate(occurred_at),
entry_no, {", ".join(SUMS)} FROM usage_ledger
WHERE (port_id, event_id) IN (SELECT port_id, event_id FROM usage_ledger WHERE entry_no > 0)
ORDER BY port_id, event_id, toDate(occurred_at), entry_no
"""
BROKEN = (b"no json", b"[]", b'{"correction_id": "x"}', b'{"kind": 5}')

EventKey = tuple[str, str]
Place = tuple[int, int]


class Corrections:
    """Sends some corrections a second. ``pick`` gives port and id of an event, None before the
    first; ``rates`` the ids of rates. ``sent`` counts what was acknowledged."""

    def __init__(
        self,
        client: Mapping[str, Any],
        topic: str,
        partitions: int,
        rng: Random,
        pick: Callable[[Random], EventKey | None],
        rates: Callable[[], Sequence[str]],
    ) -> None:
        self.sent = 0
        self.is_done = False
        self._client = dict(client)
        self._topic = topic
        self._partitions = partitions
        self._rng = rng
        self._pick = pick
        self._rates = rates
        self._favourites: list[EventKey] = []
        self._bodies: list[dict[str, Any]] = []
        self._stop = asyncio.Event()

    def finish(self) -> None:
        """Nothing new from now on; ``is_done`` once the last one is acknowledged."""
        self._stop.set()

    async def run(self) -> None:
        """Sends until ``finish`` is called."""
        async with AIOKafkaProducer(
            **self._client, acks="all", request_timeout_ms=REQUEST_TIMEOUT_MS, linger_ms=0
        ) as producer:
            while not self._stop.is_set():
                await self._send(producer, *self._next())
                await asyncio.sleep(self._rng.uniform(*PAUSE_S))
        self.is_done = True

    async def _send(self, producer: AIOKafkaProducer, port_id: str, value: bytes) -> None:
        home = home_partition(port_id.encode(), self._partitions)
        while True:
            try:
                await producer.send_and_wait(self._topic, value, port_id.encode(), partition=home)
            except KafkaError:
                await asyncio.sleep(RETRY_S)
            else:
                self.sent += 1
                return

    def _next(self) -> tuple[str, bytes]:
        """Port and value of the next one."""
        rng, turn = self._rng, self._rng.random()
        picked = self._pick(rng)
        if picked is None or turn < 0.05:
            return "harbor-1", rng.choice(BROKEN)
        if turn < 0.15 and self._bodies:
            body = rng.choice(self._bodies)
        else:
            body = self._correction(picked)
            self._bodies.append(body)
        return body["port_id"], json.dumps(body).encode()

    def _correction(self, picked: EventKey) -> dict[str, Any]:
        rng = self._rng
        if len(self._favourites) < FAVOURITES:
            self._favourites.append(picked)
        elif rng.random() < 0.02:
            self._favourites[rng.randrange(FAVOURITES)] = picked
        port_id, event_id = rng.choice(self._favourites) if rng.random() < 0.5 else picked
        if rng.random() < UNKNOWN_SHARE:
            event_id = f"never-{rng.getrandbits(32):08x}"
        body: dict[str, Any] = {
            "correction_id": f"correction-{rng.getrandbits(60):015x}",
            "port_id": port_id,
            "event_id": event_id,
            "reason": "chaos",
            **self._kind(),
        }
        return body

    def _kind(self) -> dict[str, Any]:
        rng, turn = self._rng, self._rng.random()
        rates = self._rates()
        if turn < 0.08:
            return {"kind": "void"}
        if turn < 0.35 and rates:
            return {"kind": "reprice", "rate_id": rng.choice(rates)}
        counts = {"input_tokens": rng.randrange(20_000), "output_tokens": rng.randrange(2_000)}
        if rng.random() < 0.3:
            del counts[rng.choice(sorted(counts))]
        return {"kind": "amend", "counts": counts}


async def compare_corrections(
    client: Mapping[str, Any], topics: Topics, settings: Settings
) -> list[str]:
    """Each record on ``usage.corrections`` came to one entry or one refusal, or repeats one that
    came to an entry; and what an event amounts to is what the last of its corrections says."""
    sent = await _sent(client, topics)
    refused = await _refused(client, topics)
    rows = await asyncio.to_thread(_rows, settings)
    booked: dict[Place, str] = {}
    problems: list[str] = []
    for row in rows:
        if row["entry_no"] > 0:
            place = row["source_partition"], row["source_offset"]
            if place in booked:
                problems.append(f"the correction at {place} was booked twice")
            booked[place] = row["correction_id"]
    ids = list(booked.values())
    problems += [f"correction {one} was booked twice" for one in set(ids) if ids.count(one) > 1]
    for place, body in sent.items():
        ends = refused.get(place, 0) + (place in booked)
        if ends > 1 or (not ends and body.get("correction_id") not in ids):
            problems.append(f"the correction at {place} ended {ends} times: {body}")
    problems += [f"nobody sent the correction at {p}" for p in booked.keys() - sent.keys()]
    return [*problems, *_wrong_sums(rows, sent)][:SHOWN]


async def _sent(client: Mapping[str, Any], topics: Topics) -> dict[Place, dict[str, Any]]:
    return {
        (record.partition, record.offset): _body(record.value or b"")
        async for records in read_to_end(client, topics.corrections)
        for record in records
    }


def _body(value: bytes) -> dict[str, Any]:
    try:
        body = json.loads(value)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def _refused(client: Mapping[str, Any], topics: Topics) -> dict[Place, int]:
    found: dict[Place, int] = defaultdict(int)
    async for records in read_to_end(client, topics.rejected):
        for record in records:
            headers = dict(record.headers[-5:])
            if headers["source-topic"] == topics.corrections.encode():
                found[int(headers["source-partition"]), int(headers["source-offset"])] += 1
    return found


def _rows(settings: Settings) -> list[dict[str, Any]]:
    names = (
        "source_partition", "source_offset", "correction_id", "port_id", "event_id", "day",
        "entry_no", *SUMS,
    )  # fmt: skip
    with ledger_reader(settings) as client:
        return [dict(zip(names, row, strict=True)) for row in client.query(ENTRIES).result_rows]


def _wrong_sums(rows: Sequence[dict[str, Any]], sent: Mapping[Place, dict[str, Any]]) -> list[str]:
    """Every event after all its entries: nothing once it is void, else what was last amended."""
    events: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        events[row["port_id"], row["event_id"], row["day"]].append(row)
    problems: list[str] = []
    for event, entries in events.items():
        if [one["entry_no"] for one in entries] != list(range(len(entries))):
            problems.append(f"{event} has the entries {[one['entry_no'] for one in entries]}")
        sums = {name: sum(one[name] or 0 for one in entries) for name in SUMS}
        counts: dict[str, int] = {}
        is_void = False
        for one in entries[1:]:
            body = sent.get((one["source_partition"], one["source_offset"]), {})
            counts |= body.get("counts", {})
            is_void = is_void or body.get("kind") == "void"
        expected = dict.fromkeys(SUMS, 0) if is_void else {**counts, "requests": 1}
        if any(sums[name] != value for name, value in expected.items()):
            problems.append(f"{event} adds up to {sums}, its corrections say {expected}")
    return problems
