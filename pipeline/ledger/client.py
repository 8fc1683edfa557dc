"""The one way to reach the ledger: where it is, as whom, and what went wrong in one line."""

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import unquote, urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError, OperationalError
from urllib3.exceptions import HTTPError

from pipeline.core.errors import ConfigurationError, TallyportError
from pipeline.endpoints import read_endpoints
from pipeline.settings import Settings

DEFAULT_DATABASE = "tallyport"
READER_USER = "default"
EMBEDDED_WRITER = "tallyport_sink"
"""Who may write to the embedded server; its password is in the data folder's endpoints."""

CONNECT_TIMEOUT_S = 5
QUERY_TIMEOUT_S = 60

READ_LIMITS = {"readonly": 2, "max_execution_time": QUERY_TIMEOUT_S, "max_memory_usage": 1 << 30}
"""What holds for every statement of a reader, also where its user might do more."""

# Errors of the driver reach the caller as exceptions; its own log lines only repeat them.
logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)

_UNKNOWN_TABLE = 60
_UNKNOWN_DATABASE = 81
_UNKNOWN_USER = 192
_WRONG_PASSWORD = 193
_REQUIRED_PASSWORD = 194
_ACCESS_DENIED = 497
_AUTHENTICATION_FAILED = 516
_LOGIN_CODES = {_UNKNOWN_USER, _WRONG_PASSWORD, _REQUIRED_PASSWORD, _AUTHENTICATION_FAILED}
_DEFAULT_PORTS = {"http": 8123, "https": 8443}


class LedgerError(TallyportError):
    """ClickHouse refused or failed a statement; ``code`` is its error code, if it gave one."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


class LedgerUnreachable(LedgerError):
    """Nothing answered at the ledger's address, or not in time."""


class LedgerLoginRefused(LedgerError):
    """The user name or password is wrong, or the user may not do this."""


class LedgerDatabaseMissing(LedgerError):
    """The database or a table is not there; ``tallyport migrate`` creates them."""


@dataclass(frozen=True)
class LedgerAddress:
    """Where the ledger is and who asks. ``password`` never shows in messages."""

    host: str
    port: int
    secure: bool
    user: str
    database: str
    password: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The address without credentials, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}"


def ledger_address(settings: Settings, *, write: bool = False) -> LedgerAddress:
    """The configured ledger, else the embedded one that runs on this data folder.

    A configured address carries its own user. The embedded server has two: ``default``, who may
    only read, and the sink's, who may write. Raises ``ConfigurationError`` when there is neither.
    """
    if settings.clickhouse_url is not None:
        return parse_address(settings.clickhouse_url)
    return _running_address(settings, write=write)


def parse_address(url: str) -> LedgerAddress:
    """The parts of ``http(s)://user:password@host:port/database``."""
    parts = urlsplit(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise ConfigurationError(
            "TALLYPORT_CLICKHOUSE_URL: must look like http://user:password@host:8123/database"
        )
    return LedgerAddress(
        host=parts.hostname,
        port=parts.port or _DEFAULT_PORTS[parts.scheme],
        secure=parts.scheme == "https",
        user=unquote(parts.username or READER_USER),
        password=unquote(parts.password or ""),
        database=unquote(parts.path.strip("/")) or DEFAULT_DATABASE,
    )


def connect(
    address: LedgerAddress,
    *,
    database: str | None = None,
    query_timeout_s: int = QUERY_TIMEOUT_S,
    limits: Mapping[str, int] | None = None,
) -> Client:
    """A client whose statements run in ``database`` (the address's own one by default).

    ``limits`` are settings of every statement, but for those that the server lets this user not
    change: there its own hold. One client may be used by several threads. Raises
    ``LedgerUnreachable``, ``LedgerLoginRefused``, ``LedgerDatabaseMissing`` or ``LedgerError``.
    """
    with ledger_errors(address):
        client = clickhouse_connect.get_client(
            interface="https" if address.secure else "http",
            host=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            database=address.database if database is None else database,
            connect_timeout=CONNECT_TIMEOUT_S,
            send_receive_timeout=query_timeout_s,
            autogenerate_session_id=False,
            client_name="tallyport",
            tz_mode="aware",
        )
        for name, value in (limits or {}).items():
            known = client.server_settings.get(name)
            if known is None or not known.readonly:
                client.set_client_setting(name, value)
    return client


def open_reader(settings: Settings) -> Client:
    """A client that only reads, bounded in time and memory, whatever its user may do."""
    return connect(ledger_address(settings), limits=READ_LIMITS)


def open_writer(settings: Settings) -> Client:
    """A client that may write: the sink's and the migrations' one."""
    return connect(ledger_address(settings, write=True))


@contextmanager
def ledger_reader(settings: Settings) -> Generator[Client]:
    """The same, closed at the end; what fails inside becomes ``LedgerError``."""
    address = ledger_address(settings)
    client = open_reader(settings)
    try:
        with ledger_errors(address):
            yield client
    finally:
        client.close()


@contextmanager
def ledger_errors(address: LedgerAddress) -> Generator[None]:
    """Turns the driver's exceptions into ``LedgerError`` with one readable line."""
    try:
        yield
    except ClickHouseError as error:
        raise _explained(error, address) from error
    except (HTTPError, OSError) as error:
        raise LedgerUnreachable(f"ClickHouse at {address.url} does not answer: {error}") from error


def _explained(error: ClickHouseError, address: LedgerAddress) -> LedgerError:
    code: int | None = getattr(error, "code", None)
    if code in _LOGIN_CODES:
        return LedgerLoginRefused(
            f"ClickHouse at {address.url} refused user {address.user!r}: wrong name or password",
            code,
        )
    if code == _ACCESS_DENIED:
        return LedgerLoginRefused(
            f"ClickHouse at {address.url}: user {address.user!r} may not do this: "
            f"{server_words(error)}",
            code,
        )
    if code in (_UNKNOWN_DATABASE, _UNKNOWN_TABLE):
        return LedgerDatabaseMissing(
            f"ClickHouse at {address.url}: database {address.database!r} lacks what is asked for; "
            f"run `tallyport migrate` ({server_words(error)})",
            code,
        )
    if code is None and isinstance(error, OperationalError):
        return LedgerUnreachable(
            f"ClickHouse at {address.url} does not answer; is it running, and is the address right?"
        )
    return LedgerError(f"ClickHouse at {address.url}: {server_words(error)}", code)


def server_words(error: ClickHouseError) -> str:
    """The server's own words, without the driver's wrapping, cut to one line."""
    text = " ".join(str(error).split())
    _, found, words = text.partition("DB::Exception: ")
    text = words if found else text
    text = text.partition(" (for url ")[0].partition(" (version ")[0]
    return text if len(text) <= 300 else text[:297] + "..."


def _running_address(settings: Settings, *, write: bool) -> LedgerAddress:
    found = read_endpoints(settings.data_dir)
    if found.clickhouse_url is None:
        left = "what ran there has ended" if "clickhouse" in found.stale else "none runs there"
        raise ConfigurationError(
            "no ClickHouse address: TALLYPORT_CLICKHOUSE_URL is not set, and in the data folder "
            f"{settings.data_dir} {left}; start `tallyport up`, or set TALLYPORT_CLICKHOUSE_URL "
            "or TALLYPORT_DATA_DIR"
        )
    reader = parse_address(found.clickhouse_url)
    if not write:
        return reader
    if found.sink_password is None:
        raise ConfigurationError(
            f"the endpoints in {settings.data_dir} lack the sink's password; restart the ledger"
        )
    return replace(reader, user=EMBEDDED_WRITER, password=found.sink_password)
