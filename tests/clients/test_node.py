"""``@clickhouse/client`` from npm, unchanged, as a Node service reads the ledger with it."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import MINE, PER_PORT, BiLedger
from tests.wire.test_node_subscriber import node

SCRIPT = Path(__file__).parent / "node" / "read_ledger.mjs"
RUN_TIMEOUT_S = 240


@pytest.mark.parametrize("compressed", ["0", "1"])
async def test_node_reads(bi_ledger: BiLedger, node_packages: Path, compressed: str) -> None:
    address = bi_ledger.address
    done = await asyncio.to_thread(
        subprocess.run,
        [node()[0], str(SCRIPT), str(node_packages), address.url, compressed,
         address.user, address.password],
        capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    spent = f"{bi_ledger.cost.normalize():f}"
    assert told["ping"] == {"success": True}
    assert told["queryId"] is True
    assert told["byPort"] == [
        {"port_id": port, "calls": calls, "spent": spent}
        for port, calls in ((MINE, PER_PORT), ("it's", PER_PORT))
    ]
    assert told["values"] == [
        {"s": "it's \\ \t\n", "n": None, "d": "2026-11-22 10:15:00.123", "m": {"a": 1}}
    ]
    assert told["quoted"]["data"] == [{"spent": f"{(bi_ledger.cost * 2).normalize():f}"}]
    assert told["streamed"] == 200_000
    assert told["csv"] == '"a"\n1\n'
    assert told["unknown"] == "UNKNOWN_IDENTIFIER"
    assert told["insert"] == told["ddl"] == "READONLY"
    assert told["file"] == "ACCESS_DENIED"
    assert told["cut"] != "done"
    assert told["alive"] == [{"a": 1}]
    assert told["inserted"] is True
    assert told["counted"] == [{"n": 3000, "s": "it's 999"}]
