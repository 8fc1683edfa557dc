"""A whole deployment with some weeks of usage behind the page: for its tests and its pictures.

``python -m tests.page.site`` keeps one running and prints its address and keys.
"""

import asyncio
import contextlib
import json
import signal
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from pipeline.ledger.client import LedgerAddress
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from pipeline.stream.tables import read_tables
from pipeline.stream.topics import Topics
from pipeline.web.key_file import create_key
from producers.kafka import Publisher
from producers.simulator import simulate

DAYS = 8
EVENTS_A_DAY = 1_000
WAIT_S = 120.0
ROLES: dict[str, dict[str, Any]] = {
    "ada": {"role": "admin"},
    "rita": {"role": "read"},
    "harbor": {"role": "admin", "ports": ("harbor-7",)},
    "service": {"role": "ingest"},
}
NAMES = {
    "port:harbor-1": ("North Quay", "north@example.com"),
    "port:harbor-2": ("Customs House", None),
    "port:harbor-7": ("Container Terminal", "terminal@example.com"),
    "port:harbor-9": ('<img src=x onerror="document.title=1"><b>Ship & Co</b>', None),
    "user:u108": ("Ada Lovelace", "ada@example.com"),
    "user:u058": ("Grace Hopper", None),
    "user:u128": ("Karen Spärck Jones", None),
    "group:team-claims": ("Claims", None),
    "org:northwind": ("Northwind Traders", None),
}
BUDGETS: dict[str, dict[str, Any]] = {
    "all/cost/month": {"hard_cap": "2500", "warn_threshold_pct": 80},
    "all/cost/day": {"hard_cap": "150"},
    "port:*/tokens/rolling-30d": {"hard_cap": 250_000_000},
    "port:harbor-1/cost/month": {"soft_cap": "40", "hard_cap": "55"},
    "port:harbor-3/tokens/month": {"hard_cap": 40_000_000},
    "port:harbor-7/cost/month": {"soft_cap": "320", "hard_cap": "450"},
    "user:*/cost/day": {"hard_cap": "25"},
    "group:team-lab/cost/month": {"hard_cap": "90", "enabled": False},
    "org:northwind/cost/month": {"soft_cap": "300", "hard_cap": "900"},
}


@dataclass
class Site:
    """Worker, sink and API with a keys file, on the Kafka and ClickHouse that are given."""

    kafka: str | None
    clickhouse_url: str | None
    folder: Path
    keys: dict[str, str] = field(default_factory=dict[str, str])
    """The text of each key by its name."""
    deployment: Deployment | None = None
    address: LedgerAddress | None = None
    """The ledger, for whoever counts it by a way of its own."""

    @property
    def url(self) -> str:
        assert self.deployment is not None
        return self.deployment.api_url

    def start(self) -> None:
        keys_file = self.folder / "keys.json"
        for name, options in ROLES.items():
            _, self.keys[name] = create_key(
                keys_file, name, who="tests", now=datetime.now(UTC), **options
            )
        settings = Settings(
            data_dir=self.folder / "data",
            kafka_bootstrap=self.kafka,
            clickhouse_url=self.clickhouse_url,
            kafka_port=0,
            ledger_port=0,
            api_port=0,
            api_keys_file=keys_file,
            topic_prefix=f"t{uuid.uuid4().hex[:10]}.",
            partitions=2,
            replication=1,
            max_event_age_days=40,
            dedupe_days=42,
        )
        self.deployment = Deployment(settings)
        asyncio.run(self.deployment.start())

    def stop(self) -> None:
        if self.deployment is not None:
            asyncio.run(self.deployment.stop())

    @contextlib.contextmanager
    def http(self, key: str = "ada") -> Iterator[httpx.Client]:
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        with httpx.Client(
            base_url=self.url, headers=headers, timeout=30, trust_env=False
        ) as client:
            yield client

    def furnish(self, days: int = DAYS, events_a_day: int = EVENTS_A_DAY) -> None:
        """Budgets, names, and ``days`` days of simulated usage up to now, all of it counted."""
        with self.http() as client:
            for path, body in BUDGETS.items():
                client.put(f"/v1/budgets/{path}", json=body).raise_for_status()
            for scope, (display_name, email) in NAMES.items():
                body = {"display_name": display_name, "email": email}
                client.put(f"/v1/names/{scope}", json=body).raise_for_status()
            asyncio.run(self._send_days(days, events_a_day))
        self.wait_counted()

    def wait_counted(self) -> None:
        """Returns once all that was sent is judged, and what was accepted is in the ledger."""
        with self.http() as client:
            self.wait(lambda: asyncio.run(self._accepted()) == _requests(client))

    async def _accepted(self) -> int | None:
        """How many events the worker has counted; None while it has not taken all there are."""
        assert self.deployment is not None
        settings = self.deployment.settings
        topics, client = Topics(settings.topic_prefix), {"bootstrap_servers": self.deployment.kafka}
        views = await read_tables(client, topics, list(range(settings.partition_count)))
        # Only now: a table that passes a misrouted event does so after its copy was sent.
        ends = [batch[-1] async for batch in read_to_end(client, topics.events)]
        if any(views[last.partition].position.next_offset <= last.offset for last in ends):
            return None
        return sum(view.position.accepted for view in views.values())

    async def _send_days(self, days: int, events_a_day: int) -> None:
        assert self.deployment is not None
        settings = self.deployment.settings
        topics = Topics(settings.topic_prefix)
        client = {"bootstrap_servers": self.deployment.kafka}
        async with Publisher(client, topics.events) as publisher:
            now = datetime.now(UTC)
            for back in reversed(range(days)):
                # No two days alike, and quieter ones at the weekend.
                end = now - timedelta(days=back)
                share = 35 if end.weekday() >= 5 else 60 + 7 * (back % 4)
                records = simulate(back + 1, events_a_day, end, partitions=2)
                kept = [one for at, one in enumerate(records) if at * 37 % 100 < share]
                futures = [
                    await publisher.send(one.value, one.key, one.headers, one.partition)
                    for one in kept
                ]
                await asyncio.gather(*futures)

    def send(self, **fields: Any) -> None:
        """One event of now, acknowledged."""
        body = {
            "event_id": uuid.uuid4().hex,
            "occurred_at": datetime.now(UTC).isoformat(),
            "port_id": "harbor-7",
            "provider": "openai",
            "model": "gpt-5",
            **fields,
        }
        with self.http("service") as client:
            client.post("/v1/events", content=json.dumps(body)).raise_for_status()

    def reject(self, *values: bytes, content_type: str = "application/json") -> None:
        """Records that stand on the topic of events without having been judged by the API."""
        headers = [("content-type", content_type.encode())]
        self._publish("events", *((b"", value, headers) for value in values))

    def write_policy(self, key: str, value: bytes) -> None:
        """A record on the topic of policies that nobody has judged."""
        self._publish("policies", (key.encode(), value, []))

    def _publish(self, topic: str, *records: tuple[bytes, bytes, list[tuple[str, bytes]]]) -> None:
        assert self.deployment is not None
        name = getattr(Topics(self.deployment.settings.topic_prefix), topic)
        client = {"bootstrap_servers": self.deployment.kafka}

        async def send() -> None:
            async with Publisher(client, name) as publisher:
                futures = [
                    await publisher.send(value, key, headers, 0) for key, value, headers in records
                ]
                await asyncio.gather(*futures)

        # A loop may run in this thread already, which is Playwright's.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, send()).result(WAIT_S)

    @contextlib.contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """A part that stands still meanwhile."""
        assert self.deployment is not None
        child = self.deployment.children[part]
        child.send(signal.SIGSTOP)
        try:
            yield
        finally:
            child.send(signal.SIGCONT)

    def wait(self, condition: Any) -> None:
        """Returns once ``condition()`` holds."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "nothing more happened in time"
            time.sleep(0.2)


def _requests(client: httpx.Client) -> int:
    rows = client.get("/v1/usage").raise_for_status().json()["rows"]
    return sum(row["requests"] for row in rows)


def main() -> None:
    """Keeps a furnished site running until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="tallyport-site-") as folder:
        site = Site(None, None, Path(folder))
        site.start()
        try:
            site.furnish(days=30)
            print(json.dumps({"url": site.url, "keys": site.keys}), flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    time.sleep(3600)
        finally:
            site.stop()


if __name__ == "__main__":
    main()
