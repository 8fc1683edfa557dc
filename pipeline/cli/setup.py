"""``topics`` and ``migrate``: what a deployment stands on."""

from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import run_async, settings
from pipeline.cli.output import as_json, print_json, print_table

if TYPE_CHECKING:
    from pipeline.settings import Settings


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
