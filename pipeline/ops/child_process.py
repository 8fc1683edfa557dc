"""One process of a deployment: tied to its parent, its output in a log file, stopped in time."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.ops.tether import tethered

LOG_LIMIT_BYTES = 8 * 1024 * 1024
READY_WITHIN_BYTES = 1024 * 1024
TAIL_BYTES = 16 * 1024
KILL_WAIT_S = 10.0
# How the lines of our own processes, of Python and of Kafka's logger begin that tell of an end.
_ERROR = re.compile(
    r"tallyport: |[\w.]+(Error|Exception|Failed)\b|.{0,200} (ERROR|FATAL|CRITICAL) "
)


class ChildProcess:
    """A command run in a session of its own, so that Ctrl-C reaches only the parent.

    Standard output and standard error go to ``log_file``, behind what it holds. ``inherited`` are
    file descriptors the child keeps open, such as a lock that is to be held until the last child
    has gone.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: Path,
        env: Mapping[str, str] | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("a child process must be started from the main thread")
        self.name = name
        self.log_file = log_file
        log_file.parent.mkdir(parents=True, exist_ok=True)
        _rotate(log_file)
        with log_file.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                tethered(list(command)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if env is None else dict(env),
                start_new_session=True,
                pass_fds=tuple(inherited),
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def exit_status(self) -> int | None:
        """The exit status once it has ended (negative: the signal that ended it), else None."""
        return self.process.poll()

    def terminate(self) -> None:
        """Ask it to stop (SIGTERM); does not wait."""
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def stop(self, timeout_s: float) -> int:
        """SIGTERM, and SIGKILL when it still runs after ``timeout_s``; the exit status."""
        self.terminate()
        try:
            return self._wait(timeout_s)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """SIGKILL, also for a stopped process; returns once it has gone."""
        self.send(signal.SIGKILL)
        return self._wait(KILL_WAIT_S)

    def ready_line(self) -> str | None:
        """The line that starts with ``ready`` among what it has printed so far."""
        with self.log_file.open("rb") as file:
            file.seek(self._log_start)
            printed = file.read(READY_WITHIN_BYTES).decode("utf-8", "replace")
        for line in printed.splitlines(keepends=True):
            if line.startswith("ready") and line.endswith("\n"):
                return line.rstrip()
        return None

    def log_note(self) -> str:
        """The end of a message about its failure: the last error in its log, and where that is."""
        error = last_error(self.log_file, self._log_start)
        return f": {error} (its log: {self.log_file})" if error else f"; its log: {self.log_file}"

    def _wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)


def last_error(path: Path, start: int = 0) -> str:
    """The last line of a log, behind byte ``start``, that tells of an error; empty without one."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    errors = [line for line in text.splitlines() if _ERROR.match(line)]
    return errors[-1].removeprefix("tallyport: ").strip() if errors else ""


def _rotate(log_file: Path) -> None:
    if log_file.is_file() and log_file.stat().st_size > LOG_LIMIT_BYTES:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))
