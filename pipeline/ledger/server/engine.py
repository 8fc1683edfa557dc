"""Runs statements on chDB: a fresh handle for each, under that user's settings and rights.

A handle costs a fraction of a millisecond and has its own settings, so nothing leaks from one
request into the next. Handles of one folder run side by side.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import chdb

from pipeline.ledger.server.access import LEDGER_DATABASE, Judge, Node, load_tree, not_a_read
from pipeline.ledger.server.errors import (
    BAD_ARGUMENTS,
    INTO_OUTFILE_NOT_ALLOWED,
    NOT_ENOUGH_SPACE,
    SYNTAX_ERROR,
    QueryError,
    from_engine,
)
from pipeline.ledger.server.limits import SINK_DEFAULTS, reader_settings, set_statement
from pipeline.ledger.server.port_rows import port_settings
from pipeline.ledger.server.protocol import Request
from pipeline.ledger.server.statement import MAX_READ_BYTES, Statement

TIME_ZONE: Final = "UTC"
_MAX_FILTERS_BYTES: Final = 64 << 20
# Formats whose blocks, put one after another, are again a valid stream.
_STREAMED: Final = frozenset(
    {"Native", "RowBinary", "TabSeparated", "TSV", "TabSeparatedRaw", "TSVRaw", "CSV"}
    | {"JSONEachRow", "JSONCompactEachRow", "JSONStringsEachRow"}
)
_TAIL_CHARACTERS: Final = 1000
_FORMAT = re.compile(r"\bFORMAT\s+(\w+)\s*(?:SETTINGS\b[^']*)?;?\s*$", re.IGNORECASE)
_FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(\w*)", re.DOTALL)
_SELECTS: Final = frozenset({"SELECT", "WITH", "FROM"})
_PARSE_SCOPE = re.compile(r": In scope SELECT (?:parseQueryToJSON|formatQuery\w+)\(.*", re.DOTALL)
_NO_TREE: Final = "does not support JSON serialization"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: whole in ``body``, or in ``parts`` while it is being computed."""

    output_format: str
    time_zone: str
    summary: Mapping[str, int]
    body: bytes = b""
    parts: Generator[bytes, None, None] | None = None


def _escaped(text: str) -> str:
    """``text`` as the value of a query parameter, which is read as tab-separated."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _summary(started: float, **counts: int) -> dict[str, int]:
    names = ("read_rows", "read_bytes", "written_rows", "written_bytes", "total_rows_to_read")
    summary = dict.fromkeys((*names, "result_rows", "result_bytes"), 0)
    return summary | counts | {"elapsed_ns": int((time.monotonic() - started) * 1e9)}


@contextmanager
def _memory_file(data: bytes) -> Generator[str]:
    """The path at which this process finds ``data``. Raises QueryError where there is no room."""
    try:
        with open(_memory_descriptor(), "w+b", buffering=0) as file:
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            file.seek(0)
            yield f"/dev/fd/{file.fileno()}"
    except OSError as error:
        raise QueryError(NOT_ENOUGH_SPACE, f"No memory for the data: {error}.") from error


def _memory_descriptor() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("insert", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())


class Handle:
    """One chDB connection with settings of its own; errors are ClickHouse's."""

    def __init__(self, path: str, database: str) -> None:
        self._connection = chdb.connect(path)
        try:
            name = database.replace("\\", "\\\\").replace("`", "\\`")
            self.run(f"USE `{name}`")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the connection; what it was running is cancelled."""
        self._connection.close()

    def run(
        self,
        text: str,
        output_format: str = "TSVRaw",
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        """The engine's result of one statement. Raises QueryError."""
        try:
            return self._connection.query(text, output_format, params=dict(parameters or {}))
        except RuntimeError as error:
            raise from_engine(str(error)) from None

    def value(self, text: str, parameters: Mapping[str, str] | None = None) -> str:
        """The one value a query gives, as text. Raises QueryError."""
        return bytes(self.run(text, parameters=parameters).bytes()).decode().removesuffix("\n")

    def has_table(self, name: str) -> bool:
        """Whether the ledger has a table or view of that name. Raises QueryError."""
        found = (
            "SELECT count() FROM system.tables WHERE database = {d:String} AND name = {n:String}"
        )
        return self.value(found, {"d": LEDGER_DATABASE, "n": _escaped(name)}) != "0"

    def stream(
        self, text: str, output_format: str, parameters: Mapping[str, str]
    ) -> Generator[bytes, None, None]:
        """The parts of a result as they are computed. Raises QueryError."""
        try:
            with self._connection.send_query(text, output_format, dict(parameters)) as result:
                for part in result:
                    yield bytes(part.bytes())
        except RuntimeError as error:
            raise from_engine(str(error)) from None

    def insert(self, statement: Statement) -> tuple[int, int]:
        """Inserts its data; (rows, bytes) written once they are on disk. Raises QueryError.

        The engine reads the data from a file in memory. Its streaming insert would do without one,
        but says that all is well also where no part could be written, as on a full disk.
        """
        with _memory_file(statement.data) as path:
            source = f"FROM INFILE '{path}' COMPRESSION 'none'"
            result = self.run(
                f"{statement.text} {source} {statement.settings} FORMAT {statement.insert_format}"
            )
        return result.rows_written(), result.bytes_written()

    def parse(self, text: str) -> str:
        """The parser's tree of one statement, as JSON; "" for a kind it gives no tree of.

        Raises:
            QueryError: the text is not exactly one statement.
        """
        return self._parsed("parseQueryToJSON", text)

    def canonical(self, text: str) -> str:
        """The statement as the parser writes it: one line, no comments. Raises QueryError."""
        return self._parsed("formatQuerySingleLine", text)

    def _parsed(self, function: str, text: str) -> str:
        try:
            return self.value(f"SELECT {function}({{text:String}})", {"text": _escaped(text)})
        except QueryError as error:
            words = str(error).partition("DB::Exception: ")[2]
            if error.code == BAD_ARGUMENTS and _NO_TREE in words:
                return ""
            words = _PARSE_SCOPE.sub("", words).removesuffix(f" ({error.name})").strip()
            raise QueryError(error.code, words, error.name) from None


class Engine:
    """The embedded ClickHouse of one folder. Safe to use from several threads.

    Only one may exist per folder, and no process may be forked once it does.
    """

    def __init__(self, folder: Path) -> None:
        self._path = str(folder)
        self._keeper = Handle(self._path, "default")
        self._keeper.run(f"CREATE DATABASE IF NOT EXISTS {LEDGER_DATABASE}")
        self.version = self._keeper.value("SELECT version()")

    def close(self) -> None:
        """Shuts the engine down once no other handle is open."""
        self._keeper.close()

    def execute(self, request: Request) -> Reply:
        """Runs one request to its end, or to the first part of a streamed answer.

        Raises:
            QueryError: it is refused, or the engine failed it.
        """
        database = request.database or LEDGER_DATABASE
        if not request.user.may_write and database == "default":
            database = LEDGER_DATABASE
        handle = Handle(self._path, database)
        try:
            reply = self._answer(handle, request, database)
        except BaseException:
            handle.close()
            raise
        if reply.parts is None:
            handle.close()
        return reply

    def _answer(self, handle: Handle, request: Request, database: str) -> Reply:
        started = time.monotonic()
        if not request.statement.text.strip():
            raise QueryError(SYNTAX_ERROR, "Syntax error: Empty query.")
        if request.user.may_write:
            _prepare_sink(handle, request)
        else:
            _prepare_reader(handle, request, database)
        if request.statement.insert_format is not None:
            return _insert(handle, request, request.statement, started)
        return _query(handle, request, started)


def _prepare_reader(handle: Handle, request: Request, database: str) -> None:
    """Refuses what is not a permitted read, then locks the handle. Raises QueryError."""
    if request.statement.insert_format is not None:
        raise not_a_read()
    if len(request.statement.text) > MAX_READ_BYTES:
        raise QueryError(SYNTAX_ERROR, f"Syntax error: Max query size exceeded: {MAX_READ_BYTES}.")
    judge = Judge(request.user, database, request.parameters, handle.has_table)
    try:
        tree = handle.parse(request.statement.text)
    except QueryError as error:
        raise (not_a_read() if error.code == BAD_ARGUMENTS else error) from None
    if tree:
        judge.judge(load_tree(tree))
    else:
        judge.judge_canonical(handle.canonical(request.statement.text), handle.parse)
    settings = reader_settings([*request.settings, *judge.asked_settings])
    if request.user.ports:
        handle.run(f"SET max_query_size = {_MAX_FILTERS_BYTES}")
        settings |= port_settings(LEDGER_DATABASE, request.user.ports)
        settings["max_query_size"] = str(MAX_READ_BYTES)
    handle.run(set_statement(settings))
    handle.run("SET readonly = 1")


def _prepare_sink(handle: Handle, request: Request) -> None:
    """Refuses several statements and this machine's files, then applies the settings."""
    if request.statement.insert_format is None:
        tree = handle.parse(request.statement.text)
        if tree and _uses_files(load_tree(tree)):
            raise QueryError(INTO_OUTFILE_NOT_ALLOWED, "OUTFILE and INFILE are not allowed.")
    settings = SINK_DEFAULTS | dict(request.settings)
    if request.statement.insert_format is not None:
        settings |= {f"param_{name}": value for name, value in request.parameters.items()}
    handle.run(set_statement(settings))
    if request.read_only:
        if request.statement.insert_format is not None:
            raise not_a_read()
        handle.run("SET readonly = 2")


def _uses_files(tree: Node) -> bool:
    inner = tree.get("query") or tree.get("select")
    if isinstance(inner, dict) and _uses_files(inner):
        return True
    return "out_file" in tree or "infile" in tree


def _insert(handle: Handle, request: Request, statement: Statement, started: float) -> Reply:
    rows, size = handle.insert(statement)
    return Reply(
        output_format=request.output_format,
        time_zone=_time_zone(request),
        summary=_summary(started, written_rows=rows, written_bytes=size, result_rows=rows),
    )


def _query(handle: Handle, request: Request, started: float) -> Reply:
    text = request.statement.text
    named = _FORMAT.search(text, max(0, len(text) - _TAIL_CHARACTERS))
    output_format = named.group(1) if named is not None else request.output_format
    first_word = _FIRST_WORD.match(text)
    selects = first_word is not None and first_word.group(1).upper() in _SELECTS
    if selects and not request.whole_answer and output_format in _STREAMED:
        return Reply(
            output_format=output_format,
            time_zone=_time_zone(request),
            summary=_summary(started),
            parts=_begun(handle, handle.stream(text, request.output_format, request.parameters)),
        )
    result = handle.run(text, request.output_format, request.parameters)
    body = bytes(result.bytes())
    return Reply(
        output_format=output_format,
        time_zone=_time_zone(request),
        body=body,
        summary=_summary(
            started,
            read_rows=0 if request.user.ports else result.storage_rows_read(),
            read_bytes=0 if request.user.ports else result.storage_bytes_read(),
            written_rows=result.rows_written(),
            written_bytes=result.bytes_written(),
            result_rows=result.rows_read(),
            result_bytes=len(body),
        ),
    )


def _begun(handle: Handle, parts: Iterator[bytes]) -> Generator[bytes, None, None]:
    """``parts`` with the first one already computed, so that early errors get their status."""
    first = next(parts, b"")

    def all_parts() -> Generator[bytes, None, None]:
        try:
            yield first
            yield from parts
        finally:
            _close_all(parts, handle)

    return all_parts()


def _close_all(parts: Any, handle: Handle) -> None:
    closers: tuple[Callable[[], None], ...] = (parts.close, handle.close)
    for close in closers:
        close()


def _time_zone(request: Request) -> str:
    return dict(request.settings).get("session_timezone") or TIME_ZONE
