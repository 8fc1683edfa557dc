"""What must hold when a chaos run has settled, besides what ``tallyport audit`` compares."""

import asyncio
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from pipeline.core.budgets import is_heartbeat
from pipeline.ledger.client import ledger_reader
from pipeline.ops.tether import tethered
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end

AUDIT_WAIT_S = 180
AUDIT_TIMEOUT_S = 3_600.0
SHOWN = 5
IDS = "SELECT port_id, event_id FROM usage_ledger WHERE entry_no = 0"


async def audit(environ: Mapping[str, str]) -> dict[str, Any]:
    """The report of ``tallyport audit`` as a user runs it; ``error`` when it gave none."""
    command = [sys.executable, "-m", "pipeline", "audit", "--json", "--wait", str(AUDIT_WAIT_S)]
    process = await asyncio.create_subprocess_exec(
        *tethered(command),
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(AUDIT_TIMEOUT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    try:
        return json.loads(out.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"ok": False, "error": f"no report: {err.decode()[-500:]}"}


def differences(found: Mapping[str, Any]) -> list[str]:
    """What an audit's report complains of: a line for each kind, with an example."""
    if error := found.get("error"):
        return [f"audit: {error}"]
    kinds = defaultdict[tuple[str, str], list[Mapping[str, Any]]](list)
    for one in found.get("differences", []):
        kinds[one["part"], one["what"]].append(one)
    return [
        f"audit: {part}: {what}: {len(all_of_it)} times, as in partition {first['partition']} "
        f"{first['subject']} {first['day']}: {first['expected']} expected, {first['found']} found"
        for (part, what), all_of_it in kinds.items()
        for first in all_of_it[:1]
    ]


def compare_ids(settings: Settings, produced: Mapping[str, set[str]]) -> list[str]:
    """Every id that was produced stands in the ledger once, and no other one."""
    held: dict[str, list[str]] = {}
    with ledger_reader(settings) as client:
        for port_id, event_id in client.query(IDS).result_rows:
            held.setdefault(port_id, []).append(event_id)
    problems: list[str] = []
    for port_id in sorted(held.keys() | produced.keys()):
        found, expected = held.get(port_id, []), produced.get(port_id, set())
        lost, foreign = expected - set(found), set(found) - expected
        twice = len(found) - len(set(found))
        if lost or foreign or twice:
            problems.append(
                f"port {port_id}: {len(expected)} ids produced, {len(found)} in the ledger; "
                f"{len(lost)} lost {sorted(lost)[:SHOWN]}, {twice} twice, "
                f"{len(foreign)} never produced {sorted(foreign)[:SHOWN]}"
            )
    return problems


async def compare_versions(client: Mapping[str, Any], topic: str) -> list[str]:
    """A subscriber that comes now must not be given an older state than others have seen."""
    highest: dict[bytes, int] = {}
    last: dict[bytes, int] = {}
    async for records in read_to_end(client, topic):
        for record in records:
            key = record.key or b""
            if is_heartbeat(key):
                continue
            if record.value is None:
                last.pop(key, None)
                continue
            version = json.loads(record.value)["version"]
            last[key] = version
            highest[key] = max(version, highest.get(key, 0))
    return [
        f"{key.decode()}: the last state has version {version}, one before it {highest[key]}"
        for key, version in last.items()
        if version < highest[key]
    ]
