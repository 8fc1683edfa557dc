"""``clickhouse-jdbc``, unchanged, asked as DBeaver and Metabase ask it; two generations of it.

Both ask for answers in ClickHouse's own compressed framing unless told otherwise; with
``decompress`` they send their inserts in it, too.
"""

import asyncio
import os
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from pipeline.ops.java_runtime import java_command
from tests.clients.conftest import BiLedger, pins

RUN_TIMEOUT_S = 240
DRIVERS = [jar for jar in pins() if jar.artifact == "clickhouse-jdbc"]
DECIMAL, BIGINT, DATE, VARCHAR, TIMESTAMP = "3", "-5", "91", "12", "93"

Told = dict[str, list[list[str]]]


async def bi_tool(classes: Path, jars: Path, driver: str, *arguments: str) -> Told:
    """What the tool printed: the rows of each answer by the question's name."""
    logging = [jars / jar.filename for jar in pins() if jar.group == "org.slf4j"]
    path = [classes, jars / driver, *logging]
    command = [
        java_command(), "-Xmx256m", "-Duser.timezone=UTC", "--enable-native-access=ALL-UNNAMED",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=off",
        "-cp", os.pathsep.join(map(str, path)), "BiTool", *arguments,
    ]  # fmt: skip
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    told: Told = defaultdict(list)
    for line in done.stdout.splitlines():
        name, *values = line.split("\t")
        told[name].append(values)
    return told


def url(ledger: BiLedger) -> str:
    return f"jdbc:clickhouse://{ledger.address.host}:{ledger.address.port}/tallyport"


@pytest.mark.parametrize("properties", [[], ["compress=false"]], ids=["framed", "plain"])
@pytest.mark.parametrize("driver", [jar.filename for jar in DRIVERS])
async def test_a_bi_tool_reads(
    bi_ledger: BiLedger, java_classes: Path, jars: Path, driver: str, properties: list[str]
) -> None:
    login = ["user=default", "password="]
    told = await bi_tool(java_classes, jars, driver, "read", url(bi_ledger), *login, *properties)
    assert told["product"][0][0] == "ClickHouse"
    assert told["product"][0][3] == "default"
    assert told["valid"] == [["true"]]
    check_metadata(told)
    check_queries(told, bi_ledger)
    assert "UNKNOWN_IDENTIFIER" in told["unknown"][0][0]
    for name, code in {
        "ddl": "READONLY",
        "file": "ACCESS_DENIED",
        "users": "ACCESS_DENIED",
    }.items():
        assert code in told[name][0][0]


def check_metadata(told: Told) -> None:
    assert ["tallyport"] in [row[:1] for row in told["catalogs"] + told["schemas"]]
    assert ["VIEW"] in told["tableTypes"]
    names = {row[2] for row in told["tables"]}
    assert {"usage_ledger", "usage_daily", "ai_usage_daily", "focus_charges"} <= names
    assert "usage_ledger" in {row[2] for row in told["views"]}
    assert all(row[2].startswith("usage") and row[3] == "VIEW" for row in told["views"])
    columns = {row[3]: row[4:6] for row in told["columns"]}
    assert columns["date"] == [DATE, "Date"]
    assert columns["port_id"] == [VARCHAR, "String"]
    assert columns["requests"] == [BIGINT, "Int64"]
    assert columns["cost"] == [DECIMAL, "Nullable(Decimal(38, 9))"]
    assert {"Int64", "String", "Decimal", "DateTime64"} <= {row[0] for row in told["typeInfo"]}
    assert any("toStartOfDay" in row for row in told["functions"])
    for empty in ("primaryKeys", "importedKeys", "exportedKeys", "indexInfo", "versionColumns"):
        assert told[f"{empty}Count"] == [["0"]], empty
    assert len(told["clientInfo"]) > 0


def check_queries(told: Told, ledger: BiLedger) -> None:
    assert told["prepared"] == [["it's", "40", f"{ledger.cost:f}", "2026-11-20"]]
    assert told["injectedCount"] == [["0"]]
    text, moment, nothing = told["values"][0]
    assert text == 'it\'s \\ "x" ? `y`'
    assert moment.startswith("2026-11-22 10:15:00")
    assert nothing == "null"
    described = {row[0]: row[1] for row in told["described"]}
    assert len(described) == 47
    assert described["tags"].startswith("Map(")
    kinds = {row[0]: row[2] for row in told["types"]}
    assert kinds["cost"] == DECIMAL
    assert kinds["input_tokens"] == BIGINT
    assert kinds["port_id"] == VARCHAR
    assert told["limitedCount"] == [["3"]]
    assert [row[0] for row in told["limited"]] == ["e0", "e1", "e10"]
    assert [row[5] for row in told["limited"]] == ["harbor-7"] * 3
    assert told["limited"][0][3] == "12.345678901"
    assert told["large"] == [["300000"]]


@pytest.mark.parametrize("driver", [jar.filename for jar in DRIVERS])
async def test_inserts_in_clickhouses_framing(
    bi_ledger: BiLedger, java_classes: Path, jars: Path, driver: str
) -> None:
    address = bi_ledger.address
    login = [f"user={address.user}", f"password={address.password}"]
    told = await bi_tool(
        java_classes, jars, driver, "write", url(bi_ledger), *login, "decompress=true"
    )
    assert told["batch"] == [["5000"]]
    assert told["written"] == [["5000", str(sum(range(5000))), "it's \\ 999"]]
