"""ClickHouse's HTTP protocol on the embedded server: raw, and through clickhouse-connect."""

import gzip
import json
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal

import clickhouse_connect
import lz4.frame
import pyarrow as pa
import pytest
import zstandard
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError

from pipeline.ledger.server.compression import frame_blocks, unframe_blocks
from tests.ledger.http_requests import ask
from tests.ledger_fixture import LedgerAddress

COLUMNS = "(a Int64, s String, d DateTime64(6, 'UTC'), m Nullable(Decimal(38, 9)))"


@pytest.fixture
def ledger(embedded_ledger: LedgerAddress, request: pytest.FixtureRequest) -> LedgerAddress:
    """The server with an empty table ``p``."""
    for statement in (
        "DROP TABLE IF EXISTS p",
        f"CREATE TABLE p {COLUMNS} ENGINE = MergeTree ORDER BY a SETTINGS fsync_after_insert = 1",
    ):
        assert ask(embedded_ledger, statement, write=True).status == 200
    return embedded_ledger


def test_ping(ledger: LedgerAddress) -> None:
    import urllib.request

    for path in ("/ping", "/replicas_status", "/"):
        with urllib.request.urlopen(ledger.url + path, timeout=60) as response:
            assert response.read() == b"Ok.\n"


def test_the_headers_of_an_answer(ledger: LedgerAddress) -> None:
    answer = ask(ledger, "SELECT 1 AS a FORMAT JSON", query_id="my-id", wait_end_of_query="1")
    assert answer.headers["X-ClickHouse-Query-Id"] == "my-id"
    assert answer.headers["X-ClickHouse-Format"] == "JSON"
    assert answer.headers["X-ClickHouse-Timezone"] == "UTC"
    assert answer.headers["X-ClickHouse-Server-Display-Name"]
    assert answer.headers["Content-Type"] == "application/json; charset=UTF-8"
    summary = json.loads(answer.headers["X-ClickHouse-Summary"])
    assert summary["result_rows"] == "1"
    assert {type(value) for value in summary.values()} == {str}
    assert json.loads(answer.text)["data"] == [{"a": 1}]


def test_a_time_zone_for_one_request(ledger: LedgerAddress) -> None:
    answer = ask(ledger, "SELECT timezone()", session_timezone="Europe/Berlin")
    assert answer.text == "Europe/Berlin\n"
    assert answer.headers["X-ClickHouse-Timezone"] == "Europe/Berlin"
    assert ask(ledger, "SELECT timezone(), serverTimezone()").text == "UTC\tUTC\n"


def test_a_query_id_cannot_carry_headers(ledger: LedgerAddress) -> None:
    answer = ask(ledger, "SELECT 1", query_id="x\r\nSet-Cookie: a=b")
    assert answer.code == 36
    assert "Set-Cookie" not in answer.headers
    assert "X-ClickHouse-Query-Id" not in answer.headers


def test_a_refusal_names_its_query(ledger: LedgerAddress) -> None:
    assert ask(ledger, "SELECT nope", query_id="my-id").headers["X-ClickHouse-Query-Id"] == "my-id"


@pytest.mark.parametrize(
    ("statement", "code", "name", "status"),
    [
        ("SELEC 1 2", 62, "SYNTAX_ERROR", 400),
        ("SELECT nope", 47, "UNKNOWN_IDENTIFIER", 404),
        ("SELECT * FROM nope", 60, "UNKNOWN_TABLE", 404),
        ("SELECT nope(1)", 46, "UNKNOWN_FUNCTION", 404),
        ("SELECT 1 FORMAT Nope", 73, "UNKNOWN_FORMAT", 404),
        ("SELECT toInt8('x')", 6, "CANNOT_PARSE_TEXT", 400),
        ("SELECT throwIf(1)", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", 500),
        ("INSERT INTO nope FORMAT CSV\n1", 60, "UNKNOWN_TABLE", 404),
        ("INSERT INTO p (a) FORMAT CSV\nx", 117, "INCORRECT_DATA", 400),
        ("INSERT INTO p (a) FORMAT Nope\nx", 73, "UNKNOWN_FORMAT", 404),
        ("CREATE TABLE p (a Int8) ENGINE = Memory", 57, "TABLE_ALREADY_EXISTS", 500),
        ("   ", 62, "SYNTAX_ERROR", 400),
    ],
)
def test_errors_are_clickhouses(
    ledger: LedgerAddress, statement: str, code: int, name: str, status: int
) -> None:
    answer = ask(ledger, statement, write=True)
    assert (answer.code, answer.status) == (code, status), answer.text
    assert answer.text.startswith(f"Code: {code}. DB::Exception: ")
    assert f"({name}) (version 26." in answer.text
    assert "parseQueryToJSON" not in answer.text


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        ({"X-ClickHouse-User": "{user}", "X-ClickHouse-Key": "{password}"}, {}),
        ({}, {"user": "{user}", "password": "{password}"}),
        ({"Authorization": "Basic {basic}"}, {}),
    ],
)
def test_three_ways_to_log_in(
    ledger: LedgerAddress, headers: dict[str, str], parameters: dict[str, str]
) -> None:
    import base64

    def filled(template: str, password: str) -> str:
        basic = base64.b64encode(f"{ledger.user}:{password}".encode()).decode()
        return template.format(user=ledger.user, password=password, basic=basic)

    for password, status, code in (
        (ledger.password, 200, 0), ("wrong", 403, 516), ("", 403, 516), ("pässword", 403, 516)
    ):  # fmt: skip
        answer = ask(
            ledger,
            "INSERT INTO p (a) VALUES (1)",
            headers={name: filled(text, password) for name, text in headers.items()
                     if password.isascii()},
            **{name: filled(text, password) for name, text in parameters.items()},
        )  # fmt: skip
        if password.isascii() or parameters:
            assert (answer.status, answer.code) == (status, code), answer.text


def test_an_unknown_user_is_refused_like_a_wrong_password(ledger: LedgerAddress) -> None:
    texts = {
        ask(ledger, "SELECT 1", user=user, password="x").text.replace(user, "U")
        for user in ("nobody", ledger.user)
    }
    assert len(texts) == 1
    assert "(AUTHENTICATION_FAILED)" in texts.pop()
    assert ask(ledger, "SELECT 1", headers={"Authorization": "Bearer x"}).code == 516


def test_get_only_reads(ledger: LedgerAddress) -> None:
    assert ask(ledger, method="GET", query="SELECT 1", write=True).text == "1\n"
    for statement in ("TRUNCATE TABLE p", "INSERT INTO p (a) VALUES (1)", "DROP TABLE p"):
        assert ask(ledger, method="GET", query=statement, write=True).code == 164


NATIVE = b"\x01\x02\x01a\x05Int64" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
BODIES = [
    ("CSV", b"1\n2\n"),
    ("TabSeparated", b"1\n2\n"),
    ("JSONEachRow", b'{"a":1}\n{"a":2}\n'),
    ("Values", b"(1),(2)"),
    ("RowBinary", (1).to_bytes(8, "little") + (2).to_bytes(8, "little")),
    ("Native", NATIVE),
]


@pytest.mark.parametrize(("name", "data"), BODIES)
@pytest.mark.parametrize("in_body", [True, False])
def test_insert_formats(ledger: LedgerAddress, name: str, data: bytes, in_body: bool) -> None:
    statement = f"INSERT INTO p (a) FORMAT {name}"
    if in_body:
        answer = ask(ledger, statement.encode() + b"\n" + data, write=True)
    else:
        answer = ask(ledger, data, write=True, query=statement)
    assert answer.status == 200, answer.text
    assert json.loads(answer.headers["X-ClickHouse-Summary"])["written_rows"] == "2"
    assert ask(ledger, "SELECT sum(a), count() FROM p").text == "3\t2\n"


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("zstd", zstandard.ZstdCompressor().compress),
        ("lz4", lz4.frame.compress),
    ],
)
def test_request_and_response_encodings(
    ledger: LedgerAddress, encoding: str, encode: object
) -> None:
    body = encode(b"INSERT INTO p (a) FORMAT CSV\n1\n2\n")  # type: ignore[operator]
    answer = ask(ledger, body, write=True, headers={"Content-Encoding": encoding})
    assert answer.status == 200, answer.text
    for statement in ("SELECT a FROM p ORDER BY a FORMAT JSONEachRow", "SELECT a FROM p LIMIT 0"):
        plain = ask(ledger, statement)
        packed = ask(
            ledger,
            statement,
            enable_http_compression="1",
            headers={"Accept-Encoding": f"identity, {encoding};q=0.5"},
        )
        assert packed.headers["Content-Encoding"] == encoding
        body = packed.body if encoding in ("gzip", "deflate") else None
        assert body is None or body == plain.body  # these two are decoded by the HTTP client


def test_clickhouses_own_framing(ledger: LedgerAddress) -> None:
    body = frame_blocks(b"INSERT INTO p (a) FORMAT CSV\n" + b"7\n" * 1000)
    assert ask(ledger, body, write=True, decompress="1").status == 200
    for wait in ("0", "1"):
        answer = ask(ledger, "SELECT a FROM p", compress="1", wait_end_of_query=wait)
        assert unframe_blocks(answer.body, 1 << 20) == b"7\n" * 1000
    damaged = bytearray(body)
    damaged[-1] ^= 1
    assert ask(ledger, bytes(damaged), write=True, decompress="1").code == 40


def test_settings_do_not_outlive_their_request(ledger: LedgerAddress) -> None:
    probe = "SELECT getSetting('max_threads'), getSetting('max_block_size'), timezone()"
    usual = ask(ledger, probe, write=True).text
    for _ in range(10):
        changed = ask(ledger, probe, write=True, max_threads="3", max_block_size="77",
                      session_timezone="Asia/Tokyo")  # fmt: skip
        assert changed.text == "3\t77\tAsia/Tokyo\n"
        assert ask(ledger, "SET max_threads = 9", write=True).status == 200
        assert ask(ledger, "USE system", write=True).status == 200
        assert ask(ledger, probe, write=True).text == usual
        assert ask(ledger, "SELECT currentDatabase()", write=True).text == "tallyport\n"


def test_parameters_are_values(ledger: LedgerAddress) -> None:
    answer = ask(
        ledger,
        "SELECT {text:String}, {output_format:String}, {n:Int64}, {l:Array(String)}",
        param_text="it's \\'; DROP TABLE p; --",
        param_output_format="x",
        param_n="-5",
        param_l="['a','b']",
    )
    assert answer.text == "it\\'s \\'; DROP TABLE p; --\tx\t-5\t['a','b']\n"


def test_a_form_may_carry_query_and_parameters(ledger: LedgerAddress) -> None:
    body = (
        b'--B\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT {x:Int8} + 1\r\n'
        b'--B\r\nContent-Disposition: form-data; name="param_x"\r\n\r\n4\r\n--B--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    assert ask(ledger, body, headers=headers).text == "5\n"


def test_a_body_that_is_too_large_is_refused(ledger: LedgerAddress) -> None:
    answer = ask(ledger, b"x" * ((128 << 20) + 1), write=True)
    assert (answer.code, answer.status) == (229, 413)
    bomb = gzip.compress(b"INSERT INTO p (a) FORMAT CSV\n" + b"1\n" * (140 << 20), 1)
    assert ask(ledger, bomb, write=True, headers={"Content-Encoding": "gzip"}).code == 229
    assert ask(ledger, "SELECT count() FROM p").text == "0\n"


def test_clickhouse_connect_reads_and_writes(ledger: LedgerAddress) -> None:
    writer, reader = ledger.writer(), ledger.reader()
    try:
        assert writer.server_version.startswith("26.")
        moment = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
        rows = [[1, "it's\n\t\\", moment, None], [2, "é", moment, Decimal("1.000000001")]]
        summary = writer.insert("p", rows, column_names=["a", "s", "d", "m"])
        assert summary.written_rows == 2
        found = reader.query(
            "SELECT * FROM p WHERE a >= {a:Int64} AND s != {s:String} ORDER BY a",
            parameters={"a": 1, "s": "it's"},
        )
        assert found.column_names == ("a", "s", "d", "m")
        assert found.result_rows[0] == (1, rows[0][1], moment.replace(tzinfo=None), None)
        assert found.result_rows[1][3] == Decimal("1.000000001")
        assert reader.command("SELECT count() FROM p") == 2
        assert reader.raw_query("SELECT 1 AS a FORMAT JSONEachRow") == b'{"a":1}\n'
        assert reader.query("SELECT a, s FROM p LIMIT 0").column_names == ("a", "s")
        assert reader.query("SELECT a FROM p WHERE a > 5").result_rows == []
        assert reader.query("SHOW TABLES LIKE 'p'").result_rows == [("p",)]
        assert reader.ping()
    finally:
        writer.close()
        reader.close()


def test_clickhouse_connect_moves_arrow_tables(ledger: LedgerAddress) -> None:
    count = 50_000
    table = pa.table(
        {
            "a": pa.array(range(count), pa.int64()),
            "s": pa.array([f"text {n % 100}" for n in range(count)]),
            "d": pa.array(range(count), pa.timestamp("us", "UTC")),
        }
    )
    writer = ledger.writer()
    try:
        assert writer.insert_arrow("p", table).written_rows == count
        found = writer.query_arrow("SELECT a, s, d FROM p ORDER BY a")
        assert found.num_rows == count
        assert found["a"].to_pylist() == list(range(count))
        assert found["s"][99].as_py() == "text 99"
    finally:
        writer.close()


def test_clickhouse_connect_streams(ledger: LedgerAddress) -> None:
    reader = ledger.reader()
    try:
        with reader.query_row_block_stream("SELECT number FROM numbers(300000)") as blocks:
            sizes = [len(block) for block in blocks]
        assert sum(sizes) == 300_000
        assert len(sizes) > 1
        failing = (
            "SELECT throwIf(number > 900000, 'too far') FROM numbers(950000) "
            "SETTINGS max_threads = 1, max_block_size = 1000"
        )
        with (
            pytest.raises(StreamFailureError, match="too far"),
            reader.query_row_block_stream(failing) as blocks,
        ):
            for _ in blocks:
                pass
        assert reader.command("SELECT 1") == 1
    finally:
        reader.close()


def test_clickhouse_connect_names_a_wrong_password(ledger: LedgerAddress) -> None:
    with pytest.raises(DatabaseError, match="AUTHENTICATION_FAILED") as caught:
        clickhouse_connect.get_client(
            host=ledger.host, port=ledger.port, username=ledger.user, password="wrong"
        )
    assert caught.value.code == 516


def test_a_streams_client_may_go_away(ledger: LedgerAddress) -> None:
    import httpx

    with httpx.Client(timeout=30, trust_env=False, verify=False) as client:
        for _ in range(50):
            query = "SELECT number FROM numbers(900000) FORMAT CSV"
            with client.stream("POST", ledger.url, content=query) as response:
                next(response.iter_bytes())
    assert ask(ledger, "SELECT 1").text == "1\n"


def test_reads_run_beside_a_long_insert(ledger: LedgerAddress) -> None:
    slow = (
        "INSERT INTO p (a) SELECT number FROM numbers(8) WHERE sleepEachRow(0.5) = 0 "
        "SETTINGS max_block_size = 1"
    )
    inserted = threading.Event()

    def insert() -> None:
        assert ask(ledger, slow, write=True).status == 200
        inserted.set()

    inserting = threading.Thread(target=insert)
    inserting.start()
    reads = 0
    try:
        while not inserted.is_set() and inserting.is_alive():
            assert ask(ledger, "SELECT count() >= 0 FROM p").text == "1\n"
            reads += not inserted.is_set()
            time.sleep(0.02)
    finally:
        inserting.join(60)
    assert inserted.is_set()
    assert reads > 1  # the first one may have come before the insert


def test_too_many_requests_are_turned_away_and_the_rest_answered(ledger: LedgerAddress) -> None:
    slow = "SELECT sleep(1) FROM numbers(1)"
    deadline_s = time.monotonic() + 60
    turned_away = threading.Event()
    outcomes: set[tuple[int, int]] = set()

    def asking(_: int) -> None:
        """Again and again until one was turned away: so they overlap, however late some begin."""
        while not turned_away.is_set() and time.monotonic() < deadline_s:
            answer = ask(ledger, slow, wait_end_of_query="1")
            outcomes.add((answer.status, answer.code))
            if answer.status == 503:
                turned_away.set()

    with ThreadPoolExecutor(60) as pool:
        list(pool.map(asking, range(60)))
    assert outcomes == {(200, 0), (503, 202)}
    assert ask(ledger, "SELECT 1").text == "1\n"


def test_many_at_once_keep_their_own_settings_and_rights(ledger: LedgerAddress) -> None:
    def reading(number: int) -> str:
        parameters = {"max_threads": str(number % 4 + 1)}
        return ask(ledger, "SELECT getSetting('max_threads')", **parameters).text

    def writing(number: int) -> int:
        return ask(ledger, f"INSERT INTO p (a) VALUES ({number})", write=True).status

    def refused(_: int) -> int:
        return ask(ledger, "INSERT INTO p (a) VALUES (1000)").code

    with ThreadPoolExecutor(9) as pool:
        reads = pool.map(reading, range(60))
        writes = pool.map(writing, range(60))
        refusals = pool.map(refused, range(60))
        assert list(reads) == [f"{number % 4 + 1}\n" for number in range(60)]
        assert set(writes) == {200}
        assert set(refusals) == {164}
    assert ask(ledger, "SELECT count(), sum(a) FROM p").text == f"60\t{sum(range(60))}\n"
