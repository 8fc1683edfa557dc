"""The faults of a chaos run: what each one does, and the seeded order they come in.

There are two lanes, each with one fault at a time: the stream (workers and brokers) and the ledger
(sink and ledger server). Run together, their faults overlap.
"""

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

from pipeline.stream.topics import Topics
from tests.chaos.brokers import ROLES, Brokers, pause, resume, runs
from tests.chaos.supervisor import Slot, Supervisor
from tests.processes import until

SESSION_TIMEOUT_S = 6.0
PAUSE_S = (7.0, 9.0)
POINT_TIMEOUT_S = 120.0
RESOLVED_POINT_TIMEOUT_S = 240.0
"""For points that wait on corrections: those come by way of the sink, which the other lane's faults
stop again and again."""
STEADY_WORKERS = 2
MOST_WORKERS = 3
POINTS = ("price-", "merge-", "corrections-", "sink-", "resolver-")
PIPELINE = Path(__file__).parents[2] / "pipeline"

Lane = Literal["stream", "ledger"]


@dataclass
class Scene:
    """What faults act on. ``notes`` are findings: something did not end as it should."""

    brokers: Brokers
    parts: Supervisor
    topics: Topics
    rng: Random
    kills: int = 0
    notes: list[str] = field(default_factory=list[str])

    def one(self, part: str) -> Slot:
        """Any slot of a part, a living one where there is one."""
        slots = self.parts.of(part)
        return self.rng.choice([slot for slot in slots if slot.lives] or slots)

    async def kill(self, *slots: Slot) -> None:
        """SIGKILL, counted, once all of them live: a fault of the other lane may have ended one."""
        await until(lambda: all(slot.lives for slot in slots))
        self.kill_at_once(*slots)

    def kill_at_once(self, *slots: Slot) -> None:
        """SIGKILL to those that live, counted."""
        self.kills += sum(self.parts.kill(slot) for slot in slots)

    async def stop(self, slot: Slot) -> None:
        """SIGTERM; anything but exit status 0 is a finding."""
        self._judge(slot, await self.parts.stop(slot))

    async def remove(self, slot: Slot) -> None:
        """The same, for good."""
        self._judge(slot, await self.parts.remove(slot))

    def _judge(self, slot: Slot, status: int | None) -> None:
        if status not in (0, None):
            self.notes.append(f"{slot.name} ended with {status} when asked to stop")


Act = Callable[[Scene], Awaitable[str]]


@dataclass(frozen=True)
class Fault:
    """One kind of fault. ``act`` does it, which takes up to ``act_s``, and says to whom."""

    kind: str
    lane: Lane
    act: Act
    act_s: float = POINT_TIMEOUT_S


async def kill_worker(scene: Scene) -> str:
    slot = scene.one("worker")
    await scene.kill(slot)
    return slot.name


async def kill_workers(scene: Scene) -> str:
    await scene.kill(*scene.parts.of("worker"))
    return "all"


async def stop_worker(scene: Scene) -> str:
    slot = scene.one("worker")
    await scene.stop(slot)
    return slot.name


async def pause_worker(scene: Scene) -> str:
    return await _pause(scene, scene.one("worker"))


async def add_worker(scene: Scene) -> str:
    """One more worker, or one less where there are already many."""
    workers = scene.parts.of("worker")
    if len(workers) >= MOST_WORKERS:
        slot = scene.one("worker")
        await scene.remove(slot)
        return f"less: {slot.name}"
    slot = scene.parts.add(scene.parts.free_name("worker"), "worker")
    return f"more: {slot.name}"


async def remove_worker(scene: Scene) -> str:
    """One less, or one more where there are only as many as must be."""
    if len(scene.parts.of("worker")) <= STEADY_WORKERS:
        return await add_worker(scene)
    slot = scene.one("worker")
    await scene.remove(slot)
    return f"less: {slot.name}"


async def kill_sink(scene: Scene) -> str:
    slot = scene.one("sink")
    await scene.kill(slot)
    return slot.name


async def stop_sink(scene: Scene) -> str:
    slot = scene.one("sink")
    await scene.stop(slot)
    return slot.name


async def pause_sink(scene: Scene) -> str:
    """A sink that sleeps while another one takes over, and then wakes up."""
    slot = scene.one("sink")
    heir = scene.parts.add(scene.parts.free_name("sink"), "sink")
    name = await _pause(scene, slot)
    await scene.remove(heir)
    return name


async def kill_ledger(scene: Scene) -> str:
    slot = scene.one("ledger-server")
    await scene.kill(slot)
    return slot.name


async def stop_ledger(scene: Scene) -> str:
    slot = scene.one("ledger-server")
    await scene.stop(slot)
    return slot.name


async def pause_ledger(scene: Scene) -> str:
    return await _pause(scene, scene.one("ledger-server"))


async def kill_broker(scene: Scene) -> str:
    node = scene.brokers.nodes[scene.rng.randrange(len(scene.brokers.nodes))]
    return await _kill_nodes(scene, [node.node_id - 1])


async def kill_most_brokers(scene: Scene) -> str:
    """So many that the rest has no majority."""
    size = len(scene.brokers.nodes)
    return await _kill_nodes(scene, scene.rng.sample(range(size), size // 2 + 1))


async def pause_broker(scene: Scene) -> str:
    """A broker that answers nobody for a while and then goes on, as behind a cut network."""
    node = scene.rng.choice(scene.brokers.nodes)
    pause(node)
    try:
        await asyncio.sleep(scene.rng.uniform(*PAUSE_S))
    finally:
        resume(node)
    return f"broker {node.node_id}"


async def power_cut(scene: Scene) -> str:
    """SIGKILL to everything at the same moment."""
    scene.kill_at_once(*scene.parts.slots.values())
    return await _kill_nodes(scene, list(range(len(scene.brokers.nodes)))) + " and all parts"


def killing(role: str) -> Act:
    """Kills the broker that has ``role``."""

    async def act(scene: Scene) -> str:
        topics = scene.topics
        node = await scene.brokers.node_of(
            role, scene.rng, topics.worker_group, topics.events, topics.state
        )
        return await _kill_nodes(scene, [node])

    return act


def timeout_s(point: str) -> float:
    """How long a process may take until it passes ``point``."""
    return RESOLVED_POINT_TIMEOUT_S if point.startswith("corrections-") else POINT_TIMEOUT_S


def at_point(part: str, point: str) -> Act:
    """Replaces a process by one that SIGKILLs itself when it passes ``point`` for the n-th time."""
    limit_s = timeout_s(point)

    async def act(scene: Scene) -> str:
        slot = scene.one(part)
        passes = (1, 1, 2, 5) if point.startswith(("price-", "merge-", "sink-")) else (1,)
        slot.fault = f"{point}:{scene.rng.choice(passes)}"
        armed = slot.fault
        await scene.stop(slot)
        before = len(scene.parts.exits)

        def has_died() -> bool:
            new = scene.parts.exits[before:]
            return any(e.slot == slot.name and e.status == -signal.SIGKILL for e in new)

        try:
            async with asyncio.timeout(limit_s):
                await until(has_died)
        except TimeoutError:
            scene.notes.append(f"{slot.name} never passed {armed} within {limit_s:.0f} s")
            scene.kill_at_once(slot)
            return f"{slot.name} (not reached)"
        scene.kills += 1
        return f"{slot.name} at {armed}"

    return act


async def _pause(scene: Scene, slot: Slot) -> str:
    process = slot.process
    if process is None:
        return f"{slot.name} (was down)"
    slot.paused = True
    process.pause()
    try:
        await asyncio.sleep(scene.rng.uniform(*PAUSE_S))
    finally:
        process.resume()
        slot.paused = False
    await asyncio.sleep(1.0)  # what it still had in hand goes out now
    return slot.name


async def _kill_nodes(scene: Scene, indices: list[int]) -> str:
    nodes = [scene.brokers.nodes[index] for index in indices]
    for node in nodes:
        scene.kills += runs(node)
        node.kill()
    await asyncio.sleep(scene.rng.uniform(0.0, 3.0))
    await scene.brokers.start()
    return "broker " + ", ".join(str(node.node_id) for node in nodes)


def fault_points() -> list[str]:
    """Every named point that worker, sink and resolver pass in their daily work."""
    named = re.compile(r'\bpoint\(\s*"([a-z-]+)"')
    found = {
        name for path in PIPELINE.rglob("*.py") for name in named.findall(path.read_text("utf-8"))
    }
    return sorted(name for name in found if name.startswith(POINTS))


def all_faults(brokers: int) -> list[Fault]:
    """Every kind of fault for a cluster of so many brokers."""
    stream: dict[str, Act] = {
        "worker-kill": kill_worker,
        "workers-kill": kill_workers,
        "worker-stop": stop_worker,
        "worker-pause": pause_worker,
        "worker-add": add_worker,
        "worker-remove": remove_worker,
        "broker-pause": pause_broker,
        "power-cut": power_cut,
    }
    if brokers == 1:
        stream["broker-kill"] = kill_broker
    else:
        stream |= {f"broker-kill {role}": killing(role) for role in ROLES}
        stream["brokers-kill most"] = kill_most_brokers
    ledger: dict[str, Act] = {
        "sink-kill": kill_sink,
        "sink-stop": stop_sink,
        "sink-pause": pause_sink,
        "ledger-kill": kill_ledger,
        "ledger-stop": stop_ledger,
        "ledger-pause": pause_ledger,
    }
    for point in fault_points():
        if point.startswith(("sink-", "resolver-")):
            ledger[f"at {point}"] = at_point("sink", point)
        else:
            stream[f"at {point}"] = at_point("worker", point)
    lanes: dict[Lane, dict[str, Act]] = {"stream": stream, "ledger": ledger}
    return [
        Fault(kind, lane, act, timeout_s(kind.removeprefix("at ")))
        for lane, acts in lanes.items()
        for kind, act in acts.items()
    ]


def in_turn(faults: list[Fault], rng: Random) -> Iterator[Fault]:
    """Every fault once in a random order, then again in another, for ever."""
    while True:
        yield from rng.sample(faults, len(faults))
