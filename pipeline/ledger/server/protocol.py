"""ClickHouse's HTTP protocol: from a request to what the engine is asked, and its formats."""

import base64
import binascii
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Final

from pipeline.ledger.server.compression import RESPONSE_ENCODINGS, decode_body, unframe_blocks
from pipeline.ledger.server.errors import (
    AUTHENTICATION_FAILED,
    BAD_ARGUMENTS,
    NOT_IMPLEMENTED,
    UNKNOWN_FORMAT,
    QueryError,
)
from pipeline.ledger.server.statement import Statement, split
from pipeline.ledger.server.users import READER, User, Users

MAX_BODY_BYTES: Final = 128 << 20
MAX_DECODED_BYTES: Final = 256 << 20

# Consumed here, or without meaning for an embedded engine; everything else is a setting.
_PARAMETERS: Final = frozenset(
    """
    add_http_cors_header buffer_size cancel_http_readonly_queries_on_client_close
    client_protocol_version close_session compress database decompress default_format
    enable_http_compression password query query_id quota_key role session_check session_id
    session_timeout send_progress_in_http_headers stacktrace user wait_end_of_query
    """.split()  # noqa: SIM905
)
_PARAMETER_PREFIX: Final = "param_"
_IGNORED_PREFIXES: Final = ("http_",)
_SAFE_HEADER: Final = re.compile(r"[\x21-\x7e]{1,200}")
_FORMAT_NAME: Final = re.compile(r"\w{1,64}", re.ASCII)
# The engine would hand these out as Python objects.
_PYTHON_FORMATS: Final = frozenset({"arrowtable", "dataframe", "datastore"})

_CONTENT_TYPES: Final = {
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present",
    "HTML": "text/html; charset=UTF-8",
    "JSON": "application/json; charset=UTF-8",
    "JSONCompact": "application/json; charset=UTF-8",
    "JSONColumns": "application/json; charset=UTF-8",
    "JSONStrings": "application/json; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "TSVWithNames": "text/tab-separated-values; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TabSeparatedWithNames": "text/tab-separated-values; charset=UTF-8",
    "TabSeparatedWithNamesAndTypes": "text/tab-separated-values; charset=UTF-8",
    "XML": "application/xml; charset=UTF-8",
}
_BINARY: Final = ("Native", "RowBinary", "Arrow", "Parquet", "ORC", "Avro", "MsgPack", "BSON")


@dataclass(frozen=True, slots=True)
class RawRequest:
    """An HTTP request as it came in; header names are in lower case."""

    method: str
    parameters: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine is asked, by whom, and how the answer is to be sent."""

    user: User
    statement: Statement
    database: str
    output_format: str
    settings: tuple[tuple[str, str], ...]
    parameters: Mapping[str, str]
    query_id: str
    read_only: bool
    whole_answer: bool
    framed: bool
    encoding: str


def content_type(name: str) -> str:
    """The media type ClickHouse gives to output format ``name``."""
    if name in _CONTENT_TYPES:
        return _CONTENT_TYPES[name]
    if name.startswith("JSON") and "EachRow" in name:
        return "application/x-ndjson; charset=UTF-8"
    if name.startswith(_BINARY):
        return "application/octet-stream"
    return "text/plain; charset=UTF-8"


def _credentials(raw: RawRequest) -> tuple[str, str]:
    header = raw.headers.get("authorization", "")
    if "x-clickhouse-user" in raw.headers or "x-clickhouse-key" in raw.headers:
        return raw.headers.get("x-clickhouse-user", READER), raw.headers.get("x-clickhouse-key", "")
    if header:
        scheme, _, value = header.partition(" ")
        try:
            if scheme.lower() != "basic":
                raise ValueError(scheme)
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            raise QueryError(
                AUTHENTICATION_FAILED, "Invalid authentication: a Basic header is expected."
            ) from None
        return user or READER, password
    return raw.parameters.get("user") or READER, raw.parameters.get("password", "")


def authenticate(raw: RawRequest, users: Users) -> User:
    """The user behind the headers or the query string.

    Raises:
        QueryError: AUTHENTICATION_FAILED.
    """
    return users.authenticate(*_credentials(raw))


def _form(raw: RawRequest, body: bytes) -> dict[str, str]:
    """The fields of a multipart form; clients send long parameters that way."""
    head = b"Content-Type: " + raw.headers["content-type"].encode("latin-1") + b"\r\n\r\n"
    fields: dict[str, str] = {}
    for part in BytesParser(policy=HTTP).parsebytes(head + body).iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if part.get_filename() is not None:
            raise QueryError(NOT_IMPLEMENTED, "External tables are not supported here.")
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content.decode("utf-8", "replace")
    return fields


def _flag(parameters: Mapping[str, str], name: str) -> bool:
    return parameters.get(name, "").lower() in ("1", "true")


def _format_name(name: str) -> str:
    if not _FORMAT_NAME.fullmatch(name) or name.lower() in _PYTHON_FORMATS:
        raise QueryError(UNKNOWN_FORMAT, f"Unknown format {name[:64]!r}.")
    return name


def _encoding(raw: RawRequest, parameters: Mapping[str, str]) -> str:
    if not _flag(parameters, "enable_http_compression"):
        return ""
    offered = [
        item.partition(";")[0].strip().lower()
        for item in raw.headers.get("accept-encoding", "").split(",")
    ]
    return next((name for name in RESPONSE_ENCODINGS if name in offered), "")


def _asked_query_id(raw: RawRequest) -> str:
    return raw.parameters.get("query_id") or raw.headers.get("x-clickhouse-query-id", "")


def chosen_query_id(raw: RawRequest) -> str:
    """The id the client chose; "" without one, or when it cannot be sent back in a header."""
    chosen = _asked_query_id(raw)
    return chosen if _SAFE_HEADER.fullmatch(chosen) else ""


def query_id(raw: RawRequest) -> str:
    """The id the client chose, or a new one.

    Raises:
        QueryError: it cannot be sent back in a header.
    """
    chosen = _asked_query_id(raw)
    if chosen and not _SAFE_HEADER.fullmatch(chosen):
        raise QueryError(BAD_ARGUMENTS, "query_id must be 1 to 200 visible ASCII characters.")
    return chosen or str(uuid.uuid4())


def _body(raw: RawRequest) -> bytes:
    encoding = raw.headers.get("content-encoding", "").strip().lower()
    body = decode_body(raw.body, encoding, MAX_DECODED_BYTES)
    if _flag(raw.parameters, "decompress"):
        body = unframe_blocks(body, MAX_DECODED_BYTES)
    return body


def understand(raw: RawRequest, user: User) -> Request:
    """What ``user`` asks for in ``raw``. Decompresses the body, so it may take a while.

    Raises:
        QueryError: the body, a name or the statement cannot be understood.
    """
    body = _body(raw)
    parameters = dict(raw.parameters)
    if raw.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        parameters |= _form(raw, body)
        body = b""
    text = parameters.get("query", "").encode()
    asked = {
        name: value
        for name, value in parameters.items()
        if name not in _PARAMETERS and not name.startswith((_PARAMETER_PREFIX, *_IGNORED_PREFIXES))
    }
    wanted = parameters.get("default_format") or raw.headers.get("x-clickhouse-format", "")
    return Request(
        user=user,
        statement=split(text + b"\n" + body if text and body else text or body),
        database=parameters.get("database") or raw.headers.get("x-clickhouse-database", ""),
        output_format=_format_name(wanted or "TabSeparated"),
        settings=tuple(asked.items()),
        parameters={
            name.removeprefix(_PARAMETER_PREFIX): value
            for name, value in parameters.items()
            if name.startswith(_PARAMETER_PREFIX)
        },
        query_id=query_id(raw),
        read_only=raw.method != "POST",
        whole_answer=_flag(parameters, "wait_end_of_query"),
        framed=_flag(parameters, "compress"),
        encoding=_encoding(raw, parameters),
    )
