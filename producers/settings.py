"""What the SDK reads from the environment and from ``.env``; mistakes are warnings, not errors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "TALLYPORT_"
KAFKA_NAMES = (
    "KAFKA_BOOTSTRAP",
    "KAFKA_SECURITY_PROTOCOL",
    "KAFKA_SASL_MECHANISM",
    "KAFKA_SASL_USERNAME",
    "KAFKA_SASL_PASSWORD",
    "KAFKA_SSL_CAFILE",
    "KAFKA_SSL_CERTFILE",
    "KAFKA_SSL_KEYFILE",
)
SDK_NAMES = ("API_URL", "API_KEY", "SPOOL_DIR", "ON_STALE")
READ_NAMES = (*SDK_NAMES, *KAFKA_NAMES, "TOPIC_PREFIX", "CURRENCY", "PRICE_LEAD_S")
OTHER_NAMES = (
    "KAFKA_PORT",
    "KAFKA_HOME",
    "CLICKHOUSE_URL",
    "LEDGER_PORT",
    "API_HOST",
    "API_PORT",
    "HEALTH_PORT",
    "WORKER_CPU",
    "DATA_DIR",
    "PARTITIONS",
    "REPLICATION",
    "MAX_EVENT_AGE_DAYS",
    "DEDUPE_DAYS",
    "MAX_FUTURE_SKEW_S",
    "API_KEYS_FILE",
    "CRON_SECRET",
    "USAGE_ALERT",
    "AUDIT_HOURS",
    "SMTP_URL",
    "MAIL_FROM",
    "MAIL_TO",
    "WEBHOOK_URL",
    "WEBHOOK_SECRET",
)
"""Of the deployment's other parts, which may share the environment."""
KNOWN_NAMES = frozenset(PREFIX + name for name in (*READ_NAMES, *OTHER_NAMES))

_INJECTED_NAME = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_.*)?$|_PORT_\d+_.+$")
_INJECTED_VALUE = "tcp://"
_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_]\w*)\s*=\s*
        (?:"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>[^']*)'|(?P<bare>[^#\n]*?))
        \s*(?:\#.*)?""",
    re.VERBOSE,
)
_SERVER = re.compile(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", re.ASCII)


@dataclass(frozen=True)
class MeterSettings:
    """``kafka`` holds the settings named ``TALLYPORT_KAFKA_*``, by the rest of the name in lower
    case. With an ``api_url`` a meter goes over HTTP, else with a Kafka bootstrap to Kafka, else it
    is off. ``spool_dir`` None is a folder in the system's temporary one; without
    ``keeps_on_disk`` unsent events wait in memory."""

    api_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    kafka: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    topic_prefix: str = ""
    currency: str = "USD"
    price_lead_s: int = 60
    spool_dir: Path | None = None
    on_stale: str = "allow"
    keeps_on_disk: bool = True

    @property
    def transport(self) -> str:
        """``http``, ``kafka`` or ``off``."""
        if self.api_url:
            return "http"
        return "kafka" if self.kafka.get("bootstrap") else "off"

    @property
    def destination(self) -> str:
        """What events are for: a spool is sent to no other deployment than it was filled for."""
        if self.api_url:
            return f"http {self.api_url}"
        return f"kafka {self.kafka.get('bootstrap')} {self.topic_prefix}"


def read_settings(
    environ: Mapping[str, str], dotenv: Path | None = None
) -> tuple[MeterSettings, list[str]]:
    """The settings, and every mistake in them as one line each. A wrong value counts as not set,
    but with a wrong address nothing is sent anywhere."""
    mistakes: list[str] = []
    given = {**_read_dotenv(dotenv, mistakes), **environ}
    given = {name: value for name, value in given.items() if _is_ours(name, value)}
    mistakes += [_unknown(name) for name in sorted(given.keys() - KNOWN_NAMES)]
    values = {name: given.get(PREFIX + name) or "" for name in READ_NAMES}
    wrong = list(_mistakes(values))
    for name, rule in wrong:
        mistakes.append(f"{PREFIX}{name} {rule}")
    is_lost = any(name in ("API_URL", "KAFKA_BOOTSTRAP") for name, _ in wrong)
    for name, _ in wrong:
        values[name] = ""
    kafka = {name.removeprefix("KAFKA_").lower(): values[name] for name in KAFKA_NAMES}
    lead_s = values["PRICE_LEAD_S"]
    settings = MeterSettings(
        api_url=None if is_lost else values["API_URL"].rstrip("/") or None,
        api_key=values["API_KEY"] or None,
        kafka={} if is_lost else {name: value for name, value in kafka.items() if value},
        topic_prefix=values["TOPIC_PREFIX"],
        currency=values["CURRENCY"] or "USD",
        price_lead_s=int(lead_s) if lead_s else 60,
        spool_dir=Path(values["SPOOL_DIR"]) if values["SPOOL_DIR"] else None,
        on_stale=values["ON_STALE"] or "allow",
    )
    return settings, mistakes


def _mistakes(values: Mapping[str, str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if values["API_URL"] and not _is_url(values["API_URL"]):
        found.append(("API_URL", "must be a URL starting with http:// or https://"))
    servers = [server.strip() for server in values["KAFKA_BOOTSTRAP"].split(",")]
    if values["KAFKA_BOOTSTRAP"] and not all(map(_SERVER.fullmatch, servers)):
        found.append(("KAFKA_BOOTSTRAP", "must be HOST:PORT, or several separated by commas"))
    if values["ON_STALE"] not in ("", "allow", "deny"):
        found.append(("ON_STALE", "must be allow or deny"))
    if not re.fullmatch(r"([A-Z]{3})?", values["CURRENCY"], re.ASCII):
        found.append(("CURRENCY", "must be three capital letters, like USD (ISO 4217)"))
    if not re.fullmatch(r"\d{0,5}", values["PRICE_LEAD_S"], re.ASCII):
        found.append(("PRICE_LEAD_S", "must be a whole number of seconds"))
    return found


def _is_url(text: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_ours(name: str, value: str) -> bool:
    if not name.startswith(PREFIX):
        return False
    return not (value.startswith(_INJECTED_VALUE) or _INJECTED_NAME.search(name))


def _unknown(name: str) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, sorted(KNOWN_NAMES), n=1, cutoff=0.0)[0]
    return f"{name} is not a setting; did you mean {nearest}?"


def _read_dotenv(path: Path | None, mistakes: list[str]) -> dict[str, str]:
    """``NAME=value`` lines; of a service's file only lines with our names are looked at."""
    try:
        text = path.read_text("utf-8-sig") if path is not None and path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        mistakes.append(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'no UTF-8'}")
        return {}
    values: dict[str, str] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is not None:
            quoted = found["double"]
            plain = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else found["single"]
            values[found["name"]] = found["bare"] if plain is None else plain
    return values
