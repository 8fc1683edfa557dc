"""The server's parts that need no process: statements, framing, encodings, limits, errors."""

import gzip
import struct
import zlib
from pathlib import Path

import lz4.block
import lz4.frame
import pytest
import zstandard
from clickhouse_cityhash.cityhash import CityHash128
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ledger.server.compression import (
    BodyEncoder,
    checksum,
    decode_body,
    frame_blocks,
    unframe_blocks,
)
from pipeline.ledger.server.errors import QueryError, from_engine
from pipeline.ledger.server.limits import READER_LIMITS, reader_settings, set_statement
from pipeline.ledger.server.statement import MAX_STATEMENT_BYTES, Statement, split
from pipeline.ledger.server.users import sink_password


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"SELECT 1", Statement("SELECT 1")),
        (b"INSERT INTO t FORMAT RowBinary\n\0\xff",
         Statement("INSERT INTO t ", "RowBinary", b"\0\xff")),
        (b"insert into t(a) format CSV\r\n1\n", Statement("insert into t(a) ", "CSV", b"1\n")),
        (b"INSERT INTO t FORMAT CSV 1", Statement("INSERT INTO t ", "CSV", b"1")),
        (b"INSERT INTO t FORMAT CSV\n\n1", Statement("INSERT INTO t ", "CSV", b"\n1")),
        (b"INSERT INTO t FORMAT CSV", Statement("INSERT INTO t ", "CSV", b"")),
        (b"INSERT INTO t VALUES (1)", Statement("INSERT INTO t ", "Values", b" (1)")),
        (b"INSERT INTO t (`format`, \"values\") VALUES(1)",
         Statement("INSERT INTO t (`format`, \"values\") ", "Values", b"(1)")),
        (b"INSERT INTO values VALUES (1)", Statement("INSERT INTO values ", "Values", b" (1)")),
        (b"INSERT INTO db.format FORMAT CSV\n1", Statement("INSERT INTO db.format ", "CSV", b"1")),
        (b"/* FORMAT X */ INSERT -- VALUES\n INTO t SETTINGS a = 'FORMAT' FORMAT TSV\nx",
         Statement("/* FORMAT X */ INSERT -- VALUES\n INTO t ", "TSV", b"x",
                   "SETTINGS a = 'FORMAT' ")),
        (b"INSERT INTO settings (settings) SETTINGS a = 1, b = 2 VALUES (1)",
         Statement("INSERT INTO settings (settings) ", "Values", b" (1)",
                   "SETTINGS a = 1, b = 2 ")),
        (b"INSERT INTO t SELECT 1 FORMAT CSV", Statement("INSERT INTO t SELECT 1 FORMAT CSV")),
        (b"INSERT INTO t WITH 1 AS x SELECT x", Statement("INSERT INTO t WITH 1 AS x SELECT x")),
        (b"INSERT INTO t (a) (SELECT 1)", Statement("INSERT INTO t (a) (SELECT 1)")),
        (b"INSERT INTO t FROM INFILE 'x' FORMAT CSV",
         Statement("INSERT INTO t FROM INFILE 'x' FORMAT CSV")),
        (b"SELECT 'INSERT INTO t FORMAT CSV'", Statement("SELECT 'INSERT INTO t FORMAT CSV'")),
        (b"INSERT INTO t 'open FORMAT CSV\n1", Statement("INSERT INTO t 'open FORMAT CSV\n1")),
        (b"", Statement("")),
    ],
)  # fmt: skip
def test_an_inserts_data_is_split_off(sent: bytes, expected: Statement) -> None:
    assert split(sent) == expected


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"SELECT '\xff'", 62),
        (b"SELECT 1\0; SELECT 2", 62),
        (b"SELECT " + b"1" * MAX_STATEMENT_BYTES, 229),
    ],
)
def test_statements_that_are_not_text_are_refused(sent: bytes, code: int) -> None:
    with pytest.raises(QueryError) as caught:
        split(sent)
    assert caught.value.code == code


def test_hostile_statements_are_split_in_linear_time() -> None:
    for piece in (b"/*", b"$a$ ", b"'", b"$", b"(", b"`\\", b"--"):
        split(b"INSERT " + piece * (200_000 // len(piece)))


def clickhouse_decoded(data: bytes) -> bytes:
    """ClickHouse's framing as its documents describe it, read by other means than the server's."""
    content = b""
    while data:
        stated, rest = data[:16], data[16:]
        size, original = struct.unpack("<II", rest[1:9])
        frame, data = rest[:size], rest[size:]
        number = CityHash128(frame)
        assert stated == struct.pack("<QQ", number >> 64, number & (1 << 64) - 1)
        assert frame[0] == 0x82
        content += lz4.block.decompress(frame[9:], uncompressed_size=original)
    return content


@given(st.binary(max_size=3000))
def test_frames_can_be_read_by_a_clickhouse_client(data: bytes) -> None:
    assert clickhouse_decoded(frame_blocks(data)) == data
    assert unframe_blocks(frame_blocks(data), 1 << 20) == data


def test_a_checksum_is_written_as_clickhouse_writes_it() -> None:
    # By the CityHash128 of clickhouse-jdbc: the first half first, each half little endian.
    known = {
        b"": (0x3DF09DFC64C09A2B, 0x3CB540C392E51E29),
        bytes([7]): (0x8BE55B379CCE0E40, 0x05AB4744478B1CBA),
    }
    for data, halves in known.items():
        assert checksum(data) == struct.pack("<QQ", *halves)


def test_a_stored_frame_is_read() -> None:
    # "1\n" in one stored frame: SELECT 1 with compress=1 and network_compression_method=NONE.
    frame = b"\x02" + struct.pack("<II", 11, 2) + b"1\n"
    assert unframe_blocks(checksum(frame) + frame, 100) == b"1\n"


def test_large_content_comes_in_several_frames() -> None:
    data = bytes(range(256)) * 10_000
    framed = frame_blocks(data)
    assert clickhouse_decoded(framed) == data
    with pytest.raises(QueryError) as caught:
        unframe_blocks(framed, 1 << 20)
    assert caught.value.code == 229


@pytest.mark.parametrize("cut", [1, 10, 24, 30])
def test_a_cut_frame_is_refused(cut: int) -> None:
    with pytest.raises(QueryError) as caught:
        unframe_blocks(frame_blocks(b"x" * 100)[:cut], 1000)
    assert caught.value.code in (40, 271)


def test_a_changed_frame_is_refused() -> None:
    framed = bytearray(frame_blocks(b"some content"))
    framed[-1] ^= 1
    with pytest.raises(QueryError) as caught:
        unframe_blocks(bytes(framed), 1000)
    assert caught.value.code == 40


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


ZSTD = zstandard.ZstdCompressor()
ENCODERS = [
    ("gzip", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("zstd", ZSTD.compress),
    ("lz4", lz4.frame.compress),
    ("gzip", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
    ("lz4", lambda data: lz4.frame.compress(data[:5]) + lz4.frame.compress(data[5:])),
    ("zstd", lambda data: ZSTD.compress(data[:5]) + ZSTD.compress(data[5:])),
    ("", bytes),
    ("identity", bytes),
]
COMPRESSING = [pair for pair in ENCODERS if pair[0] not in ("", "identity")]


@pytest.mark.parametrize(("encoding", "encode"), ENCODERS)
def test_request_encodings_are_decoded(encoding: str, encode: object) -> None:
    data = b"some data " * 1000
    assert decode_body(encode(data), encoding, len(data)) == data  # type: ignore[operator]


@pytest.mark.parametrize(("encoding", "encode"), COMPRESSING)
def test_a_bomb_is_refused(encoding: str, encode: object) -> None:
    with pytest.raises(QueryError) as caught:
        decode_body(encode(b"0" * 10_000_000), encoding, 1_000_000)  # type: ignore[operator]
    assert caught.value.code == 229


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "lz4"])
@pytest.mark.parametrize("data", [b"garbage", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x78\x9c"])
def test_what_cannot_be_decoded_is_refused(encoding: str, data: bytes) -> None:
    with pytest.raises(QueryError) as caught:
        decode_body(data, encoding, 100)
    assert caught.value.code == 271


@pytest.mark.parametrize(("encoding", "encode"), COMPRESSING)
@pytest.mark.parametrize("missing", [1, 4, 9, 200])
def test_a_body_that_is_cut_off_is_refused(encoding: str, encode: object, missing: int) -> None:
    whole = encode(bytes(range(256)) * 4)  # type: ignore[operator]
    with pytest.raises(QueryError) as caught:
        decode_body(whole[:-missing], encoding, 10_000)
    assert caught.value.code == 271


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(QueryError) as caught:
        decode_body(b"x", "rot13", 100)
    assert caught.value.code == 89


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd", "lz4", ""])
@pytest.mark.parametrize("parts", [[], [b"a" * 5000, b"b" * 70_000, b"c"]])
def test_answers_are_encoded_in_parts(encoding: str, parts: list[bytes]) -> None:
    encoder = BodyEncoder(encoding)
    packed = b"".join(encoder.encode(part) for part in parts) + encoder.finish()
    assert decode_body(packed, encoding, 1 << 20) == b"".join(parts)


def test_a_reader_may_lower_limits_but_not_lift_them() -> None:
    assert reader_settings([("max_result_rows", "10")])["max_result_rows"] == "10"
    for name, most in READER_LIMITS.items():
        for value in (str(most + 1), "0", "-1", "nan", "inf", "1e99"):
            with pytest.raises(QueryError) as caught:
                reader_settings([(name, value)])
            assert caught.value.code == 452, (name, value)


@pytest.mark.parametrize(
    "name",
    ["readonly", "allow_ddl", "max_untracked_memory", "dialect", "format_schema",
     "output_format_schema", "format_template_resultset", "user_files_path", "param_x",
     "allow_introspection_functions", "max_rows_to_read", "log_queries", "enable_analyzer"],
)  # fmt: skip
def test_a_reader_may_set_only_what_is_listed(name: str) -> None:
    with pytest.raises(QueryError) as caught:
        reader_settings([(name, "0")])
    assert caught.value.code == 164


def test_settings_cannot_carry_sql() -> None:
    assert set_statement({"a": "1', readonly='0"}) == "SET a = '1\\', readonly=\\'0'"
    with pytest.raises(QueryError):
        set_statement({"a = 1, readonly": "0"})


@pytest.mark.parametrize(
    ("message", "text", "status"),
    [
        ("Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE)",
         "Code: 60. DB::Exception: Table a.b does not exist. (UNKNOWN_TABLE)", 404),
        ("Streaming insert append failed: Code: 62. DB::Exception: Bad: While x. (SYNTAX_ERROR) "
         "(version 26.9.2.1)", "Code: 62. DB::Exception: Bad: While x. (SYNTAX_ERROR)", 400),
        ("Code: 164. DB::Exception: Code: 164. DB::Exception: No. (READONLY) (version 26.9.2.1). "
         "(READONLY)", "Code: 164. DB::Exception: No. (READONLY)", 500),
        ("out of luck", "Code: 1002. DB::Exception: out of luck (UNKNOWN_EXCEPTION)", 500),
    ],
)  # fmt: skip
def test_the_engines_errors_are_put_in_clickhouses_form(
    message: str, text: str, status: int
) -> None:
    error = from_engine(message)
    assert (str(error), error.status) == (text, status)


def test_the_password_is_made_once_and_is_private(tmp_path: Path) -> None:
    password = sink_password(tmp_path)
    assert len(password) >= 32
    assert sink_password(tmp_path) == password
    assert (tmp_path / "sink-password").stat().st_mode & 0o777 == 0o600
