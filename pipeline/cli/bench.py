"""``bench``: throughput and latency on real parts of their own."""

from typing import Any

import click

from pipeline.bench.times import bars
from pipeline.bench.traffic import Load
from pipeline.cli.bench_scale import scale
from pipeline.cli.bench_start import own_settings, say
from pipeline.cli.bench_stream import EVENTS, run_stream, show_stream, stream
from pipeline.cli.context import run_async
from pipeline.cli.output import as_json, print_json, print_table

_ROUNDS = 3
_RATES = (200, 5_000)
_SECONDS = 20
_HTTP_EVENTS = 200_000
_WARM_UP_S = 5


@click.group(invoke_without_command=True)
@click.pass_context
@as_json
def bench(ctx: click.Context, json_wanted: bool) -> None:
    """Run the benchmarks: on free ports and a fresh data folder, nothing else is touched.

    Without a subcommand `stream` and `latency` run, for some minutes. Figures are of this machine
    at this moment; only the ratios within a round mean something elsewhere.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = {
        "stream": run_async(run_stream(Load(EVENTS), _ROUNDS)),
        "latency": run_async(_latency(_RATES, _SECONDS, _WARM_UP_S, False)),
    }
    _show(found, json_wanted)


bench.add_command(stream)
bench.add_command(scale)


@bench.command()
@click.option(
    "--rate",
    type=click.IntRange(1),
    multiple=True,
    default=_RATES,
    show_default=True,
    help="Events per second; repeat it for several.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    default=_SECONDS,
    show_default=True,
    help="How long each rate is sent.",
)
@click.option(
    "--warm-up",
    "warm_up_s",
    type=click.IntRange(0),
    default=_WARM_UP_S,
    show_default=True,
    help="Seconds before that which are not counted: a fresh broker compiles its code as it runs.",
)
@click.option(
    "--worker-only",
    is_flag=True,
    help="Without sink and API, as where each part has a machine of its own.",
)
@as_json
def latency(
    rate: tuple[int, ...], seconds: int, warm_up_s: int, worker_only: bool, json_wanted: bool
) -> None:
    """Milliseconds from the sending of an event to its state at a subscriber."""
    _show({"latency": run_async(_latency(rate, seconds, warm_up_s, worker_only))}, json_wanted)


@bench.command()
@click.option(
    "--cells",
    type=click.IntRange(1_000),
    default=100_000,
    show_default=True,
    help="Cells in the tables of all partitions together.",
)
@click.option(
    "--ids",
    type=click.IntRange(0),
    default=1_000_000,
    show_default=True,
    help="Remembered event ids of all partitions together.",
)
@click.option(
    "--stretch",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="How many times as long as its live content the journal of totals is.",
)
@as_json
def recovery(cells: int, ids: int, stretch: int, json_wanted: bool) -> None:
    """Seconds until a killed worker's partitions are served again, and the memory that takes."""
    _show({"recovery": run_async(_recovery(cells, ids, stretch))}, json_wanted)


async def _recovery(cells: int, ids: int, stretch: int) -> dict[str, object]:
    from pipeline.bench.recovery import run

    with own_settings() as own:
        found = await run(own, cells, ids, stretch, say)
    return found.to_json()


@bench.command()
@click.option(
    "--entries",
    type=click.IntRange(1_000),
    default=1_000_000,
    show_default=True,
    help="Entries of the ledger.",
)
@click.option(
    "--cells",
    type=click.IntRange(1_000),
    default=100_000,
    show_default=True,
    help="Cells that they add up to.",
)
@as_json
def rebuild(entries: int, cells: int, json_wanted: bool) -> None:
    """Seconds until an empty Kafka has what the ledger holds."""
    _show({"rebuild": run_async(_rebuild(entries, cells))}, json_wanted)


async def _rebuild(entries: int, cells: int) -> dict[str, object]:
    from pipeline.bench.rebuild import run

    with own_settings() as own:
        found = await run(own, entries, cells, say)
    return found.to_json()


@bench.command()
@click.option(
    "--events",
    type=click.IntRange(10_000),
    default=5_000_000,
    show_default=True,
    help="Events of a year in the ledger.",
)
@as_json
def ledger(events: int, json_wanted: bool) -> None:
    """Bytes per event, queries on a year of data, and the sink beside direct inserts."""
    _show({"ledger": run_async(_ledger(events))}, json_wanted)


async def _ledger(events: int) -> dict[str, object]:
    from pipeline.bench.ledger import run

    with own_settings() as own:
        found = await run(own, events, say)
    return found.to_json()


@bench.command()
@click.option(
    "--events",
    type=click.IntRange(1_000),
    default=_HTTP_EVENTS,
    show_default=True,
    help="Events of a round.",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=_ROUNDS, show_default=True, help="How many rounds."
)
@click.option(
    "--seconds",
    type=click.IntRange(1),
    default=_SECONDS,
    show_default=True,
    help="How long single events are sent.",
)
@as_json
def http(events: int, rounds: int, seconds: int, json_wanted: bool) -> None:
    """Events per second over HTTP beside the raw producer, and the wait of single ones."""
    _show({"http": run_async(_http(events, rounds, seconds))}, json_wanted)


async def _http(events: int, rounds: int, seconds: int) -> dict[str, object]:
    from pipeline.bench.http import run

    with own_settings() as own:
        found = await run(own, events, rounds, seconds, say)
    return found.to_json()


@bench.command()
@click.option(
    "--rate",
    type=click.IntRange(1),
    default=_RATES[-1],
    show_default=True,
    help="Events per second beside the probes.",
)
@click.option(
    "--seconds",
    type=click.IntRange(6),  # in the first five nothing is measured
    default=_SECONDS,
    show_default=True,
    help="How long the load is sent.",
)
@as_json
def sdk(rate: int, seconds: int, json_wanted: bool) -> None:
    """What the SDK costs a service, how soon a budget stops it in another process, and what the
    API takes in from services that report over HTTP (as ``bench http``)."""
    found = {
        "sdk": run_async(_sdk(rate, seconds)),
        "http": run_async(_http(_HTTP_EVENTS, _ROUNDS, seconds)),
    }
    _show(found, json_wanted)


async def _sdk(rate: int, seconds: int) -> dict[str, object]:
    from pipeline.bench.sdk import run

    with own_settings() as own:
        return await run(own, rate, seconds, say)


async def _latency(
    rates: tuple[int, ...], seconds: int, warm_up_s: int, worker_only: bool
) -> list[dict[str, object]]:
    from pipeline.bench.latency import measure
    from pipeline.ops.deployment import PARTS, Deployment

    parts = ("worker",) if worker_only else PARTS
    rows: list[dict[str, object]] = []
    with own_settings() as own:
        async with Deployment(own, parts) as deployment:
            for rate in rates:
                rows.append(await measure(deployment.settings, rate, seconds, warm_up_s, say))
    return rows


def _show(found: dict[str, Any], json_wanted: bool) -> None:
    if json_wanted:
        print_json(found)
        return
    if "stream" in found:
        show_stream(found["stream"])
    if "http" in found:
        rounds = found["http"].pop("rounds")
        print_table([{name: f"{value:.0f}" for name, value in row.items()} for row in rounds],
                    ("producer", "http"))  # fmt: skip
        print_table([found["http"]], tuple(found["http"]))
    if "sdk" in found:
        for name, figures in found["sdk"].items():
            click.echo(f"{name}: {figures}")
    if "recovery" in found:
        print_table([found["recovery"]], tuple(found["recovery"]))
    if "rebuild" in found:
        print_table([found["rebuild"]], tuple(found["rebuild"]))
    if "ledger" in found:
        print_table(found["ledger"].pop("queries"), ("query", "median", "p95"))
        print_table(found["ledger"].pop("answers"), ("path", "median", "p95"))
        for name, figure in found["ledger"].items():
            click.echo(f"{name}: {figure}")
    if "latency" in found:
        _show_latency(found["latency"])


def _show_latency(rows: list[dict[str, Any]]) -> None:
    histograms = [row.pop("histogram_ms") for row in rows]
    print_table(rows, tuple(rows[0]))
    for row, histogram in zip(rows, histograms, strict=True):
        click.echo(f"\n{row['events_per_s']} events/s")
        for line in bars(histogram):
            click.echo(line)
