"""``bench scale``: what cells, ids, a start and a month's end cost as their number grows."""

from typing import Any, Final

import click

from pipeline.cli.bench_start import own_settings, say
from pipeline.cli.context import run_async
from pipeline.cli.output import as_json, print_json, print_table

CELLS, IDS, MONTH = PARTS = ("cells", "ids", "month")
_FEW_CELLS: Final = 1_000
_CELLS: Final = (1_000, 10_000, 100_000, 1_000_000)
# An hour and seven days of the same traffic, and between them.
_IDS: Final = (60_000, 1_000_000, 10_000_000)


@click.command()
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    default=PARTS,
    show_default=True,
    help="What to measure; repeat it for several.",
)
@click.option(
    "--cells",
    type=click.IntRange(_FEW_CELLS),
    multiple=True,
    default=_CELLS,
    show_default=True,
    help="Live cells of one worker; repeat it for several sizes.",
)
@click.option(
    "--ids",
    type=click.IntRange(0),
    multiple=True,
    default=_IDS,
    show_default=True,
    help=f"Ids of seven days that it remembers beside {_FEW_CELLS:,} cells; repeat it for several "
    "sizes.",
)
@click.option(
    "--policies",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    help="Policies whose month ends.",
)
@click.option(
    "--events",
    type=click.IntRange(1_000),
    default=200_000,
    show_default=True,
    help="Events of a round.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True, help="Rounds at each size."
)
@click.option(
    "--rate",
    type=click.IntRange(1),
    help="Events per second. [default: all of a round within a second, as a backlog]",
)
@as_json
def scale(
    parts: tuple[str, ...],
    cells: tuple[int, ...],
    ids: tuple[int, ...],
    policies: int,
    events: int,
    rounds: int,
    rate: int | None,
    json_wanted: bool,
) -> None:
    """Processor time per event, memory and start by cells and ids, and a month's end for many."""
    found = run_async(_scale(parts, cells, ids, policies, (events, rounds, rate)))
    if json_wanted:
        print_json({"scale": found})
    else:
        _show(found)


async def _scale(
    parts: tuple[str, ...],
    cells: tuple[int, ...],
    ids: tuple[int, ...],
    policies: int,
    traffic: tuple[int, int, int | None],
) -> dict[str, Any]:
    from pipeline.bench import month
    from pipeline.bench.scale import Size, Traffic, run
    from pipeline.ops.deployment import Deployment

    found: dict[str, Any] = {}
    with own_settings() as own:
        async with Deployment(own, parts=()) as deployment:
            for part, sizes in (
                (CELLS, [Size(count, 0) for count in cells]),
                (IDS, [Size(_FEW_CELLS, count) for count in ids]),
            ):
                if part in parts:
                    series = await run(deployment, sizes, Traffic(*traffic), say)
                    found[part] = series.to_json()
            if MONTH in parts:
                found[MONTH] = (await month.run(deployment, policies, say)).to_json()
    return found


def _show(found: dict[str, Any]) -> None:
    for part in (CELLS, IDS):
        if part in found:
            sizes = found[part]["sizes"]
            print_table(sizes, tuple(sizes[0]))
            click.echo(f"bytes for each of the {part}: {found[part]['bytes_each'] or '-'}\n")
    if MONTH in found:
        print_table([found[MONTH]], tuple(found[MONTH]))
