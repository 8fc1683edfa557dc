"""``bench``: the figures of the documentation, measured again on this machine."""

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from pipeline.cli.context import settings
from pipeline.cli.output import as_json, print_json, print_table


@click.group()
def bench() -> None:
    """Run the benchmarks. Each starts servers of its own, in a folder that is removed."""


@bench.command()
@click.option("--events", default=600_000, show_default=True, help="Events of the backlog.")
@click.option("--rounds", default=3, show_default=True, help="Interleaved rounds.")
@as_json
def stream(events: int, rounds: int, json_wanted: bool) -> None:
    """The worker against the bare floor loop and a plain Faust agent, on one topic."""
    from pipeline.bench.stream import run

    with tempfile.TemporaryDirectory(prefix="tallyport-bench-") as folder:
        own = settings().replaced(
            data_dir=Path(folder), kafka_port=0, ledger_port=0, api_port=0, topic_prefix=""
        )
        result = asyncio.run(run(own, events, rounds, _say))
    if json_wanted:
        print_json(result.to_json())
        return
    rows = [
        {
            "round": str(number),
            "floor": f"{r.floor:,.0f}",
            "worker": f"{r.worker:,.0f}",
            "plain faust": f"{r.faust:,.0f}",
            "worker/floor": f"{r.worker / r.floor:.2f}",
            "worker/faust": f"{r.worker / r.faust:.1f}",
            "worker MB": f"{r.worker_mb:.0f}",
        }
        for number, r in enumerate(result.rounds)
    ]
    print_table(rows, list(rows[0]))


@bench.command()
@click.option("--rate", default=1_000, show_default=True, help="Events a second.")
@click.option("--seconds", default=20, show_default=True, help="How long.")
@as_json
def latency(rate: int, seconds: int, json_wanted: bool) -> None:
    """From the send of an event to its budget.state at a subscriber."""
    from pipeline.bench.latency import measure
    from pipeline.ops.deployment import Deployment

    async def run() -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="tallyport-bench-") as folder:
            own = settings().replaced(
                data_dir=Path(folder), kafka_port=0, ledger_port=0, api_port=0, topic_prefix=""
            )
            async with Deployment(own, parts=("worker", "sink")) as deployment:
                await measure(deployment.settings, rate, 3)  # warm-up
                result = await measure(deployment.settings, rate, seconds)
        return {
            "events/s": rate,
            "probes": len(result.millis),
            "lost": result.lost,
            "p50 ms": round(result.at(50), 1),
            "p90 ms": round(result.at(90), 1),
            "p99 ms": round(result.at(99), 1),
            "max ms": round(result.millis[-1], 1),
        }

    row = asyncio.run(run())
    if json_wanted:
        print_json(row)
    else:
        print_table([row], list(row))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
