"""``export``: months of the ledger to Parquet files."""

from pathlib import Path

import click

from pipeline.cli.context import settings
from pipeline.cli.output import as_json, print_json, progress


@click.command()
@click.argument("months", nargs=-1, required=True, metavar="MONTH...")
@click.option(
    "--to",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Folder for the files; default: the current one.",
)
@click.option(
    "--drop",
    is_flag=True,
    help="Then drop the month from the ledger; refused while anything needs it.",
)
@as_json
def export(months: tuple[str, ...], folder: Path, drop: bool, json_wanted: bool) -> None:
    """Write months of usage_ledger, like 2026-08, to Parquet files.

    Each file usage_ledger-MONTH.parquet is read back and compared before it gets its name. With
    --drop the month then leaves the ledger whole, once what leaves is the same as the file, entry
    by entry; the ledger remembers what left, so the audit does not take it for lost. A month is
    needed, and not dropped, while budgets, tables, remembered event ids or events that Kafka still
    has refer to it.
    """
    from pipeline.ledger.months import parse_month
    from pipeline.ops.export import export_months

    wanted = [parse_month(text) for text in months]
    with progress("months", len(wanted)) as done:
        found = export_months(settings(), wanted, folder, drop=drop, done=done)
    if json_wanted:
        print_json([one.to_json() for one in found])
        return
    for one in found:
        left = "; dropped from the ledger" if one.dropped else ""
        click.echo(f"{one.file}: {one.rows:,} entries, {one.cost_nano} nano{left}")
