"""Bytewax: whole batches from a source of our own, folded by a stateful step for each partition.

Bytewax's own Kafka source makes an object of every message, and a step keyed by cell costs a call
per cell; so the source hands over lists of values, and a partition's state is one logic that holds
all of its cells. Variant ``recovery`` keeps snapshots of state and offsets at the end of each epoch
(``EPOCH``; without it the epochs are those that Bytewax comes with), from which it would resume.
"""

import pickle
import tempfile
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from bytewax import operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main
from confluent_kafka import Consumer, TopicPartition

from pipeline.bench.job import Amounts, Folding, Key
from pipeline.bench.process_cost import Stopwatch
from pipeline.bench.task import Measured, Task, answer, measured, task_of_this_process

RECOVERY = "recovery"
BATCH_RECORDS = 5_000
FETCH_BYTES = 4 * 1024 * 1024
QUEUED_RECORDS = 100_000
EPOCH = timedelta(seconds=1)
"""As often as the worker promises a changed state at the latest."""

Batch = tuple[str, list[bytes | None]]


class _Partition(StatefulSourcePartition):
    """One partition of the topic, from ``offset`` to where it ends now."""

    def __init__(self, task: Task, number: int, offset: int, begun: list[Stopwatch]) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": task.kafka,
                "group.id": "bytewax",
                "enable.auto.commit": False,
                "fetch.message.max.bytes": FETCH_BYTES,
                "queued.min.messages": QUEUED_RECORDS,
            }
        )
        place = TopicPartition(task.topic, number, offset)
        _, self._end = self._consumer.get_watermark_offsets(place)
        self._consumer.assign([place])
        self._key, self._offset = str(number), offset
        self._task, self._begun = task, begun

    def next_batch(self) -> Iterable[Batch]:
        if self._offset >= self._end:
            raise StopIteration
        records = self._consumer.consume(BATCH_RECORDS, 0.001)
        if not records:
            return []
        if not self._begun:
            self._begun.append(self._task.stopwatch())
        failed = [record.error() for record in records if record.error()]
        if failed:
            raise RuntimeError(str(failed[0]))
        self._offset = records[-1].offset() + 1
        return [(self._key, [record.value() for record in records])]

    def snapshot(self) -> int:
        return self._offset

    def close(self) -> None:
        self._consumer.close()


class _Topic(FixedPartitionedSource):
    def __init__(self, task: Task, begun: list[Stopwatch]) -> None:
        self._task, self._begun = task, begun

    def list_parts(self) -> list[str]:
        return [str(number) for number in range(self._task.partitions)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Partition:
        return _Partition(self._task, int(for_part), resume_state or 0, self._begun)


class _Totals(StatefulBatchLogic):
    """The cells of one partition."""

    def __init__(self, resume_state: bytes | None) -> None:
        self._folding = Folding()
        if resume_state is not None:
            self._folding.totals = pickle.loads(resume_state)

    def on_batch(self, values: list[list[bytes | None]]) -> tuple[Iterable[Any], bool]:
        for batch in values:
            self._folding.fold(batch)
        return (), False

    def on_eof(self) -> tuple[Iterable[Any], bool]:
        return [list(self._folding.totals.cells())], False

    def snapshot(self) -> bytes:
        return pickle.dumps(self._folding.totals, pickle.HIGHEST_PROTOCOL)


class _Collected(StatelessSinkPartition):
    def __init__(self, into: list[tuple[Key, Amounts]]) -> None:
        self._into = into

    def write_batch(self, items: list[tuple[str, list[tuple[Key, Amounts]]]]) -> None:
        for _, cells in items:
            self._into.extend(cells)


class _Collecting(DynamicSink):
    def __init__(self, into: list[tuple[Key, Amounts]]) -> None:
        self._into = into

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Collected:
        return _Collected(self._into)


def run(task: Task, scratch: Path) -> Measured:
    """Takes every event of the task; the time runs from the first to the flow's end."""
    begun: list[Stopwatch] = []
    found: list[tuple[Key, Amounts]] = []
    flow = Dataflow("bench")
    batches = op.input("events", flow, _Topic(task, begun))
    totals = op.stateful_batch("totals", batches, _Totals)
    op.output("end", totals, _Collecting(found))
    if task.variant == RECOVERY:
        init_db_dir(scratch, 1)
        run_main(flow, epoch_interval=EPOCH, recovery_config=RecoveryConfig(scratch))
    else:
        run_main(flow)
    cost = begun[0].read()
    taken = sum(requests for (scope, _), (requests, *_) in found if scope.startswith("port:"))
    return measured(taken, cost, found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        answer(run(task_of_this_process(), Path(folder)))
