"""``rebuild``: restore the tables from the ledger."""

import click

from pipeline.cli.context import run_async, settings
from pipeline.cli.output import as_json, print_json, progress


@click.command()
@click.option(
    "--discard-tables",
    is_flag=True,
    help="Throw away what is left of the tables first (journals, ids, priced blocks).",
)
@click.option("--dry-run", is_flag=True, help="Only print what would be restored.")
@as_json
def rebuild(discard_tables: bool, dry_run: bool, json_wanted: bool) -> None:
    """Restore totals, policies, rates and recent event ids from the ledger.

    For a Kafka that was lost or replaced, for a new topic prefix with another number of
    partitions, and for lost or damaged tables beside a usage.events that is still there: counting
    then goes on where the ledger ends. Refuses to touch tables that are there; may be run again
    after it was interrupted. What was restored is read back and compared with the ledger.
    """
    from pipeline.ops.rebuild import rebuild as restore

    report = run_async(
        restore(settings(), discard=discard_tables, dry_run=dry_run, progress=progress)
    )
    if json_wanted:
        print_json(report.to_json())
        return
    for line in report.lines():
        click.echo(line)
    if not dry_run:
        click.echo("start worker and sink; `tallyport audit` then compares states as well")
