"""Quix Streams: one stateful update per event, with its RocksDB state and changelog topics.

Written for speed within what it promises: raw keys and values, cells as bytes in MessagePack, no
step but one, the commit interval it comes with (5 s). Its state belongs to the key of a message,
which is the port; so a user's cell is kept per port, and the cells of a user are added up at the
end, as the worker's merge does for partitions. Keyed by user a second time, every event would
travel through Kafka once more.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from quixstreams import Application
from rocksdict import Options, Rdict

from pipeline.bench.job import Amounts, Job, Key
from pipeline.bench.process_cost import Stopwatch
from pipeline.bench.task import Measured, Task, answer, measured, task_of_this_process

FETCH_BYTES = 4 * 1024 * 1024
PORT = "*"
"""Where the cell of the port itself stands among those of its users."""

_dumps = msgspec.msgpack.Encoder().encode
_loads = msgspec.msgpack.Decoder(Amounts).decode


def run(task: Task, scratch: Path) -> Measured:
    """Takes every event of the task; the time runs from the first to the last commit."""
    app = Application(
        task.kafka,
        consumer_group=f"quix-{time.time_ns()}",
        auto_offset_reset="earliest",
        state_dir=scratch,
        loglevel="WARNING",
        consumer_extra_config={"fetch.message.max.bytes": FETCH_BYTES},
    )
    topic = app.topic(task.topic, value_deserializer="bytes", key_deserializer="bytes")
    job = Job()
    begun: list[Stopwatch] = []
    taken = 0

    def count(value: bytes, state: Any) -> None:
        nonlocal taken
        if not taken:
            begun.append(task.stopwatch())
        usage = job.read(value)
        if usage is not None:
            for key in (f"{PORT}|{usage.day}", f"{usage.user_id}|{usage.day}"):
                found = state.get_bytes(key)
                requests, tokens, cost_nano = _loads(found) if found is not None else (0, 0, 0)
                amounts = (requests + 1, tokens + usage.tokens, cost_nano + usage.cost_nano)
                state.set_bytes(key, _dumps(amounts))
        taken += 1
        if taken == task.events:
            app.stop()

    app.dataframe(topic).update(count, stateful=True)
    app.run()  # returns after its last commit
    return measured(taken, begun[0].read(), _cells(scratch))


def _cells(folder: Path) -> Iterator[tuple[Key, Amounts]]:
    """What stands in the state stores, which have been closed."""
    for current in folder.rglob("CURRENT"):
        store = Rdict(str(current.parent), options=Options(raw_mode=True))
        for key, value in store.items():
            port, _, own = key.decode().partition("|")
            name, _, day = own.strip('"').rpartition("|")
            scope = f"port:{port}" if name == PORT else f"user:{name}"
            yield (scope, int(day)), _loads(value)
        store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer(run(task_of_this_process(), Path(folder)))
