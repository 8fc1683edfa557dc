"""``clickhouse-connect``, unchanged, as notebooks and services read the ledger with it."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from tests.clients.conftest import COST_NANO, MINE, PER_PORT, START, BiLedger

BY_PORT = (
    "SELECT port_id, sum(requests) AS calls, sum(cost) AS spent, any(currency) AS currency "
    "FROM usage_daily WHERE port_id IN {ports:Array(String)} AND date >= {since:Date} "
    "GROUP BY port_id ORDER BY port_id"
)
PARAMETERS = {"ports": [MINE, "it's"], "since": date(2026, 1, 1)}
EVENTS = "SELECT event_id, occurred_at, cost_nano, cost, tags FROM usage_ledger ORDER BY port_id"


@pytest.fixture(scope="module")
def client(bi_ledger: BiLedger) -> Iterator[Any]:
    client = bi_ledger.address.reader()
    yield client
    client.close()


def expected(ledger: BiLedger) -> list[tuple[Any, ...]]:
    return [(port, PER_PORT, ledger.cost, "USD") for port in PARAMETERS["ports"]]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
def test_queries_with_parameters(bi_ledger: BiLedger, compress: Any) -> None:
    client = bi_ledger.address.reader(compress=compress)
    assert client.query(BY_PORT, parameters=PARAMETERS).result_rows == expected(bi_ledger)
    bound = client.query(
        "SELECT count() FROM usage_ledger WHERE port_id = %(port)s", parameters={"port": "it's"}
    )
    assert bound.first_row == (PER_PORT,)
    hostile = {"v": "x' OR 1 = 1 -- \\"}
    assert client.query("SELECT {v:String}", parameters=hostile).first_row == (hostile["v"],)
    client.close()


def test_a_session_and_a_query_with_settings(bi_ledger: BiLedger) -> None:
    client = bi_ledger.address.reader(session_id="a-session")
    lowered = f"{BY_PORT} SETTINGS max_execution_time = 20, max_result_rows = 1000"
    found = client.query(lowered, parameters=PARAMETERS, query_tz="UTC")
    assert found.result_rows == expected(bi_ledger)
    assert found.query_id
    with pytest.raises(DatabaseError, match="SETTING_CONSTRAINT_VIOLATION"):
        client.query("SELECT 1 SETTINGS max_execution_time = 6000")
    client.close()


def test_streams_of_blocks_and_rows(client: Any) -> None:
    numbers = "SELECT number, toString(number) AS text FROM numbers(200000)"
    with client.query_column_block_stream(numbers) as blocks:
        assert sum(len(columns[0]) for columns in blocks) == 200_000
    with client.query_row_block_stream(numbers) as blocks:
        assert sum(len(rows) for rows in blocks) == 200_000
    with client.query_rows_stream(numbers) as rows:
        assert sum(number for number, _ in rows) == sum(range(200_000))
    with client.raw_stream(numbers, fmt="CSV") as raw:
        assert raw.read().count(b"\n") == 200_000


def test_data_frames(client: Any, bi_ledger: BiLedger) -> None:
    frame = client.query_df(BY_PORT, parameters=PARAMETERS)
    assert list(frame.itertuples(index=False, name=None)) == expected(bi_ledger)
    events = client.query_df(EVENTS)
    assert len(events) == PER_PORT * 2
    assert set(events["cost_nano"]) == {COST_NANO}
    assert events["occurred_at"].min().to_pydatetime() == START.replace(tzinfo=None)
    with client.query_df_stream("SELECT number FROM numbers(100000)") as frames:
        assert sum(len(each) for each in frames) == 100_000


def test_arrow(client: Any) -> None:
    table = client.query_arrow(EVENTS)
    assert table.num_rows == PER_PORT * 2
    assert table.schema.field("cost").type == pa.decimal128(38, 9)
    assert table["cost"].unique().to_pylist() == [Decimal(COST_NANO).scaleb(-9)]
    assert table.schema.field("occurred_at").type == pa.timestamp("us", tz="UTC")
    with client.query_arrow_stream("SELECT number FROM numbers(100000)") as tables:
        assert sum(each.num_rows for each in tables) == 100_000
    typed = client.query_df_arrow("SELECT cost_nano FROM usage_ledger")
    assert int(typed["cost_nano"].sum()) == COST_NANO * PER_PORT * 2


def test_writers_insert(bi_ledger: BiLedger) -> None:
    for compress in (False, "lz4", "zstd", "gzip"):
        writer = bi_ledger.address.writer(compress=compress)
        writer.command(
            "CREATE TABLE w (a Int64, s String, c Decimal(38, 9)) ENGINE = MergeTree ORDER BY a"
        )
        rows = [[number, "it's", Decimal("0.000000001")] for number in range(1000)]
        writer.insert("w", rows, column_names=["a", "s", "c"])
        table = pa.table({"a": range(1000), "s": ["x"] * 1000, "c": pa.array([Decimal(1)] * 1000)})
        writer.insert_arrow("w", table.cast(writer.query_arrow("SELECT * FROM w LIMIT 1").schema))
        writer.insert_df("w", writer.query_df("SELECT * FROM w WHERE s = 'x'"))
        found = writer.query("SELECT count(), sum(a), sum(c) FROM w").first_row
        assert found == (3000, 3 * sum(range(1000)), Decimal("2000.000001000"))
        writer.command("DROP TABLE w")
        writer.close()


async def test_the_asynchronous_client(bi_ledger: BiLedger) -> None:
    address = bi_ledger.address
    client = await clickhouse_connect.get_async_client(
        host=address.host, port=address.port, database="tallyport", autogenerate_session_id=False
    )
    found = await client.query(BY_PORT, parameters=PARAMETERS)
    assert found.result_rows == expected(bi_ledger)
    assert (await client.query_arrow(EVENTS)).num_rows == PER_PORT * 2
    stream = await client.query_row_block_stream("SELECT number FROM numbers(100000)")
    counted = 0
    async with stream:
        async for block in stream:
            counted += len(block)
    assert counted == 100_000
    with pytest.raises(DatabaseError, match="READONLY"):
        await client.command("CREATE TABLE t (a Int8) ENGINE = Memory")
    await client.close()
