"""``audit``: recount and compare."""

import click

from pipeline.cli.context import run_async, settings
from pipeline.cli.output import as_json, print_json

_SHOWN_DIFFERENCES = 40


@click.command()
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds to wait until everything that is in Kafka now has been taken in.",
)
@as_json
def audit(wait_s: float, json_wanted: bool) -> int:
    """Recount the events from Kafka and compare tables, budget states and ledger.

    The recount shares no code with the worker. Where Kafka no longer holds the events, tables and
    states are compared with the ledger. Exit status 1 with the differences, and also when there
    was nothing to compare.
    """
    from pipeline.audit.run import run_audit
    from pipeline.kafka import check_kafka

    configured = settings()

    async def work() -> int:
        await check_kafka(configured)
        report = await run_audit(configured, wait_s=wait_s)
        if json_wanted:
            print_json(report.to_json())
        else:
            for line in report.lines(_SHOWN_DIFFERENCES):
                click.echo(line)
        return 0 if report.ok else 1

    return run_async(work())
