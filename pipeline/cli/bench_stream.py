"""``bench stream``: events per second of the worker and of what it is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.bench.traffic import PORTS, USERS, Load
from pipeline.cli.bench_start import own_settings, say
from pipeline.cli.context import run_async
from pipeline.cli.output import as_json, print_json, print_table

if TYPE_CHECKING:
    from pipeline.bench.stream import StreamBench

EVENTS, _EVENTS_WITH_PEERS = 300_000, 1_000_000
_ROUNDS = 3
_WIDE_PORTS, _WIDE_USERS = 20_000, 500_000
_COLUMNS = (
    "contender", "events/s", "lowest", "highest", "÷ floor", "tallyport ÷", "cpu s/M",
    "cpu ÷ floor", "broker s/M", "MB", "read",
)  # fmt: skip


@click.command()
@click.option(
    "--events",
    type=click.IntRange(1_000),
    help=f"Events that each contender reads in a round. [default: {EVENTS:,}; with --peers "
    f"{_EVENTS_WITH_PEERS:,}]",
)
@click.option(
    "--rounds", type=click.IntRange(1), default=_ROUNDS, show_default=True, help="How many rounds."
)
@click.option(
    "--ports",
    type=click.IntRange(1),
    default=PORTS,
    show_default=True,
    help="Different ports in the events.",
)
@click.option(
    "--users",
    type=click.IntRange(1),
    default=USERS,
    show_default=True,
    help="Different users in the events; most of the worker's cells are theirs.",
)
@click.option("--wide", is_flag=True, help=f"{_WIDE_PORTS:,} ports and {_WIDE_USERS:,} users.")
@click.option("--peers", is_flag=True, help="Quix Streams and Bytewax, too (see `make peers`).")
@click.option(
    "--peers-python",
    type=click.Path(path_type=Path),
    help="The interpreter of the peers' environment, where it is not the one of `make peers`.",
)
@click.option("--trouble", is_flag=True, help="Instead: the worker alone, on troubled traffic.")
@click.option(
    "--profile",
    is_flag=True,
    help="Instead: the stages of the worker's time, sampled by py-spy of the peers' environment.",
)
@click.option(
    "--workers",
    type=click.IntRange(2),
    help="Instead: so many workers beside one, each on a processor of its own.",
)
@click.option(
    "--chart",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the figures as a picture, too (SVG).",
)
@as_json
def stream(
    events: int | None,
    rounds: int,
    ports: int,
    users: int,
    wide: bool,
    peers: bool,
    peers_python: Path | None,
    trouble: bool,
    profile: bool,
    workers: int | None,
    chart: Path | None,
    json_wanted: bool,
) -> None:
    """Events per second: the worker, the floor below it, a plain Faust agent, and its peers.

    All of them read the same topic and end with the same totals, or there is no figure.
    """
    instead = [trouble, profile, workers is not None]
    if sum(instead) > 1 or (any(instead) and (peers or chart)):
        raise click.UsageError(
            "--trouble, --profile and --workers look at the worker alone, one at a time"
        )
    load = Load(
        events or (_EVENTS_WITH_PEERS if peers or profile else EVENTS),
        _WIDE_PORTS if wide else ports,
        _WIDE_USERS if wide else users,
    )
    if trouble:
        found = run_async(_run_trouble(load, rounds))
    elif profile:
        found = run_async(_run_profile(load, peers_python))
    elif workers is not None:
        found = run_async(_run_workers(load, workers, rounds))
    else:
        python = _peers_python(peers_python) if peers else None
        found = run_async(run_stream(load, rounds, python, chart))
    if json_wanted:
        print_json({"stream": found})
    else:
        show_stream(found)


def _peers_python(given: Path | None) -> Path:
    from pipeline.bench.contenders import PEERS_PYTHON

    return given or PEERS_PYTHON


async def run_stream(
    load: Load, rounds: int, peers_python: Path | None = None, chart: Path | None = None
) -> dict[str, Any]:
    """The figures of all contenders; writes them to ``chart`` as a picture where it is given."""
    from pipeline.bench.stream import run

    with own_settings() as own:
        found = await run(own, load, rounds, peers_python, say)
    if chart is not None:
        _draw(found, chart)
    return found.to_json()


def _draw(found: "StreamBench", path: Path) -> None:
    from pipeline.bench.stream_chart import chart

    path.write_text(chart(found), "utf-8")


async def _run_trouble(load: Load, rounds: int) -> dict[str, Any]:
    from pipeline.bench.trouble import run

    with own_settings() as own:
        found = await run(own, load, rounds, say)
    return found.to_json()


async def _run_profile(load: Load, peers_python: Path | None) -> dict[str, Any]:
    from pipeline.bench.profile import run

    python = _peers_python(peers_python)
    with own_settings() as own:
        found = await run(own, load, python, say)
    return found.to_json()


async def _run_workers(load: Load, workers: int, rounds: int) -> dict[str, Any]:
    from pipeline.bench.workers import run

    with own_settings() as own:
        found = await run(own, load, workers, rounds, say)
    return found.to_json()


def show_stream(found: dict[str, Any]) -> None:
    """Prints what was measured as a table."""
    if "kinds" in found:
        _show_trouble(found)
    elif "stages" in found:
        _show_profile(found)
    elif "workers" in found:
        _show_workers(found)
    else:
        _show_contenders(found)


def _show_trouble(found: dict[str, Any]) -> None:
    rows = [
        {
            "trouble": row["trouble"],
            "events/s": round(row["events_per_s"]),
            "cpu s/M": round(row["cpu_s_per_million"], 1),
            "MB": round(row["peak_mb"]),
            "÷ clean": round(row["to_clean"], 2),
        }
        for row in found["kinds"]
    ]
    print_table(rows, ("trouble", "events/s", "cpu s/M", "MB", "÷ clean"))


def _show_profile(found: dict[str, Any]) -> None:
    rows = [
        {"stage": row["stage"], "%": round(row["share"] * 100, 1), "µs": round(row["us"], 2)}
        for row in found["stages"]
    ]
    print_table(rows, ("stage", "%", "µs"))
    click.echo(
        f"{found['events_per_s']:,.0f} events/s while sampled, {found['cpu_us']:.2f} µs of "
        f"processor an event, the broker {found['broker_cpu_us']:.2f} µs"
    )


def _show_workers(found: dict[str, Any]) -> None:
    rows = [
        {
            "workers": row["workers"],
            "events/s": round(row["events_per_s"]),
            "cpu s/M": round(row["cpu_s_per_million"], 1),
            "broker s/M": round(row["broker_cpu_s_per_million"], 2),
            "MB": round(row["peak_mb"]),
        }
        for row in found["workers"]
    ]
    print_table(rows, ("workers", "events/s", "cpu s/M", "broker s/M", "MB"))
    click.echo(f"{found['to_one']:.2f} times as many as one (median within a round)")


def _show_contenders(found: dict[str, Any]) -> None:
    rows = [
        {
            "contender": row["contender"],
            "events/s": round(row["events_per_s"]),
            "lowest": round(row["lowest"]),
            "highest": round(row["highest"]),
            "cpu s/M": round(row["cpu_s_per_million"], 1),
            "broker s/M": round(row["broker_cpu_s_per_million"], 2),
            "MB": round(row["peak_mb"]),
            "÷ floor": round(row["to_floor"], 3),
            "tallyport ÷": round(row["tallyport_to_it"], 2),
            "cpu ÷ floor": round(row["cpu_to_floor"], 2),
            "read": row["events_read"],
        }
        for row in found["contenders"]
    ]
    print_table(rows, _COLUMNS)
