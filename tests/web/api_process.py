"""The API as a process of its own, on a real Kafka, and what a worker would tell it."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import httpx
from aiokafka import AIOKafkaProducer

from pipeline.core.home import partition_of
from pipeline.ops.tether import tethered
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics, create_or_check_topics

PARTITIONS = 2
STOP_TIMEOUT_S = 60.0
BEAT_S = 0.3
ROOT = Path(__file__).parent.parent.parent


def event(**changes: Any) -> dict[str, Any]:
    """A valid event of now."""
    fields = {
        "event_id": "e1",
        "occurred_at": datetime.now(UTC).isoformat(),
        "port_id": "harbor-7",
        "provider": "openai",
        "model": "gpt-5",
        "input_tokens": 10,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


@dataclass
class ApiProcess:
    """A running ``tallyport api`` on topics of its own."""

    kafka: str
    prefix: str
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    arguments: tuple[str, ...] = ()
    partitions: int = PARTITIONS
    url: str = ""
    process: "subprocess.Popen[str] | None" = None

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    @property
    def client(self) -> dict[str, Any]:
        return {"bootstrap_servers": self.kafka}

    @contextlib.contextmanager
    def running(self) -> Generator[Self]:
        """Prepared and started; nothing of it is left afterwards."""
        asyncio.run(self.prepare())
        try:
            self.start()
            yield self
        finally:
            self.kill()

    async def prepare(self) -> None:
        await create_or_check_topics(self.client, self.topics, self.partitions)

    def start(self) -> None:
        outside = {name: text for name, text in os.environ.items() if name[:10] != "TALLYPORT_"}
        ours = {
            "TALLYPORT_KAFKA_BOOTSTRAP": self.kafka,
            "TALLYPORT_TOPIC_PREFIX": self.prefix,
            "TALLYPORT_PARTITIONS": str(self.partitions),
            "TALLYPORT_REPLICATION": "1",
            "TALLYPORT_API_PORT": "0",
            "TALLYPORT_DATA_DIR": str(self.folder),
            **self.settings,
        }
        with (self.folder / "api.err").open("ab") as errors:
            self.process = subprocess.Popen(
                tethered([sys.executable, "-m", "pipeline", "api", *self.arguments]),
                cwd=ROOT,
                env={**outside, **ours},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("ready api="), (line, self.errors)
        self.url = line.removeprefix("ready api=")

    @property
    def errors(self) -> str:
        return (self.folder / "api.err").read_text()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None

    @contextlib.contextmanager
    def http(self, **options: Any) -> Generator[httpx.Client]:
        with httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options) as client:
            yield client

    async def records(self) -> list[Any]:
        """What stands on ``usage.events``."""
        return [
            record
            async for records in read_to_end(self.client, self.topics.events)
            for record in records
        ]

    async def put_states(self, *states: dict[str, Any]) -> None:
        """Publishes states as a worker does, then a fresh heartbeat of every partition."""
        async with AIOKafkaProducer(**self.client) as producer:
            for state in states:
                key = f"{state['scope']}|{state['unit']}|{state['period']}"
                body = None if state.get("deleted") else json.dumps(state).encode()
                at = partition_of(state["scope"].encode(), self.partitions)
                await producer.send_and_wait(self.topics.state, body, key.encode(), partition=at)
            await self._beat(producer)

    async def beat(self) -> None:
        """A fresh heartbeat of every partition."""
        async with AIOKafkaProducer(**self.client) as producer:
            await self._beat(producer)

    @contextlib.contextmanager
    def counted_for(self) -> Generator[None]:
        """Heartbeats as of a worker that goes on: without them what the API knows is stale where
        the test itself takes longer than a heartbeat holds."""
        over = threading.Event()

        async def go_on() -> None:
            async with AIOKafkaProducer(**self.client) as producer:
                while not over.is_set():
                    await self._beat(producer)
                    await asyncio.sleep(BEAT_S)

        thread = threading.Thread(target=lambda: asyncio.run(go_on()))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    async def _beat(self, producer: AIOKafkaProducer) -> None:
        as_of = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for partition in range(self.partitions):
            body = json.dumps({"as_of": as_of, "through": {"0": 5, "1": 7}}).encode()
            key = f"!heartbeat|{partition}".encode()
            await producer.send_and_wait(self.topics.state, body, key, partition=partition)


def state(scope: str, used: int, hard_cap: int | None = 1000, **changes: Any) -> dict[str, Any]:
    """A state as the worker publishes it."""
    now = datetime.now(UTC)
    start = now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = start.replace(year=now.year + now.month // 12, month=now.month % 12 + 1)
    exceeded = hard_cap is not None and used >= hard_cap
    return {
        "scope": scope,
        "unit": "tokens",
        "period": "month",
        "period_start": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "resets_at": after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "status": "hard-cap-exceeded" if exceeded else "ok",
        "used": used,
        "remaining": None if hard_cap is None else hard_cap - used,
        "soft_cap": None,
        "hard_cap": hard_cap,
        "unpriced_events": 0,
        "version": time.time_ns() // 1000,
        "as_of": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "on_stale": "allow",
        **changes,
    }
