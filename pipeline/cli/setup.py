"""``topics``, ``migrate`` and ``check``: what a deployment stands on."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import click

from pipeline.cli.context import DOTENV, run_async, settings
from pipeline.cli.output import as_json, print_json, print_table
from pipeline.core.errors import ConfigurationError, TallyportError

if TYPE_CHECKING:
    from pipeline.settings import Settings

_TCP_TIMEOUT_S = 5.0
_DEFAULT_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465, "http": 80, "https": 443}


@click.command()
@click.option("--print", "print_only", is_flag=True, help="List topics, groups and ACLs; no Kafka.")
@as_json
def topics(print_only: bool, json_wanted: bool) -> None:
    """Create the topics that are missing and check the others.

    Refuses to go on where partition counts or cleanup policies are not what they must be.
    """
    if print_only:
        _print_topics(settings(), json_wanted)
        return
    from pipeline.kafka import check_kafka
    from pipeline.stream.topics import Topics, create_or_check

    configured = settings()

    async def work() -> list[str]:
        await check_kafka(configured)
        return await create_or_check(configured)

    created = run_async(work())
    names = Topics(configured.topic_prefix).names
    if json_wanted:
        print_json({"topics": names, "created": created})
        return
    for name in created:
        click.echo(f"created {name}")
    click.echo(f"{len(names)} topics are as they should be")


def _print_topics(configured: "Settings", json_wanted: bool) -> None:
    from pipeline.cli.acls import acls
    from pipeline.stream.topics import Topics

    names = Topics(configured.topic_prefix)
    rows: list[dict[str, Any]] = [
        {
            "topic": name,
            "partitions": spec.partitions(configured.partition_count),
            "replication": configured.replication_factor,
            "purpose": spec.purpose,
            "config": spec.config(configured.replication_factor),
        }
        for name, spec in names.specs.items()
    ]
    groups = [
        {"part": "worker", "group": names.worker_group},
        {"part": "sink", "group": names.sink_group},
        {"part": "api", "group": names.notices_group},
    ]
    grants = [grant._asdict() for grant in acls(names)]
    if json_wanted:
        print_json({"topics": rows, "groups": groups, "acls": grants})
        return
    shown = [
        {**row, "config": " ".join(f"{k}={v}" for k, v in row["config"].items())} for row in rows
    ]
    print_table(shown, ("topic", "partitions", "replication", "purpose", "config"))
    click.echo()
    print_table(groups, ("part", "group"))
    click.echo()
    print_table(grants, ("part", "operation", "resource", "name", "pattern"))


@click.command()
@click.option("--check", "check_only", is_flag=True, help="Report only; status 1 when any is due.")
@as_json
def migrate(check_only: bool, json_wanted: bool) -> int:
    """Apply the ledger's migrations that have not been applied yet.

    Optional ones are applied where the server allows it; the ledger works without them.
    """
    from pipeline.ledger.client import ledger_address
    from pipeline.ledger.migrate import left_out_at, migrate_address, pending_at

    address = ledger_address(settings(), write=True)
    found = [str(m) for m in (pending_at(address) if check_only else migrate_address(address))]
    left_out = [] if check_only else [str(m) for m in left_out_at(address)]
    if json_wanted:
        print_json({"pending" if check_only else "applied": found, "left_out": left_out})
    else:
        for name in found:
            click.echo(f"{'pending' if check_only else 'applied'} {name}")
        for name in left_out:
            click.echo(f"left out {name}: optional, and this user may not manage roles here")
        if not found:
            click.echo("the ledger is up to date")
    return 1 if check_only and found else 0


class _Finding(NamedTuple):
    what: str
    where: str
    problem: str


@click.command()
@as_json
def check(json_wanted: bool) -> int:
    """Validate the settings and reach every configured server; lists all mistakes at once.

    Servers that are not configured are looked for among the parts that run on the data folder.
    Exit status 2 when a setting is wrong, else 1 when a server cannot be reached.
    """
    configured, mistakes = _settings_and_mistakes()
    findings = [_Finding("settings", str(DOTENV), mistake) for mistake in mistakes]
    if configured is not None:
        findings += run_async(_reach_all(configured))
        for name in _not_there(findings):
            click.echo(f"{name}: none configured, none running here; `up` starts one", err=True)
    wrong = [finding for finding in findings if finding.problem]
    if json_wanted:
        print_json({"ok": not wrong, "checks": [finding._asdict() for finding in findings]})
    else:
        for finding in findings:
            if finding.problem and finding.what == "settings":
                click.echo(f"{finding.what}: {finding.problem}")
            else:
                click.echo(f"{finding.what} {finding.where}: {finding.problem or 'ok'}")
        if not mistakes:
            click.echo("settings: ok")
    if mistakes:
        return 2
    return 1 if wrong else 0


def _not_there(findings: list[_Finding]) -> list[str]:
    looked_at = {finding.what for finding in findings}
    return [name for name in ("kafka", "clickhouse") if name not in looked_at]


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


async def _reach_all(configured: "Settings") -> list[_Finding]:
    from pipeline.endpoints import read_endpoints

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
    findings = [*await asyncio.gather(*checks)]
    if configured.api_keys_file and not configured.api_keys_file.is_file():
        findings.append(_Finding("keys file", str(configured.api_keys_file), "no such file"))
    return findings


async def _found(what: str, where: str, reach: Callable[[], Awaitable[None]]) -> _Finding:
    try:
        await reach()
    except TallyportError as error:
        return _Finding(what, where, str(error))
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


async def _reach_tcp(url: str) -> None:
    host, _, port = _host_of(url).rpartition(":")
    try:
        async with asyncio.timeout(_TCP_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, int(port))
        writer.close()
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or "no answer in time"
        raise TallyportError(f"cannot be reached: {reason}") from error
