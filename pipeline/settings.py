"""The settings of a deployment: read once from the environment and ``.env``, then frozen."""

import difflib
import io
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import SplitResult, urlsplit

from dotenv.parser import parse_stream
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pipeline.core.errors import ConfigurationError
from pipeline.core.webhook_signature import webhook_key

PREFIX = "TALLYPORT_"
SDK_NAMES = frozenset({"API_URL", "API_KEY", "SPOOL_DIR", "ON_STALE"})
"""Names that only the client SDK reads; here they are known and otherwise left alone."""

_INJECTED_NAME = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_.*)?$|_PORT_\d+_.+$")
_INJECTED_VALUE = "tcp://"
_SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def _whole(low: int, high: int) -> BeforeValidator:
    def parse(value: Any) -> int | None:
        if value is None:
            return None
        text = str(value)
        if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise ValueError(f"must be a whole number from {low} to {high}")
        if not low <= int(text) <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return int(text)

    return BeforeValidator(parse)


def _one_of(allowed: tuple[str, ...]) -> BeforeValidator:
    def parse(value: str | None) -> str | None:
        if value is not None and value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return value

    return BeforeValidator(parse)


def _matching(pattern: str, rule: str) -> BeforeValidator:
    compiled = re.compile(pattern, re.ASCII)

    def parse(value: str | None) -> str | None:
        if value is not None and not compiled.fullmatch(value):
            raise ValueError(rule)
        return value

    return BeforeValidator(parse)


def _split_url(value: str, schemes: tuple[str, ...]) -> SplitResult:
    rule = (
        f"must be a URL starting with {' or '.join(f'{s}://' for s in schemes)} and naming a host"
    )
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{rule}, and a port from 1 to 65535") from error
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(rule)
    if port == 0:
        raise ValueError(f"{rule}, and a port from 1 to 65535")
    return parts


def _url(*schemes: str) -> BeforeValidator:
    def parse(value: str | None) -> str | None:
        if value is not None:
            _split_url(value, schemes)
        return value

    return BeforeValidator(parse)


def _clickhouse_url(value: str | None) -> str | None:
    if value is not None:
        parts = _split_url(value, ("http", "https"))
        if parts.query or parts.fragment or not re.fullmatch(r"(/\w*)?", parts.path, re.ASCII):
            raise ValueError("must look like http://user:password@host:8123/database")
    return value


def _bootstrap(value: str | None) -> str | None:
    if value is None:
        return None
    servers = [server.strip() for server in value.split(",")]
    for server in servers:
        found = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", server, re.ASCII)
        if not found or not 1 <= int(found[2]) <= 65535:
            raise ValueError("must be HOST:PORT, or several of them separated by commas")
    return ",".join(servers)


def _file(value: Any) -> str | None:
    if value is not None and not Path(str(value)).is_file():
        raise ValueError(f"no file at {value}")
    return value if value is None else str(value)


def _folder(value: Any) -> Any:
    if value is not None and not Path(str(value)).is_dir():
        raise ValueError(f"no folder at {value}")
    return value


def _amount(value: Any) -> Decimal:
    text = str(value)
    if not re.fullmatch(r"\d{1,15}(\.\d{1,9})?", text, re.ASCII):
        raise ValueError("must be an amount like 5 or 0.50, with at most 9 decimals; 0 is off")
    return Decimal(text)


def _mail_address(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[^@\s,]+@[^@\s,]+", value):
        raise ValueError("must be one mail address")
    return value


def _mail_addresses(value: str | None) -> str | None:
    if value is not None:
        for address in value.split(","):
            if not re.fullmatch(r"[^@\s]+@[^@\s]+", address.strip()):
                raise ValueError("must be mail addresses separated by commas")
    return value


def _webhook_secret(value: str | None) -> str | None:
    if value is not None:
        webhook_key(value)
    return value


_Port = Annotated[int, _whole(0, 65535)]
_OptionalFile = Annotated[str | None, BeforeValidator(_file)]
_Secret = Annotated[str | None, Field(repr=False)]


class Settings(BaseModel):
    """Every setting of worker, sink, API and the embedded servers, under the contract's names.

    ``None`` means not set. Units stand in the names: ``_days``, ``_s`` (seconds); ``usage_alert``
    is an amount in ``currency``. Secrets do not appear in ``repr``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kafka_bootstrap: Annotated[str | None, BeforeValidator(_bootstrap)] = None
    kafka_security_protocol: Annotated[str | None, _one_of(_SECURITY_PROTOCOLS)] = None
    kafka_sasl_mechanism: Annotated[str | None, _one_of(_SASL_MECHANISMS)] = None
    kafka_sasl_username: str | None = None
    kafka_sasl_password: _Secret = None
    kafka_ssl_cafile: _OptionalFile = None
    kafka_ssl_certfile: _OptionalFile = None
    kafka_ssl_keyfile: _OptionalFile = None
    kafka_port: _Port = 9092
    kafka_home: Annotated[Path | None, BeforeValidator(_folder)] = None
    clickhouse_url: Annotated[str | None, BeforeValidator(_clickhouse_url), Field(repr=False)] = (
        None
    )
    ledger_port: _Port = 8123
    api_host: Annotated[str, _matching(r"[\w.:-]+", "must be a host name or address")] = "127.0.0.1"
    api_port: _Port = 8080
    health_port: Annotated[int | None, _whole(0, 65535)] = None
    worker_cpu: Annotated[int | None, _whole(0, 65535)] = None
    data_dir: Path = Path(".tallyport")
    topic_prefix: Annotated[
        str, _matching(r"[\w.-]{0,200}", "may hold letters, digits, '.', '_' and '-', at most 200")
    ] = ""
    partitions: Annotated[int | None, _whole(1, 10_000)] = None
    replication: Annotated[int | None, _whole(1, 100)] = None
    currency: Annotated[
        str, _matching(r"[A-Z]{3}", "must be three capital letters, like USD (ISO 4217)")
    ] = "USD"
    max_event_age_days: Annotated[int, _whole(1, 3_650)] = 7
    dedupe_days: Annotated[int, _whole(1, 3_660)] = 9
    max_future_skew_s: Annotated[int, _whole(0, 86_400)] = 300
    price_lead_s: Annotated[int, _whole(0, 86_400)] = 60
    api_keys_file: Path | None = None
    cron_secret: _Secret = None
    usage_alert: Annotated[Decimal, BeforeValidator(_amount)] = Decimal(5)
    smtp_url: Annotated[str | None, _url("smtp", "smtp+starttls", "smtps"), Field(repr=False)] = (
        None
    )
    mail_from: Annotated[str | None, BeforeValidator(_mail_address)] = None
    mail_to: Annotated[str | None, BeforeValidator(_mail_addresses)] = None
    webhook_url: Annotated[str | None, _url("http", "https"), Field(repr=False)] = None
    webhook_secret: Annotated[str | None, BeforeValidator(_webhook_secret), Field(repr=False)] = (
        None
    )
    audit_hours: Annotated[int, _whole(0, 720)] = 24

    @property
    def embedded_kafka(self) -> bool:
        """Whether Kafka is the one that ``up`` starts here."""
        return self.kafka_bootstrap is None

    @property
    def embedded_ledger(self) -> bool:
        """Whether ClickHouse is the one that ``up`` or ``ledger-server`` starts here."""
        return self.clickhouse_url is None

    @property
    def partition_count(self) -> int:
        """Partitions of every partitioned topic: the setting, else 4 embedded and 12 otherwise."""
        return self.partitions or (4 if self.embedded_kafka else 12)

    @property
    def replication_factor(self) -> int:
        """Copies of every topic: the setting, else 1 embedded and 3 otherwise."""
        return self.replication or (1 if self.embedded_kafka else 3)

    def environ(self) -> dict[str, str]:
        """The settings that differ from their default as variables, for a child process."""
        changed = self.model_dump(exclude_defaults=True)
        return {variable(name): str(value) for name, value in changed.items()}

    def replaced(self, **changes: Any) -> Self:
        """A copy with some settings changed, checked like the original."""
        return type(self).model_validate({**self.model_dump(), **changes})

    def on_its_own(self, data_dir: Path) -> Self:
        """Those of an embedded deployment beside any other: free ports, no prefix, its own data."""
        return self.replaced(
            data_dir=data_dir,
            kafka_bootstrap=None,
            clickhouse_url=None,
            kafka_port=0,
            ledger_port=0,
            api_port=0,
            health_port=None,
            topic_prefix="",
        )


def variable(name: str) -> str:
    """The environment variable of a setting's attribute name."""
    return PREFIX + name.upper()


def known_names() -> frozenset[str]:
    """Every ``TALLYPORT_*`` variable that means something, the SDK's included."""
    return frozenset(map(variable, [*Settings.model_fields, *SDK_NAMES]))


def load_settings(environ: Mapping[str, str], dotenv: Path | None = None) -> Settings:
    """Read the settings; a variable in ``environ`` beats the same one in the file ``dotenv``.

    A file that does not exist counts as empty, an empty value as not set, and variables that
    Kubernetes injects for services are ignored. Raises ``ConfigurationError`` whose message
    lists every mistake, one per line.
    """
    mistakes: list[str] = []
    given = {**_read_dotenv(dotenv, mistakes), **environ}
    given = {name: value for name, value in given.items() if _is_ours(name, value)}
    mistakes += [_unknown(name) for name in sorted(given.keys() - known_names())]
    values = {name: given[variable(name)] for name in Settings.model_fields if _has(given, name)}
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            rule = detail["msg"].removeprefix("Value error, ")
            mistakes.append(f"{variable(str(detail['loc'][0]))} {rule}")
    mistakes += _broken_rules(given)
    if mistakes or settings is None:
        raise ConfigurationError("\n".join(mistakes))
    return settings


def _has(given: Mapping[str, str], name: str) -> bool:
    return bool(given.get(variable(name)))


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    return not (value.startswith(_INJECTED_VALUE) or _INJECTED_NAME.search(name))


def _unknown(name: str) -> str:
    nearest = difflib.get_close_matches(name, sorted(known_names()), n=1, cutoff=0.0)[0]
    return f"{name} is not a setting; did you mean {nearest}?"


def _read_dotenv(path: Path | None, mistakes: list[str]) -> dict[str, str]:
    if path is None or not path.is_file():
        return {}
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'no UTF-8'}")
        return {}
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            mistakes.append(f"{path} line {binding.original.line} is not NAME=value")
        elif binding.key is not None:
            values[binding.key] = binding.value or ""
    return values


def _broken_rules(given: Mapping[str, str]) -> list[str]:
    """Mistakes that lie between settings; single values are judged by the fields themselves."""
    return [message for rule in _RULES for message in rule(given)]


def _whole_or(given: Mapping[str, str], name: str) -> int | None:
    default = Settings.model_fields[name].default
    text = given.get(variable(name)) or str(default)
    return int(text) if re.fullmatch(r"\d{1,18}", text, re.ASCII) else None


def _dedupe_rule(given: Mapping[str, str]) -> list[str]:
    age_days = _whole_or(given, "max_event_age_days")
    dedupe_days = _whole_or(given, "dedupe_days")
    if age_days is None or dedupe_days is None or dedupe_days >= age_days + 2:
        return []
    return [
        f"{variable('dedupe_days')} must be at least {age_days + 2}: "
        f"two more than {variable('max_event_age_days')}"
    ]


def _sasl_rule(given: Mapping[str, str]) -> list[str]:
    protocol = given.get(variable("kafka_security_protocol")) or "PLAINTEXT"
    names = ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password")
    if protocol.startswith("SASL_"):
        return [
            f"{variable(name)} is needed with {variable('kafka_security_protocol')}={protocol}"
            for name in names
            if not _has(given, name)
        ]
    return [
        f"{variable(name)} needs {variable('kafka_security_protocol')} SASL_SSL or SASL_PLAINTEXT"
        for name in names
        if _has(given, name)
    ]


def _tls_rule(given: Mapping[str, str]) -> list[str]:
    protocol = given.get(variable("kafka_security_protocol")) or "PLAINTEXT"
    names = ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile")
    if not protocol.endswith("SSL"):
        return [
            f"{variable(name)} needs {variable('kafka_security_protocol')} SSL or SASL_SSL"
            for name in names
            if _has(given, name)
        ]
    if _has(given, "kafka_ssl_keyfile") and not _has(given, "kafka_ssl_certfile"):
        return [f"{variable('kafka_ssl_keyfile')} needs {variable('kafka_ssl_certfile')}"]
    return []


def _on_stale_rule(given: Mapping[str, str]) -> list[str]:
    name = f"{PREFIX}ON_STALE"
    return (
        [] if given.get(name) in (None, "", "allow", "deny") else [f"{name} must be allow or deny"]
    )


_RULES: tuple[Callable[[Mapping[str, str]], list[str]], ...] = (
    _dedupe_rule,
    _sasl_rule,
    _tls_rule,
    _on_stale_rule,
)
