"""``replay-rejected``: send rejected records again."""

import re
from datetime import datetime
from typing import Any

import click

from pipeline.cli.context import run_async, settings
from pipeline.cli.output import as_json, print_json, progress
from pipeline.cli.times import Time
from pipeline.core.errors import InvalidField
from pipeline.core.rejections import REASONS

_RANGE = re.compile(r"(\d{0,19})(-?)(\d{0,19})")


class Offsets(click.ParamType):
    """``A-B`` (both included), ``A-``, ``-B``, or one offset."""

    name = "A-B"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int | None]:
        found = _RANGE.fullmatch(value)
        if found is None or not (found[1] or found[3]):
            self.fail(f"{value!r} is no range like 10-20, 10-, -20 or 10", param, ctx)
        first = int(found[1] or 0)
        last = int(found[3]) if found[3] else None if found[2] else first
        if last is not None and last < first:
            self.fail(f"{value!r} ends before it begins", param, ctx)
        return first, last


@click.command("replay-rejected")
@click.option(
    "--reason", "reasons", multiple=True, type=click.Choice(REASONS), help="Only these reasons."
)
@click.option(
    "--port-id", "ports", multiple=True, help="Only records whose body names these ports."
)
@click.option("--from", "start", type=Time(), help="Rejected at this date or time or later (UTC).")
@click.option("--to", "end", type=Time(), help="Rejected before this date or time (UTC).")
@click.option(
    "--partition", "partitions", multiple=True, type=click.IntRange(0),
    help="Only these partitions of usage.rejected.",
)  # fmt: skip
@click.option("--offset", "offsets", type=Offsets(), help="Only these offsets of usage.rejected.")
@click.option("--again", is_flag=True, help="Also what was sent again before.")
@click.option("--dry-run", is_flag=True, help="Only print what would be sent.")
@as_json
def replay_rejected(
    reasons: tuple[str, ...],
    ports: tuple[str, ...],
    start: datetime | None,
    end: datetime | None,
    partitions: tuple[int, ...],
    offsets: tuple[int, int | None] | None,
    again: bool,
    dry_run: bool,
    json_wanted: bool,
) -> None:
    """Send rejected records again, after what was wrong is right.

    Without options: every record of usage.rejected that was not sent again before. Records go as
    they came, with their own key and headers; age is judged as of the original, not of the replay.
    What the ledger has by now is left out. Prints what is to be expected of the rest by the
    settings of this command; a record that is rejected again stands in usage.rejected once more.
    May be interrupted and run again: nothing is sent twice.
    """
    from pipeline.ops.replay import Choice, Replay

    if start and end and start >= end:
        raise InvalidField("--from", "must lie before --to")
    first, last = offsets or (0, None)
    choice = Choice(
        reasons=frozenset(reasons),
        ports=frozenset(ports),
        start_ms=_ms(start),
        end_ms=_ms(end),
        partitions=frozenset(partitions),
        first_offset=first,
        last_offset=last,
        again=again,
    )
    report = run_async(Replay(settings(), choice, dry_run=dry_run).run(progress))
    if json_wanted:
        print_json(report.to_json())
    else:
        for line in report.lines():
            click.echo(line)


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)
