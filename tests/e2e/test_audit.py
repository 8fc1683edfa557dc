"""The audit and the demo on real parts: what agrees passes, what is spoilt is found."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pipeline.audit.run import run_audit
from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import open_writer
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings, load_settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers.kafka import Publisher
from producers.simulator import simulate, steady

DEMO_TIMEOUT_S = 170.0
ONE_ROW = (
    "SELECT * FROM ledger_entries FINAL WHERE source_partition = 1 ORDER BY source_offset LIMIT 1"
)


def processes_that_mention(text: str) -> Iterator[str]:
    """Command lines of living processes with ``text`` in their arguments or environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in seen and int(folder.name) != os.getpid():
            yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_demo_agrees_to_the_last_nano_and_leaves_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "TALLYPORT_DATA_DIR": str(tmp_path / "own")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "demo", "--json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["ok"]
    assert result["problems"] == []
    assert result["audit"]["compared"]["ledger rows"] == result["audit"]["fates"]["accepted"]
    crossed = {(t["budget"], t["status"]) for t in result["transitions"] if t["ms"] is not None}
    assert ("port:harbor-7|tokens|month", "soft-cap-exceeded") in crossed
    assert ("port:harbor-7|tokens|month", "hard-cap-exceeded") in crossed
    assert list(tmp_path.iterdir()) == []
    assert list(processes_that_mention(str(tmp_path))) == []


def embedded(data_dir: Path) -> Settings:
    """Settings for everything embedded, on free ports."""
    ports = {f"TALLYPORT_{name}_PORT": "0" for name in ("KAFKA", "LEDGER", "API")}
    return load_settings({**ports, "TALLYPORT_DATA_DIR": str(data_dir)}, None)


async def send_day(settings: Settings, seed: int) -> None:
    sent = simulate(seed, 1_500, datetime.now(UTC), partitions=settings.partition_count)
    topic = Topics(settings.topic_prefix).events
    async with Publisher(client_kwargs(settings), topic) as publisher:
        for one in sent:
            await publisher.send(one.value, one.key, one.headers, one.partition)
        await publisher.flush()
        assert (publisher.sent, publisher.failed) == (len(sent), 0)


async def send_steadily(settings: Settings, seconds: float) -> None:
    topic = Topics(settings.topic_prefix).events
    async with Publisher(client_kwargs(settings), topic) as publisher:
        pairs = list(steady(int(seconds * 400), seed=9, end=datetime.now(UTC)))
        for at in range(0, len(pairs), 20):
            await publisher.send_many(pairs[at : at + 20])
            await asyncio.sleep(0.05)
        await publisher.flush()


async def test_audit_finds_what_is_spoilt(tmp_path: Path) -> None:
    async with Deployment(embedded(tmp_path)) as deployment:
        settings = deployment.settings
        empty = await run_audit(settings, wait_s=2)
        assert "events to compare" in [d.what for d in empty.differences]

        topics = Topics(settings.topic_prefix)
        bodies = (
            {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "1"},
            {"scope": "user:*", "unit": "tokens", "period": "day", "soft_cap": 5_000},
        )
        policies = [policy_from_object(body) for body in bodies]
        await write_policies(client_kwargs(settings), topics, "test", policies)
        await send_day(settings, 1)
        whole = await run_audit(settings)
        assert whole.ok, whole.lines()
        assert min(whole.compared.values()) > 0

        # In traffic: what moves on while it is read is no difference.
        traffic = asyncio.create_task(send_steadily(settings, 12))
        await asyncio.sleep(2)
        moving = await run_audit(settings)
        await traffic
        assert moving.ok, moving.lines()

        await _spoil_the_ledger(settings)

        deployment.children["sink"].terminate()
        deployment.children["sink"].stop(15)
        await send_day(settings, 2)
        behind = await run_audit(settings, wait_s=3)
        assert {d.part for d in behind.differences} == {"ledger"}
        assert any("not everything" in d.what for d in behind.differences)
        deployment.launch("sink")
        await deployment.wait_ready("sink")
        caught_up = await run_audit(settings)
        assert caught_up.ok, caught_up.lines()


async def _spoil_the_ledger(settings: Settings) -> None:
    """One nano too many, then a row too few; each is found, and mended again."""
    ledger = await asyncio.to_thread(open_writer, settings)
    try:
        found = ledger.query(ONE_ROW)
        names, row = found.column_names, list(found.result_rows[0])
        port, event_id = row[names.index("port_id")], row[names.index("event_id")]
        cost = names.index("cost_nano")
        right = row[cost]
        row[cost] = (right or 0) + 1
        ledger.insert("ledger_entries", [row], column_names=names)
        dearer = await run_audit(settings)
        assert [(d.partition, d.subject, d.what) for d in dearer.differences] == [
            (1, f"port:{port} event {event_id}", "cost_nano")
        ]
        assert right is None or dearer.differences[0].by == 1

        ledger.command(
            "ALTER TABLE ledger_entries DELETE WHERE port_id = {port:String} "
            "AND event_id = {event:String} SETTINGS mutations_sync = 2",
            parameters={"port": port, "event": event_id},
        )
        fewer = await run_audit(settings)
        assert [(d.subject, d.by) for d in fewer.differences] == [
            (f"port:{port} event {event_id}", -1)
        ]
        row[cost] = right
        ledger.insert("ledger_entries", [row], column_names=names)
        assert (await run_audit(settings)).ok
    finally:
        ledger.close()
