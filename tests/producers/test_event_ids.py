"""Event ids are drawn in advance, and still nobody ever gets one twice."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor

from producers.events import new_event_id

COUNT = 2_000


def draw(count: int = COUNT) -> list[str]:
    return [new_event_id() for _ in range(count)]


def test_they_are_random_uuids() -> None:
    for text in draw():
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)


def test_threads_never_share_one() -> None:
    with ThreadPoolExecutor(8) as pool:
        drawn = [text for part in pool.map(draw, [COUNT] * 16) for text in part]
    assert len(set(drawn)) == 16 * COUNT


def test_parent_and_child_never_share_one() -> None:
    new_event_id()  # some are drawn in advance by now
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, "\n".join(draw(100)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read().split("\n")
    os.waitpid(child, 0)
    ours = draw(100)
    assert len({*theirs, *ours}) == 200
