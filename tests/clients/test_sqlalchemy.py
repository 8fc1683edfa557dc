"""SQLAlchemy with ``clickhousedb://``, the dialect of clickhouse-connect, as Superset uses it."""

from collections.abc import Iterator
from decimal import Decimal

import pytest
import sqlalchemy as sa
from clickhouse_connect.driver.exceptions import DatabaseError as DriverError

from tests.clients.conftest import MINE, PER_PORT, START, BiLedger

SCHEMA = "tallyport"


@pytest.fixture(scope="module")
def engine(bi_ledger: BiLedger) -> Iterator[sa.Engine]:
    address = bi_ledger.address
    engine = sa.create_engine(f"clickhousedb://default@{address.host}:{address.port}/{SCHEMA}")
    yield engine
    engine.dispose()


def test_a_query_with_bound_parameters(engine: sa.Engine, bi_ledger: BiLedger) -> None:
    text = sa.text(
        "SELECT port_id, sum(requests), sum(cost) FROM usage_daily "
        "WHERE port_id = :port AND date >= :since GROUP BY port_id"
    )
    with engine.connect() as connection:
        for port in bi_ledger.requests:
            found = connection.execute(text, {"port": port, "since": "2026-01-01"}).all()
            assert [tuple(each) for each in found] == [(port, PER_PORT, bi_ledger.cost)]
        for hostile in ("x' OR 1 = 1 --", "\\' OR 1 = 1 --", "%(port)s", "{port:String}"):
            assert connection.execute(text, {"port": hostile, "since": "2026-01-01"}).all() == []
            assert connection.scalar(sa.text("SELECT :v"), {"v": hostile}) == hostile


def test_the_inspector(engine: sa.Engine) -> None:
    inspector = sa.inspect(engine)
    assert SCHEMA in inspector.get_schema_names()
    assert {"usage_daily", "usage_ledger"} <= set(inspector.get_table_names(SCHEMA))
    assert {"usage_daily", "usage_ledger"} <= set(inspector.get_view_names(SCHEMA))
    assert inspector.has_table("usage_daily", SCHEMA)
    assert not inspector.has_table("nope", SCHEMA)
    columns = {each["name"]: str(each["type"]) for each in inspector.get_columns("usage_daily")}
    assert columns["date"] == "Date"
    assert columns["requests"] == "Int64"
    assert columns["cost"] == "Nullable(Decimal(38, 9))"
    assert inspector.get_columns("usage_ledger", SCHEMA)
    assert inspector.get_foreign_keys("usage_daily", SCHEMA) == []
    assert inspector.get_indexes("usage_daily", SCHEMA) == []
    assert inspector.get_pk_constraint("usage_daily", SCHEMA)["constrained_columns"] == []


def test_a_reflected_table(engine: sa.Engine, bi_ledger: BiLedger) -> None:
    daily = sa.Table("usage_daily", sa.MetaData(), autoload_with=engine, schema=SCHEMA)
    by_day = sa.func.toStartOfDay(sa.func.toDateTime(daily.c.date)).label("day")
    chart = (
        sa.select(by_day, daily.c.port_id, sa.func.sum(daily.c.cost).label("spent"))
        .where(daily.c.port_id.in_([MINE, "it's"]))
        .group_by(by_day, daily.c.port_id)
        .order_by(sa.desc("spent"), daily.c.port_id)
        .limit(50_000)
    )
    with engine.connect() as connection:
        found = connection.execute(chart).all()
    assert [tuple(each) for each in found] == [
        (START.replace(tzinfo=None), port, bi_ledger.cost) for port in bi_ledger.requests
    ]


def test_a_query_as_sql_lab_sends_it(engine: sa.Engine) -> None:
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT port_id, cost FROM usage_ledger ORDER BY port_id, event_id LIMIT 2")
        assert [each[0] for each in cursor.description or ()] == ["port_id", "cost"]
        assert cursor.fetchall() == [(MINE, Decimal("12.345678901"))] * 2
        cursor.execute(
            "SELECT name FROM system.functions UNION ALL SELECT name FROM system.table_functions"
        )
        assert len(cursor.fetchmany(200)) == 200
        cursor.close()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        ("CREATE TABLE t (a Int8) ENGINE = Memory", "READONLY"),
        ("INSERT INTO usage_ledger (event_id) VALUES ('x')", "READONLY"),
        ("SELECT * FROM file('/etc/passwd', 'LineAsString')", "ACCESS_DENIED"),
        ("SELECT * FROM system.query_log", "ACCESS_DENIED"),
    ],
)
def test_what_a_reader_may_not_do(engine: sa.Engine, statement: str, name: str) -> None:
    with (
        engine.connect() as connection,
        pytest.raises((sa.exc.DBAPIError, DriverError), match=name),
    ):
        connection.execute(sa.text(statement))
