"""``tallyport bench stream``: the worker against the floor, plain Faust and, if asked, its peers.

One Kafka, one topic with a backlog, one contender at a time, in interleaved rounds whose order
turns: the machine's mood changes, so only the ratios within a round mean something. The worker
runs with everything on (validation, dedupe, priced blocks, journals, partials, budget states).
Whoever's totals are not the floor's, to the last nano, has no figure.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pipeline.bench.backlog import drop, fill, fill_input
from pipeline.bench.contenders import (
    FLOOR,
    OWN,
    PEERS,
    WORKER,
    Contender,
    ContenderFailed,
    check_peers,
    run_contender,
)
from pipeline.bench.task import Measured, Task
from pipeline.bench.traffic import Load
from pipeline.bench.worker_run import run_worker
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.topics import Topics

PART_EVENTS = 20_000
"""So many events plain Faust reads, where there are more."""

Say = Callable[[str], None]
Round = dict[str, Measured]


@dataclass(frozen=True, slots=True)
class StreamBench:
    """All rounds, in the order they ran: what each contender measured, by its name."""

    load: Load
    rounds: list[Round] = field(default_factory=list[Round])

    @property
    def names(self) -> list[str]:
        return list(self.rounds[0])

    def middle(self, name: str, of: Callable[[Measured], float]) -> float:
        """The median over the rounds."""
        return statistics.median(of(found[name]) for found in self.rounds)

    def spread(self, name: str) -> tuple[float, float]:
        """The lowest and the highest events per second."""
        rates = [found[name].events_per_s for found in self.rounds]
        return min(rates), max(rates)

    def ratio(self, name: str, to: str) -> float:
        """The median of the ratios within each round."""
        return statistics.median(
            found[name].events_per_s / found[to].events_per_s for found in self.rounds
        )

    def cost_ratio(self, name: str, to: str) -> float:
        """As ``ratio`` for processor time per event, which other work on the machine moves less."""
        return statistics.median(found[name].cpu_us / found[to].cpu_us for found in self.rounds)

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers."""
        return {
            "events": self.load.events,
            "ports": self.load.ports,
            "users": self.load.users,
            "rounds": len(self.rounds),
            "contenders": [self._row(name) for name in self.names],
        }

    def _row(self, name: str) -> dict[str, object]:
        lowest, highest = self.spread(name)
        return {
            "contender": name,
            "events_read": self.rounds[0][name].events,
            "events_per_s": self.middle(name, lambda m: m.events_per_s),
            "lowest": lowest,
            "highest": highest,
            "cpu_s_per_million": self.middle(name, lambda m: m.cpu_us),
            "broker_cpu_s_per_million": self.middle(name, lambda m: m.broker_cpu_us),
            "peak_mb": self.middle(name, lambda m: m.peak_mb),
            "cells": self.rounds[0][name].cells,
            "to_floor": self.ratio(name, FLOOR),
            "cpu_to_floor": self.cost_ratio(name, FLOOR),
            "tallyport_to_it": self.ratio(WORKER, name),
        }


async def run(
    settings: Settings, load: Load, rounds: int, peers_python: Path | None, say: Say
) -> StreamBench:
    """Runs everything on a deployment of its own, with the peers where their interpreter is given.

    Raises ``PeersMissing`` before anything starts, ``ContenderFailed`` when one fails or is wrong.
    """
    contenders = OWN
    if peers_python is not None:
        check_peers(peers_python)
        contenders = (*OWN, *PEERS)
    bench = StreamBench(load)
    async with Deployment(settings, parts=()) as deployment:
        for number in range(rounds):
            one = _Round(deployment, f"bench{number}.", load, peers_python or Path(), say)
            found = await one.run(contenders, number)
            bench.rounds.append({name: found[name] for name in _names(contenders)})
    return bench


def _names(contenders: Iterable[Contender]) -> list[str]:
    return [FLOOR, WORKER, *(one.name for one in contenders if one.name != FLOOR)]


class _Round:
    """One round: a topic, and a shorter one beside it for who takes only a part."""

    def __init__(
        self, deployment: Deployment, prefix: str, load: Load, peers_python: Path, say: Say
    ) -> None:
        self._deployment = deployment
        self._load = load
        self._part = Load(min(load.events, PART_EVENTS), load.ports, load.users)
        self._peers_python = peers_python
        self._tell = say
        self._settings = deployment.settings.replaced(topic_prefix=prefix)
        self._part_settings = deployment.settings.replaced(topic_prefix=f"{prefix}part.")

    async def run(self, contenders: tuple[Contender, ...], turn: int) -> Round:
        """Every contender, beginning with another one each time; the floor says what is right."""
        seed, load, part = time.time_ns() % 2**32, self._load, self._part
        self._say(f"filling {load.events:,} events of {load.ports:,} ports, {load.users:,} users")
        end = datetime.now(UTC)
        await fill(self._settings, load.made(seed, end))
        await fill_input(self._part_settings, islice(load.made(seed, end), part.events))
        found: Round = {}
        order: list[Contender | None] = [*contenders, None]  # None is the worker
        for contender in order[turn % len(order) :] + order[: turn % len(order)]:
            name = contender.name if contender is not None else WORKER
            self._say(f"{name} …")
            one = await (self._run(contender) if contender is not None else self._worker())
            found[name] = one
            self._say(
                f"{name}: {one.events_per_s:,.0f} events/s, {one.cpu_us:.2f} + "
                f"{one.broker_cpu_us:.2f} µs of processor, {one.peak_mb:.0f} MB"
            )
        await self._check(contenders, found)
        await drop(self._settings)
        return found

    def _say(self, line: str) -> None:
        self._tell(f"{self._settings.topic_prefix} {line}")

    async def _run(self, contender: Contender) -> Measured:
        is_part = contender.takes_part
        settings = self._part_settings if is_part else self._settings
        kafka = self._deployment.kafka_server
        task = Task(
            self._deployment.kafka,
            Topics(settings.topic_prefix).events,
            settings.partition_count,
            (self._part if is_part else self._load).events,
            kafka.pid if kafka is not None else 0,
            contender.variant,
        )
        return await run_contender(contender, task, self._peers_python, os.environ)

    async def _worker(self) -> Measured:
        found, _ = await run_worker(self._deployment, self._settings, self._load.events)
        return found

    async def _check(self, contenders: tuple[Contender, ...], found: Round) -> None:
        """Raises ``ContenderFailed`` for totals that are not those of the floor."""
        whole = found[FLOOR].digest
        bare = next(one for one in contenders if one.name == FLOOR)
        part = await self._run(Contender(bare.name, bare.module, takes_part=True))
        in_part = {one.name for one in contenders if one.takes_part}
        for name, one in found.items():
            if one.digest != (part.digest if name in in_part else whole):
                raise ContenderFailed(f"the totals of {name} are not those of the floor")
