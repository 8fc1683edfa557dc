"""``tallyport bench http``: events over HTTP beside the raw producer, on the same broker.

In interleaved rounds, as the machine's mood changes. Then single events at a steady rate: the
time from when each was due to its answer, so that a request that had to wait counts its wait.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pipeline.core.errors import TallyportError
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.topics import Topics
from producers.kafka import Publisher
from producers.steady import steady

BATCH = 500
CONNECTIONS = 16
SINGLE_CONNECTIONS = 32
SINGLE_RATE = 500
ROUND_TIMEOUT_S = 120.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Round:
    """Events per second of each contender."""

    producer: float
    http: float


@dataclass(frozen=True, slots=True)
class HttpBench:
    """All rounds, and the milliseconds of the single events in order."""

    events: int
    rounds: list[Round]
    single_millis: list[float]

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers."""
        last = len(self.single_millis) - 1
        return {
            "events": self.events,
            "rounds": [{"producer": r.producer, "http": r.http} for r in self.rounds],
            "http_to_producer": statistics.median(r.http / r.producer for r in self.rounds),
            "single_p50_ms": round(self.single_millis[last // 2], 1),
            "single_p99_ms": round(self.single_millis[last * 99 // 100], 1),
        }


async def run(settings: Settings, events: int, rounds: int, seconds: int, say: Say) -> HttpBench:
    """Runs everything on a deployment of its own."""
    async with Deployment(settings, parts=("api",)) as deployment:
        sent = [*steady(events, time.time_ns() % 2**32, end=datetime.now(UTC))]
        values = [value for _, value in sent]
        bodies = [
            b"[" + b",".join(values[at : at + BATCH]) + b"]" for at in range(0, events, BATCH)
        ]
        done: list[Round] = []
        for number in range(rounds):
            producer = events / await _produced(deployment.settings, sent)
            http = events / await _posted(deployment.api_url, bodies)
            done.append(Round(producer, http))
            say(f"round {number}: producer {producer:,.0f}/s, http {http:,.0f}/s")
        singles = await _singles(deployment.api_url, values[: SINGLE_RATE * seconds])
        return HttpBench(events, done, sorted(singles))


async def _produced(settings: Settings, sent: list[tuple[bytes, bytes]]) -> float:
    topic = Topics(settings.topic_prefix).events
    async with Publisher(client_kwargs(settings), topic) as publisher:
        started_s = time.perf_counter()
        await publisher.send_many(sent)
        await publisher.flush()
        return time.perf_counter() - started_s


async def _posted(url: str, bodies: Iterable[bytes]) -> float:
    waiting = iter(bodies)

    async def post_all() -> None:
        connection = await _Connection.open(url)
        for body in waiting:
            await connection.post(body)
        connection.close()

    started_s = time.perf_counter()
    async with asyncio.timeout(ROUND_TIMEOUT_S):
        await asyncio.gather(*(post_all() for _ in range(CONNECTIONS)))
    return time.perf_counter() - started_s


async def _singles(url: str, values: list[bytes]) -> list[float]:
    free: asyncio.Queue[_Connection] = asyncio.Queue()
    for _ in range(SINGLE_CONNECTIONS):
        free.put_nowait(await _Connection.open(url))
    millis: list[float] = []
    started_s = time.perf_counter()

    async def one(due_s: float, value: bytes) -> None:
        connection = await free.get()
        await connection.post(value)
        millis.append((time.perf_counter() - due_s) * 1000)
        free.put_nowait(connection)

    tasks: list[asyncio.Task[None]] = []
    for number, value in enumerate(values):
        due_s = started_s + number / SINGLE_RATE
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due_s, value)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait().close()
    return millis


class _Connection:
    """The least of an HTTP client, so that the load costs little of the machine it loads."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> "_Connection":
        parts = urlsplit(url)
        streams = await asyncio.open_connection(parts.hostname, parts.port, limit=1024 * 1024)
        return cls(*streams)

    async def post(self, body: bytes) -> None:
        """Posts to ``/v1/events``; raises ``TallyportError`` unless all of it was accepted."""
        head = (
            "POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        content = await self._reader.readexactly(length)
        if not answer.startswith(b"HTTP/1.1 200"):
            raise TallyportError(f"the API answered {content[:300].decode(errors='replace')}")

    def close(self) -> None:
        self._writer.close()
