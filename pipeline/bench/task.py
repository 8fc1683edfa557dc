"""What a contender of ``tallyport bench stream`` is told, and what it answers.

One JSON argument in, one JSON line out: contenders run in processes, and some in environments, of
their own. Imports only what the peers' environment has.
"""

import os
import sys
from collections.abc import Iterable

import msgspec

from pipeline.bench.job import Amounts, Key, digest
from pipeline.bench.process_cost import Stopwatch


class Task(msgspec.Struct, frozen=True):
    """Read the first ``events`` of ``topic``, which holds as many, and add them up.

    ``broker_pid`` is whose processor time is the broker's share; ``variant`` chooses among the
    ways a module knows.
    """

    kafka: str
    topic: str
    partitions: int
    events: int
    broker_pid: int
    variant: str = ""

    def encode(self) -> str:
        """The argument of a child process."""
        return msgspec.json.encode(self).decode()

    def stopwatch(self) -> Stopwatch:
        """Measures the calling process and the broker from now on."""
        return Stopwatch(os.getpid(), self.broker_pid)


class Measured(msgspec.Struct, frozen=True):
    """What reading ``events`` took; ``digest`` identifies the totals (``job.digest``).

    ``cpu_s`` is the contender's processor time, ``broker_cpu_s`` the broker's meanwhile.
    """

    events: int
    seconds: float
    cpu_s: float
    broker_cpu_s: float
    peak_mb: float
    cells: int
    digest: str

    @property
    def events_per_s(self) -> float:
        return self.events / self.seconds

    @property
    def cpu_us(self) -> float:
        """Processor microseconds per event: as many seconds per million."""
        return self.cpu_s / self.events * 1e6

    @property
    def broker_cpu_us(self) -> float:
        """The broker's processor microseconds per event."""
        return self.broker_cpu_s / self.events * 1e6


_task_decoder = msgspec.json.Decoder(Task)
_measured_decoder = msgspec.json.Decoder(Measured)


def task_of_this_process() -> Task:
    """The task in the command line; raises ``ValueError`` where there is none."""
    return _task_decoder.decode(sys.argv[1])


def measured(events: int, cost: dict[str, float], cells: Iterable[tuple[Key, Amounts]]) -> Measured:
    """The answer of a contender that took ``events`` at ``cost`` (``Stopwatch.read``)."""
    found = list(cells)
    distinct = len({key for key, _ in found})
    return Measured(events, **cost, cells=distinct, digest=digest(found))


def answer(result: Measured) -> None:
    """Prints ``result`` for the parent."""
    print(msgspec.json.encode(result).decode(), flush=True)


def read_answer(output: str) -> Measured:
    """The answer in what a child printed; raises ``ValueError`` where there is none."""
    lines = output.strip().splitlines()
    return _measured_decoder.decode(lines[-1] if lines else "")
