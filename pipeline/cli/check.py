"""``check``: is every setting right, and does every server that is configured answer?"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import click

from pipeline.cli.context import DOTENV, run_async, settings
from pipeline.cli.output import as_json, print_json
from pipeline.core.errors import ConfigurationError, TallyportError

if TYPE_CHECKING:
    from pipeline.settings import Settings

_WRONG = ConfigurationError.exit_status
_TCP_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465, "http": 80, "https": 443}
_ADDRESSES = {
    "kafka": "TALLYPORT_KAFKA_BOOTSTRAP",
    "clickhouse": "TALLYPORT_CLICKHOUSE_URL",
}
_API_URL, _API_KEY = "TALLYPORT_API_URL", "TALLYPORT_API_KEY"
_API_BYTES = 4 * 1024 * 1024
_API_SETTINGS = frozenset({"api_host", "api_port", "api_keys_file"})


class _Finding(NamedTuple):
    what: str
    where: str
    problem: str
    status: int = 0
    """What the command ends with because of it, as far as it goes."""

    def told(self) -> dict[str, str]:
        return {"what": self.what, "where": self.where, "problem": self.problem}


@click.command()
@as_json
def check(json_wanted: bool) -> int:
    """Validate the settings and reach every configured server; lists all mistakes at once.

    Servers that are not configured are looked for among the parts that run on the data folder. The
    API that the SDK sends to has to admit the key.
    Exit status 2 when a setting is wrong, else 1 when a server cannot be reached.
    """
    configured, mistakes = _settings_and_mistakes()
    if configured is not None:
        mistakes += _more_mistakes(configured)
    findings = [_Finding("settings", str(DOTENV), mistake, _WRONG) for mistake in mistakes]
    if configured is not None:
        findings += run_async(_reach_all(configured))
        for name in _not_there(findings, mistakes):
            click.echo(f"{name}: none configured, none running here; `up` starts one", err=True)
    status = max((finding.status for finding in findings), default=0)
    if json_wanted:
        print_json({"ok": not status, "checks": [finding.told() for finding in findings]})
    else:
        for finding in findings:
            if finding.problem and finding.what == "settings":
                click.echo(f"{finding.what}: {finding.problem}")
            else:
                click.echo(f"{finding.what} {finding.where}: {finding.problem or 'ok'}")
        if status != _WRONG:
            click.echo("settings: ok")
    return status


def _not_there(findings: list[_Finding], mistakes: list[str]) -> list[str]:
    """Servers nobody has named; where the name itself is wrong, the mistake says more."""
    looked_at = {finding.what for finding in findings}
    wrong = {mistake.split(" ")[0] for mistake in mistakes}
    return [name for name, at in _ADDRESSES.items() if name not in looked_at and at not in wrong]


def _settings_and_mistakes() -> tuple["Settings | None", list[str]]:
    """The settings, without those that are wrong where need be, and what is wrong with them."""
    from pipeline.settings import load_settings

    try:
        return settings(), []
    except ConfigurationError as error:
        mistakes = str(error).splitlines()
    wrong = {mistake.split(" ")[0] for mistake in mistakes}
    environ = {name: value for name, value in os.environ.items() if name not in wrong}
    try:
        return load_settings(environ), mistakes
    except ConfigurationError:
        return None, mistakes


def _more_mistakes(configured: "Settings") -> list[str]:
    """What no single setting shows, and the parts find out when they start or want to send; and
    what the SDK reads."""
    from pipeline.notices.destinations import Destinations
    from pipeline.web.key_ring import open_ring
    from producers.settings import read_settings

    mistakes = Destinations(configured).problems()
    try:
        open_ring(configured)
    except ConfigurationError as error:
        mistakes.append(str(error))
    _, of_sdk = read_settings(os.environ, DOTENV)
    return mistakes + [mistake for mistake in of_sdk if mistake.startswith(f"{_API_URL} ")]


async def _reach_all(configured: "Settings") -> list[_Finding]:
    from pipeline.endpoints import read_endpoints
    from producers.settings import read_settings

    running = read_endpoints(configured.data_dir)
    checks: list[Awaitable[_Finding]] = []
    if configured.kafka_bootstrap or running.kafka:
        where = configured.kafka_bootstrap or str(running.kafka)
        checks.append(_found("kafka", where, lambda: _reach_kafka(configured)))
    if configured.clickhouse_url or running.clickhouse_url:
        where = _host_of(configured.clickhouse_url or str(running.clickhouse_url))
        checks.append(_found("clickhouse", where, lambda: _reach_clickhouse(configured)))
    if smtp := configured.smtp_url:
        checks.append(_found("smtp", _host_of(smtp), lambda: _reach_mail_server(smtp)))
    if webhook := configured.webhook_url:
        checks.append(_found("webhook", _host_of(webhook), lambda: _reach_tcp(webhook)))
    if _API_SETTINGS & configured.model_fields_set and not running.api_url:
        where = f"{configured.api_host}:{configured.api_port}"
        checks.append(_found("api", where, lambda: _have_api_address(configured)))
    sdk, _ = read_settings(os.environ, DOTENV)
    if url := sdk.api_url:
        checks.append(_found(_API_URL, _host_of(url), lambda: _reach_api(url, sdk.api_key)))
    return [*await asyncio.gather(*checks)]


async def _found(what: str, where: str, reach: Callable[[], Awaitable[None]]) -> _Finding:
    try:
        await reach()
    except TallyportError as error:
        return _Finding(what, where, str(error), error.exit_status)
    return _Finding(what, where, "")


def _host_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


async def _reach_kafka(configured: "Settings") -> None:
    from pipeline.kafka import check_kafka

    await check_kafka(configured)


async def _reach_clickhouse(configured: "Settings") -> None:
    from pipeline.ledger.client import (
        LedgerDatabaseMissing,
        connect,
        ledger_address,
        ledger_errors,
    )
    from pipeline.ledger.currency import check_currency

    def reach() -> None:
        address = ledger_address(configured, write=True)
        connect(address, database="").close()
        # Without a database, or one of an older release, `migrate` is what comes next.
        with (
            suppress(LedgerDatabaseMissing),
            ledger_errors(address),
            closing(connect(address)) as client,
        ):
            check_currency(client, configured.currency)

    await asyncio.to_thread(reach)


async def _reach_mail_server(url: str) -> None:
    from pipeline.notices.mail import Mailer

    await Mailer(url, "").reach()


async def _reach_api(url: str, key: str | None) -> None:
    """What the SDK, ``emit`` and ``watch`` send to is an API, and admits the key."""
    try:
        status = await asyncio.to_thread(_whoami_status, url, key)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TallyportError(f"cannot be reached: {reason}") from error
    except ValueError:  # it would show the key
        raise TallyportError(f"{_API_KEY} has characters that no key has") from None
    if status in (401, 403):
        why = f"does not admit {_API_KEY}" if key else f"asks for a key: {_API_KEY} is not set"
        raise TallyportError(why)
    if status != 200:
        raise TallyportError(f"answers {status} at /v1/whoami: is it a tallyport API?")


def _whoami_status(url: str, key: str | None) -> int:
    """Raises ``OSError``, ``HTTPException``, and ``ValueError`` for what no header can hold."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        connection = HTTPSConnection(host, port, timeout=_TCP_TIMEOUT_S)
    else:
        connection = HTTPConnection(host, port, timeout=_TCP_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with closing(connection):
        connection.request("GET", f"{parts.path.rstrip('/')}/v1/whoami", headers=headers)
        return connection.getresponse().status


async def _have_api_address(configured: "Settings") -> None:
    """The API could listen where it is told to, or does so already."""
    from pipeline.settings import variable
    from pipeline.web.server import bind

    host, port = configured.api_host, configured.api_port
    purpose = f"{variable('api_host')}, {variable('api_port')}"
    try:
        async with asyncio.timeout(_TCP_TIMEOUT_S):
            (await asyncio.to_thread(bind, host, port, purpose)).close()
    except TimeoutError as error:
        raise TallyportError(f"{purpose}: {host} is not found in time") from error
    except ConfigurationError as error:
        if not await asyncio.to_thread(_is_api, host, port):
            raise TallyportError(str(error)) from error


def _is_api(host: str, port: int) -> bool:
    """Whether what answers there is an API of ours, with TLS or without."""
    import json
    import ssl

    nobody = ssl.create_default_context()  # nothing is told to it, so it may be anybody
    nobody.check_hostname, nobody.verify_mode = False, ssl.CERT_NONE
    for connection in (
        HTTPConnection(host, port, timeout=_TCP_TIMEOUT_S),
        HTTPSConnection(host, port, timeout=_TCP_TIMEOUT_S, context=nobody),
    ):
        with (
            closing(connection),
            suppress(OSError, HTTPException, ValueError, LookupError, TypeError),
        ):
            connection.request("GET", "/openapi.json")
            found = json.loads(connection.getresponse().read(_API_BYTES))
            return found["info"]["title"] == "tallyport"
    return False


async def _reach_tcp(url: str) -> None:
    host, _, port = _host_of(url).rpartition(":")
    try:
        async with asyncio.timeout(_TCP_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer in time"
        raise TallyportError(f"cannot be reached: {reason}") from error
