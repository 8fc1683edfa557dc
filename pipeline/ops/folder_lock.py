"""One owner per data folder, and its children count: the lock falls when the last one has gone."""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

from pipeline.core.errors import Refused

LEFTOVER_WAIT_S = 15.0
_POLL_S = 0.05


class FolderLock:
    """An exclusive lock file that names its owner's pid.

    Pass ``fileno()`` on to child processes: they hold the lock too, so a new owner does not start
    beside what is still dying of an old one. When the owner itself has gone, ``acquire`` waits up
    to ``LEFTOVER_WAIT_S`` for its children. Raises ``Refused`` while another owner lives; what
    may be done then is in ``advice``.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        advice: str = "stop it first, or set TALLYPORT_DATA_DIR to another folder",
    ) -> None:
        self._path = path
        self._what = what
        self._advice = advice
        self._fd = -1

    def acquire(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LEFTOVER_WAIT_S
        while not _try_lock(fd):
            owner_pid = _read_pid(fd)
            if _lives(owner_pid) or time.monotonic() > deadline:
                os.close(fd)
                raise Refused(
                    f"{self._what} is already running on {self._path.parent} (process "
                    f"{owner_pid}); {self._advice}"
                )
            time.sleep(_POLL_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        self._fd = fd
        return self

    def fileno(self) -> int:
        return self._fd

    def release(self) -> None:
        """Let go; children that were given the descriptor keep the lock until they end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(fd: int) -> int:
    text = os.pread(fd, 20, 0)
    return int(text) if text.isdigit() else 0


def _lives(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
