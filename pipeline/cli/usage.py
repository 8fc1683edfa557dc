"""``usage``: what was used, from the ledger."""

import csv
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import click

from pipeline.cli.context import settings
from pipeline.cli.output import as_json, decimal_text, print_json, print_table
from pipeline.cli.times import Time
from pipeline.core.errors import InvalidField, TallyportError

_COLUMNS = (
    "requests", "input_tokens", "output_tokens", "total_tokens", "cost", "currency",
    "unpriced_requests",
)  # fmt: skip
MAX_ROWS = 100_000


@click.command()
@click.option("--port-id", help="Only this port.")
@click.option("--user", help="Only this user.")
@click.option("--org", help="Only this organization.")
@click.option("--from", "start", type=Time(), help="From this date or time on (UTC).")
@click.option("--to", "end", type=Time(), help="Before this date or time (UTC).")
@click.option("--by", default="", help="Split by model, feature, day, … separated by commas.")
@click.option("--csv", "csv_wanted", is_flag=True, help="Print CSV with every column.")
@as_json
def usage(by: str, csv_wanted: bool, json_wanted: bool, **filters: Any) -> None:
    """Show what was used: requests, tokens and cost."""
    from pipeline.ledger.client import ledger_reader
    from pipeline.ledger.filters import UsageFilters, dimension
    from pipeline.ledger.usage import usage_report

    if csv_wanted and json_wanted:
        raise click.UsageError("--csv and --json exclude each other")
    names = [dimension(name) for name in by.split(",") if name.strip()]
    if filters["start"] and filters["end"] and filters["start"] >= filters["end"]:
        raise InvalidField("--from", "must lie before --to")
    wanted = UsageFilters(
        port_id=filters["port_id"],
        user_id=filters["user"],
        organization_id=filters["org"],
        start=filters["start"],
        end=filters["end"],
    )
    with ledger_reader(settings()) as client:
        rows = usage_report(client, wanted, names, MAX_ROWS + 1)
    if len(rows) > MAX_ROWS:
        raise TallyportError(
            f"more than {MAX_ROWS} rows: narrow with --from and --to, or split less"
        )
    _print(rows, names, csv_wanted, json_wanted)


def _print(
    rows: Sequence[dict[str, Any]], names: Sequence[str], csv_wanted: bool, json_wanted: bool
) -> None:
    from pipeline.ledger.usage import USAGE_COLUMNS

    if json_wanted:
        print_json(rows)
    elif csv_wanted:
        columns = [*dict.fromkeys(names), *USAGE_COLUMNS]
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(row[column]) for column in columns] for row in rows)
    elif rows:
        print_table(rows, [*dict.fromkeys(names), *_COLUMNS])
    else:
        click.echo("nothing was used in that range")


def _csv_cell(value: object) -> object:
    return decimal_text(value) if isinstance(value, Decimal) else value
