"""Puts the in-memory Kafka and virtual time in the place of the real ones, for one block."""

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import aiokafka

from pipeline import faults
from pipeline.ledger import sink
from pipeline.stream import flush, flush_loop, id_journal, journal, merging, pricing
from tests.sim import resolver
from tests.sim.client import SimulatedConsumer, SimulatedProducer
from tests.sim.virtual_loop import CURRENT, Killed
from tests.sim.world import World

PREFIXES = ("pipeline.stream.", "pipeline.ledger.", "pipeline.corrections.")


class VirtualTime:
    """The module ``time``, as far as it is used."""

    @staticmethod
    def time() -> float:
        world = World.current()
        return world.wall_ms(CURRENT.get()) / 1000

    @staticmethod
    def monotonic() -> float:
        return World.current().loop.now_s

    perf_counter = monotonic


class VirtualUuid:
    """The module ``uuid``: what is made anew is drawn from the seed."""

    @staticmethod
    def uuid4() -> uuid.UUID:
        return uuid.UUID(int=World.current().rng("uuid").getrandbits(128), version=4)


class ArmedPoints:
    """Stands for the armed fault point: equal to the one where the current process must die."""

    def __eq__(self, name: object) -> bool:
        process = CURRENT.get()
        return process is not None and World.current().passes(process, str(name))

    __hash__ = None  # type: ignore[assignment]


def _die() -> None:
    process = CURRENT.get()
    assert process is not None
    World.current().kill_at_point(process)
    raise Killed


SMALL: tuple[tuple[Any, str, int], ...] = (
    (journal, "SHARD_FLOOR_BYTES", 1),
    (id_journal, "RING_SLOTS", 3),
    (flush, "BLOCK_ROWS", 2),
    (flush, "PARTIAL_CELLS", 2),
    (flush_loop, "MAX_FLUSH_RECORDS", 6),
    (flush_loop, "EARLY_RECORDS", 2),
    (pricing, "POSITION_INTERVAL_S", 1),
    (merging, "TAKE_RECORDS", 3),
    (merging, "PUBLISH_RECORDS", 3),
    (merging, "CATCH_UP_RECORDS", 30),
    (merging, "HELD_BACK_RECORDS", 2),
    (merging, "BUSY_RECORDS", 1),
    (sink, "INSERT_MAX_ROWS", 4),
    (sink, "POLL_MAX_BLOCKS", 2),
    *resolver.SMALL,
)
_TIME = VirtualTime()
_REPLACED: dict[int, Any] = {
    id(aiokafka.AIOKafkaProducer): SimulatedProducer,
    id(aiokafka.AIOKafkaConsumer): SimulatedConsumer,
    id(time): _TIME,
    id(uuid): VirtualUuid(),
    id(time.time): _TIME.time,
    id(time.monotonic): _TIME.monotonic,
}


@cache
def _places() -> list[tuple[Any, str, Any]]:
    """Where modules of the project hold what is replaced: module, attribute, substitute."""
    return [
        (module, attribute, _REPLACED[id(value)])
        for name, module in list(sys.modules.items())
        if name.startswith(PREFIXES)
        for attribute, value in list(vars(module).items())
        if id(value) in _REPLACED
    ]


@contextmanager
def simulated(world: World) -> Iterator[None]:
    """Within the block every module of worker, sink and resolver works on ``world``."""
    places = [
        *_places(),
        *resolver.PLACES,
        (faults, "_armed", ArmedPoints()),
        (faults, "_pass", _die),
        *(SMALL if world.knobs.is_small else ()),
    ]
    originals = [(module, attribute, getattr(module, attribute)) for module, attribute, _ in places]
    for module, attribute, substitute in places:
        setattr(module, attribute, substitute)
    World.active = world
    try:
        yield
    finally:
        World.active = None
        for module, attribute, original in originals:
            setattr(module, attribute, original)
