"""What a stretch of work cost: seconds, processor time of its process and of the broker, memory."""

import os
import time
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor seconds of a process so far, its threads included; 0 where that cannot be read.

    Those of other processes come in ticks of the system, mostly of 10 ms.
    """
    if pid == os.getpid():
        return time.process_time()
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()  # its name may hold blanks and brackets
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def peak_mb(pid: int) -> float:
    """The process's peak resident memory, 0 where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        return 0.0
    return 0.0


def resident_mb(pid: int) -> float:
    """The process's resident memory now. Raises ``OSError`` when it has ended."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


class Stopwatch:
    """Runs from its making on, for process ``pid`` and the broker's process."""

    def __init__(self, pid: int, broker_pid: int) -> None:
        self._pid, self._broker_pid = pid, broker_pid
        self._cpu_s, self._broker_cpu_s = cpu_s(pid), cpu_s(broker_pid)
        self._started_s = time.perf_counter()

    def read(self) -> dict[str, float]:
        """``seconds``, ``cpu_s``, ``broker_cpu_s`` since it was made, and ``peak_mb``.

        Work took some processor time, so less of it than one tick is told as one.
        """
        return {
            "seconds": time.perf_counter() - self._started_s,
            "cpu_s": max(_TICK_S, cpu_s(self._pid) - self._cpu_s),
            "broker_cpu_s": cpu_s(self._broker_pid) - self._broker_cpu_s,
            "peak_mb": peak_mb(self._pid),
        }
