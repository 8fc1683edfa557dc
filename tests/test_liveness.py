"""The watchdog: what stands still while something waits is told, and nothing else is."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import metrics
from pipeline.liveness import LOST_TIME_S, STALL_S, Sighting, Watchdog, loop_pulse
from pipeline.stream.flow_watch import thread_look

STEP_S = 0.5
GIVE_UP_S = 20.0


class Scene:
    """A watchdog with a clock of its own, and the one thing it looks at."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.given_up: list[str] = []
        self.seen: Mapping[str, Sighting] = {}
        self.dog = Watchdog(self.given_up.append, lambda: self.now_s)
        self.dog.watch("test", lambda: self.seen, GIVE_UP_S)

    def show(self, position: object, waiting: str) -> None:
        self.seen = {"the worker": Sighting(position, waiting)}

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now_s += STEP_S
            self.dog.look()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def stalled_s() -> float | None:
    return metrics.REGISTRY.get_sample_value("tallyport_stalled_seconds", {"what": "test"})


def test_what_has_nothing_to_do_may_stand(scene: Scene) -> None:
    scene.show(5, "")
    scene.run(100)
    assert scene.dog.problems() == []
    assert stalled_s() == 0


def test_what_moves_is_well_however_much_waits(scene: Scene) -> None:
    for position in range(50):
        scene.show(position, "much waits")
        scene.run(STALL_S - 1)
        assert scene.dog.problems() == []


def test_what_stands_while_work_waits_is_told_within_ten_seconds(scene: Scene) -> None:
    scene.show(5, "")
    scene.run(100)
    scene.show(5, "3 records wait")
    scene.run(10)
    assert scene.dog.problems() == ["the worker has not moved for 10 s: 3 records wait"]
    assert scene.dog.own_problems() == scene.dog.problems()
    assert stalled_s() == pytest.approx(10, abs=1)
    scene.show(6, "2 records wait")
    scene.run(STEP_S)
    assert scene.dog.problems() == []
    assert scene.given_up == []


def test_what_never_moves_is_given_up_once(scene: Scene) -> None:
    scene.show(5, "3 records wait")
    scene.run(GIVE_UP_S + 10)
    assert scene.given_up == [f"the worker has not moved for {GIVE_UP_S:.0f} s: 3 records wait"]


def test_time_in_which_nobody_looked_does_not_count(scene: Scene) -> None:
    scene.show(5, "3 records wait")
    scene.run(2)
    scene.now_s += 10 * GIVE_UP_S + LOST_TIME_S
    scene.run(STALL_S - 3)
    assert scene.dog.problems() == []
    scene.run(3)
    assert len(scene.dog.problems()) == 1


def test_each_is_seen_for_itself(scene: Scene) -> None:
    for position in range(int(10 / STEP_S)):
        scene.seen = {"one": Sighting(position, "x"), "other": Sighting(0, "y")}
        scene.run(STEP_S)
    assert [line.split()[0] for line in scene.dog.problems()] == ["other"]
    scene.seen = {}
    scene.run(STEP_S)
    assert scene.dog.problems() == []


def test_what_lies_elsewhere_is_no_reason_to_restart(scene: Scene) -> None:
    scene.show(0, "")
    scene.dog.watch("broker", lambda: {"it": Sighting(0, "no answer")}, 60, restart_helps=False)
    scene.run(10)
    assert (len(scene.dog.problems()), scene.dog.own_problems()) == (1, [])


async def test_a_fetching_thread_that_has_ended_is_given_up(scene: Scene) -> None:
    running, ended = asyncio.get_running_loop(), asyncio.new_event_loop()
    ended.close()
    slices: Any = SimpleNamespace(fetching=None, fetch_loop=ended)
    scene.dog.watch("fetch", thread_look(lambda: slices), STALL_S)
    scene.run(3 * STALL_S)  # before it has begun
    slices.fetching, slices.fetch_loop = object(), running
    scene.run(3 * STALL_S)
    assert scene.given_up == []
    slices.fetch_loop = ended
    scene.run(STALL_S + 2)
    assert [line for line in scene.given_up if "has ended and cannot go on" in line]


async def test_an_event_loop_that_answers_moves() -> None:
    look = loop_pulse(asyncio.get_running_loop(), "the worker")
    first = look()["the worker"]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert look()["the worker"].position != first.position
    loop = asyncio.new_event_loop()
    loop.close()
    gone = loop_pulse(loop, "the worker")
    assert gone() == gone() == {"the worker": Sighting(0, "its event loop does not answer")}


BLOCKED = """
import asyncio, time
from pipeline import liveness
liveness.STALL_S = 0.2
liveness.GRACE_S = 0.2

async def main():
    loop = asyncio.get_running_loop()
    dog = liveness.Watchdog(liveness.end_through(loop, print))
    dog.watch("loop", liveness.loop_pulse(loop, "the worker"), 1.0)
    dog.start()
    time.sleep(60)

asyncio.run(main())
"""


def test_a_process_with_a_blocked_event_loop_ends_with_one_line() -> None:
    started_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, timeout=50, check=False
    )
    assert time.monotonic() - started_s < 50
    assert ended.returncode == 1
    assert ended.stderr.startswith("tallyport: the worker has not moved for ")
    assert ended.stderr.count("\n") == 1
