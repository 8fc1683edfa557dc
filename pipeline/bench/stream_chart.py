"""The chart of ``tallyport bench stream``: events per second, and processor time per event."""

from pipeline.bench.chart import Bar, Panel, svg
from pipeline.bench.contenders import FLOOR, WORKER
from pipeline.bench.stream import StreamBench

_LABELS = {
    FLOOR: "bare loop (the floor)",
    WORKER: "tallyport",
    "validated_floor": "the loop, validated",
    "plain_faust": "plain Faust",
    "quix_streams": "Quix Streams",
    "bytewax": "Bytewax",
    "bytewax_recovery": "Bytewax, recovery",
}

_MOST_OF_OWN = 5
"""A bar so many times as long as the worker's would leave nothing to see of the others."""


def chart(bench: StreamBench) -> str:
    """The medians of all rounds as SVG."""
    load = bench.load
    events = (
        f"{load.events:,} events of {load.ports:,} ports and {load.users:,} users, "
        f"{len(bench.rounds)} rounds"
    )
    return svg(
        [
            Panel("Events per second, one process", f"{events}; lowest to highest", _rates(bench)),
            _costs(bench),
        ]
    )


def _rates(bench: StreamBench) -> list[Bar]:
    bars: list[Bar] = []
    for name in bench.names:
        rate, (low, high) = bench.middle(name, lambda m: m.events_per_s), bench.spread(name)
        note = f"{rate:,.0f}"
        if name != FLOOR:
            note += f" ({bench.ratio(name, FLOOR):.2f} of the floor)"
        bars.append(Bar(_LABELS[name], (rate,), note, low, high, name == WORKER))
    return bars


def _costs(bench: StreamBench) -> Panel:
    bars: list[Bar] = []
    left_out = ""
    most = _MOST_OF_OWN * bench.middle(WORKER, lambda m: m.cpu_us)
    for name in bench.names:
        own = bench.middle(name, lambda m: m.cpu_us)
        broker = bench.middle(name, lambda m: m.broker_cpu_us)
        note = f"{own:.1f} + {broker:.1f}"
        if own > most:
            left_out += f"; left out: {_LABELS[name]}, {note}"
        else:
            bars.append(Bar(_LABELS[name], (own, broker), note, is_own=name == WORKER))
    subtitle = f"the process, and the broker's share in light{left_out}"
    return Panel("Processor time per event, µs", subtitle, bars)
