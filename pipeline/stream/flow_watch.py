"""Watching a worker: what of it must move, and for how long it may stand still.

A worker's own bounds come first: a flush fails after seconds, reading a journal and waiting for
rates after a minute. What is watched here is what those bounds cannot see.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from faust.types import TP

from pipeline.fetch_pulse import answers_pulse, fetcher_pulse, group_pulse
from pipeline.liveness import STALL_S, Look, Sighting, Watchdog, loop_pulse
from pipeline.stream.flow import Flow
from pipeline.stream.transport import SliceConsumer

GIVE_UP_S = 60.0
# Three times what a transaction may last: the broker has ended it long before.
FLUSH_GIVE_UP_S = 30.0
BROKER_GIVE_UP_S = 120.0


class _Rates(Protocol):
    confirmed_s: float | None


def watch_worker(
    dog: Watchdog,
    loop: asyncio.AbstractEventLoop,
    flow: Flow,
    consumer: Callable[[], SliceConsumer | None],
    rates: _Rates,
) -> None:
    """Looks at every part of a worker. ``consumer`` is None before Faust has made it."""

    def of_fetching(pulse: Callable[[Any], Look]) -> Look:
        made: dict[int, Look] = {}

        def look() -> Mapping[str, Sighting]:
            slices = consumer()
            fetching = None if slices is None else slices.fetching
            if fetching is None:
                return {}
            return made.setdefault(id(fetching), pulse(fetching))()

        return look

    def of_thread() -> Mapping[str, Sighting]:
        slices = consumer()
        if slices is None or slices.fetching is None:
            return {}
        return beat.setdefault(id(slices), loop_pulse(slices.fetch_loop, "the fetching thread"))()

    beat: dict[int, Look] = {}
    dog.watch("loop", loop_pulse(loop, "the worker"), GIVE_UP_S)
    dog.watch("thread", of_thread, GIVE_UP_S)
    dog.watch("fetching-thread", thread_look(consumer), STALL_S)
    dog.watch("fetch", of_fetching(lambda c: fetcher_pulse(c, "the worker")), STALL_S)
    dog.watch("broker", of_fetching(answers_pulse), BROKER_GIVE_UP_S, restart_helps=False)
    dog.watch(
        "group", of_fetching(lambda c: group_pulse(c, "the worker's group")), BROKER_GIVE_UP_S
    )
    dog.watch("flush", flush_look(flow), FLUSH_GIVE_UP_S)
    dog.watch("input", input_look(flow), BROKER_GIVE_UP_S)
    dog.watch("transactions", transactions_look(flow), math.inf, restart_helps=False)
    dog.watch("rates", rates_look(rates), BROKER_GIVE_UP_S, restart_helps=False)
    dog.watch("policies", policies_look(flow), BROKER_GIVE_UP_S, restart_helps=False)


def thread_look(consumer: Callable[[], SliceConsumer | None]) -> Look:
    """Sees whether the thread that fetches still runs. Once ended it cannot go on."""

    def look() -> Mapping[str, Sighting]:
        slices = consumer()
        if slices is None or slices.fetching is None or slices.fetch_loop.is_running():
            return {"the fetching thread": Sighting("runs", "")}
        return {"the fetching thread": Sighting("ended", "it has ended and cannot go on")}

    return look


def flush_look(flow: Flow) -> Look:
    """Sees transactions end; one with marks is due four times a second."""

    def look() -> Mapping[str, Sighting]:
        serving = flow.flush_loop
        if serving is None or not flow.prices:
            return {}
        return {"the worker": Sighting((id(serving), serving.commits), serving.doing)}

    return look


def input_look(flow: Flow) -> Look:
    """Sees every partition's input being taken while there is any, and prices for it."""

    def look() -> Mapping[str, Sighting]:
        seen: dict[str, Sighting] = {}
        topics, waits = flow.topics, flow.flush_loop is not None and flow.flush_loop.awaits_rates
        for partition, stage in flow.prices.items():
            state = flow.fetched(TP(topics.events, partition))
            ahead = 0 if state is None or waits else state.readable - stage.inbox.reached
            waiting = "" if ahead <= 0 else f"{ahead} records wait at offset {stage.inbox.reached}"
            seen[f"{topics.events} partition {partition}"] = Sighting(stage.inbox.reached, waiting)
        for partition, merge in flow.merges.items():
            reached = merge.inbox.reached
            waiting = "" if merge.inbox.is_empty else f"records wait at offset {reached}"
            seen[f"{topics.partials} partition {partition}"] = Sighting(reached, waiting)
        return seen

    return look


def transactions_look(flow: Flow) -> Look:
    """Sees the transactions of those who write events end: nothing behind one can be read."""

    def look() -> Mapping[str, Sighting]:
        seen: dict[str, Sighting] = {}
        for partition in flow.prices:
            state = flow.fetched(TP(flow.topics.events, partition))
            if state is not None:
                behind = state.highwater - state.readable
                waiting = (
                    f"{behind} records stand behind a producer's open transaction at offset "
                    f"{state.readable}"
                )
                seen[f"{flow.topics.events} partition {partition}"] = Sighting(
                    state.readable, waiting if behind else ""
                )
        return seen

    return look


def rates_look(rates: _Rates) -> Look:
    """Sees the end of the log of rates being confirmed, several times a second."""
    return lambda: {"reading rates": Sighting(rates.confirmed_s, "no broker confirms their end")}


def policies_look(flow: Flow) -> Look:
    """Sees the fetches of policies being answered, several times a second."""
    return lambda: {
        "reading policies": Sighting(flow.board.tail.polled_ms, "no broker answers its fetches")
    }
