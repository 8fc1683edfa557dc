"""Rejected records sent again: counted once each, whatever happens, and the audit agrees."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from pipeline.audit.run import run_audit
from pipeline.cli.output import progress
from pipeline.core.errors import Refused
from pipeline.ledger.client import LedgerAddress
from pipeline.ops.replay import Choice, Replay, ReplayReport
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from tests.e2e.metering import Metering
from tests.processes import WAIT_S
from tests.stream.worker_deployment import RATE, event, home_of

TIMEOUT_S = 120
POLL_S = 0.1
HEADERS = [("trace", b"abc"), ("reason", b"the producer's own")]
STRICT = {"max_future_skew_s": 300, "max_event_age_days": 7, "dedupe_days": 9}
FIXED = {"max_future_skew_s": 3600, "max_event_age_days": 10, "dedupe_days": 12}


@dataclass
class Replaying(Metering):
    """A deployment whose settings are wrong until they are fixed."""

    rules: dict[str, int] = field(default_factory=lambda: dict(STRICT))

    @property
    def settings(self) -> Settings:
        return super().settings.model_copy(update=self.rules)

    async def send(self, *bodies: bytes) -> None:
        """Records with headers of their own, the last on a partition that is not its home."""
        async with AIOKafkaProducer(**self.client) as producer:
            for number, body in enumerate(bodies):
                home = port_home(body, self.partitions)
                partition = (home + (number == len(bodies) - 1)) % self.partitions
                await producer.send_and_wait(
                    self.topics.events, body, b"key", partition=partition, headers=HEADERS
                )

    async def rejected(self, count: int) -> list[ConsumerRecord]:
        """The rejected records, once there are ``count`` of them."""
        async with asyncio.timeout(WAIT_S):
            while True:
                found = [
                    r async for rs in read_to_end(self.client, self.topics.rejected) for r in rs
                ]
                if len(found) >= count:
                    assert len(found) == count
                    return found
                self._check_alive()
                await asyncio.sleep(POLL_S)

    async def replays(self) -> list[ConsumerRecord]:
        """What a replay has sent, where it was sent to."""
        found = [r async for rs in read_to_end(self.client, self.topics.events) for r in rs]
        return [r for r in found if r.headers and r.headers[-1][0] == "replayed-from"]

    async def replay(self, *, dry_run: bool = False, **chosen: Any) -> ReplayReport:
        """One run in this process."""
        return await Replay(self.settings, Choice(**chosen), dry_run=dry_run).run(progress)

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One run as a user starts it."""
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "pipeline", "replay-rejected", *arguments],
            env=self.settings.environ(), capture_output=True, text=True, timeout=TIMEOUT_S,
            check=False,
        )  # fmt: skip


def port_home(body: bytes, partitions: int) -> int:
    try:
        return home_of(json.loads(body)["port_id"], partitions)
    except ValueError:
        return 0


def body(number: int, **ago: float) -> bytes:
    moment = datetime.now(UTC) - timedelta(**ago)
    return json.dumps(event(number, occurred_at=moment.isoformat())).encode()


async def test_replays(kafka: str, empty_ledger: LedgerAddress, tmp_path: Path) -> None:
    deployed = Replaying(kafka, empty_ledger, tmp_path)
    try:
        await deployed.prepare()
        await deployed.set_rate(**RATE)
        await deployed.start()
        await check_replays(deployed)
    finally:
        deployed.end_all()


async def check_replays(deployed: Replaying) -> None:
    future = [body(number, hours=-0.5) for number in range(20)]
    old = [body(number, days=8) for number in range(20, 30)]
    broken = [b"{", b"{"]
    await deployed.send(*future, *old, *broken)
    originals = await deployed.rejected(32)

    unfixed = await deployed.replay(dry_run=True)
    assert unfixed.sent == 32
    assert unfixed.expected == {"in-the-future": 20, "too-old": 10, "malformed-json": 2}

    await deployed.stop()
    deployed.rules = dict(FIXED)
    await deployed.start()
    # Accepted meanwhile: one in the ledger by now, under another time and with another body.
    sent_again = event(3, input_tokens=7)
    await deployed.publish([sent_again])
    await deployed.held()

    fixed = await deployed.command("--dry-run", "--json")
    assert fixed.returncode == 0, fixed.stderr
    told = json.loads(fixed.stdout)
    assert (told["dry_run"], told["sent"], told["in_ledger"]) == (True, 31, 1)
    assert told["expected"] == {"accepted": 29, "malformed-json": 2}
    assert await deployed.replays() == []
    await check_choices(deployed, originals)
    await check_killed(deployed)
    await check_sent(deployed, [*future, *old])
    await check_again(deployed)
    report = await run_audit(deployed.settings)
    assert report.ok, report.lines()


async def check_choices(deployed: Replaying, originals: list[ConsumerRecord]) -> None:
    """Each filter chooses what it says; nothing is sent."""

    async def chosen(**choice: Any) -> int:
        return (await deployed.replay(dry_run=True, **choice)).chosen

    first = sorted(r.offset for r in originals if r.partition == 0)
    moment = sorted(r.timestamp for r in originals)[16]
    assert await chosen(reasons={"too-old"}) == 10
    assert await chosen(reasons={"too-old", "malformed-json"}) == 12
    assert await chosen(partitions={0}) == len(first)
    assert await chosen(partitions={0}, first_offset=first[2], last_offset=first[4]) == 3
    assert await chosen(end_ms=moment) == sum(r.timestamp < moment for r in originals)
    assert await chosen(start_ms=moment) == sum(r.timestamp >= moment for r in originals)
    with pytest.raises(Refused, match="has no partition 9"):
        await chosen(partitions={9})


async def check_killed(deployed: Replaying) -> None:
    """A kill before the commit leaves nothing; the next run sends everything."""
    for fault in ("price-sent:1", "price-acked:1"):
        killed = deployed.launch("replay-rejected", fault)
        assert await killed.ended() != 0
        deployed.parts.remove(killed)
    assert await deployed.replays() == []
    after = await deployed.command()
    assert after.returncode == 0, after.stderr
    assert after.stdout.splitlines() == [
        "read 32 rejected records, 32 of them chosen",
        "left out: 1 are in the ledger by now",
        "sent 31",
        "  29 accepted",
        "  2 to be rejected again: malformed-json",
    ]


async def check_sent(deployed: Replaying, bodies: list[bytes]) -> None:
    """Every event counts once; what is broken stands in ``usage.rejected`` once more."""
    await deployed.rejected(34)
    counted = [one for number, one in enumerate(bodies) if number != 3]
    deployed.sent += map(json.loads, counted)
    await deployed.held()
    assert await deployed.cells() == deployed.expected_cells()
    copies = await deployed.replays()
    assert Counter(r.value for r in copies) == Counter([*counted, b"{", b"{"])
    for copy in copies:
        assert copy.key == b"key"
        assert list(copy.headers[:-1]) == HEADERS
        assert copy.headers[-1][0] == "replayed-from"


async def check_again(deployed: Replaying) -> None:
    """A second run has nothing to send, unless it is told to; nothing is counted twice."""
    second = await deployed.replay()
    assert (second.sent, second.replayed_before) == (0, 33)
    again = await deployed.replay(again=True)
    assert (again.sent, again.in_ledger) == (2, 30)
    assert again.expected == {"malformed-json": 2}
    await deployed.rejected(36)
    await deployed.held()
    assert await deployed.cells() == deployed.expected_cells()


async def test_without_its_topics(kafka: str, empty_ledger: LedgerAddress, tmp_path: Path) -> None:
    deployed = Replaying(kafka, empty_ledger, tmp_path)
    missing = await deployed.command()
    assert missing.returncode == 1
    assert missing.stderr.endswith("does not exist; run `tallyport topics`\n")
    assert missing.stderr.count("\n") == 1
