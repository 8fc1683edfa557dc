"""Runs a command that cannot outlive the process that asked for it, not even by a SIGKILL.

Run as a script, ``tether.py PARENT_PID COMMAND...``: on Linux the kernel is asked to kill this
process when its parent's thread ends, and then the command replaces it under the same pid; the
request survives the exec. Elsewhere the script stays, passes signals on, and kills the command
once its parent has changed. It imports nothing of the project, so that it starts in milliseconds.
"""

import os
import signal
import sys
import time

POLL_S = 0.2


def tethered(command: list[str]) -> list[str]:
    """``command`` tied to the calling process; it must be started from the main thread.

    The kernel watches the thread that starts a child, so a child started from a thread of a pool
    would die with that thread.
    """
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _die_with_parent() -> None:
    import ctypes

    pr_set_pdeathsig = 1
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _watch(parent_pid: int, command: list[str]) -> int:
    import subprocess

    child = subprocess.Popen(command)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _frame: child.send_signal(number))
    while child.poll() is None:
        if os.getppid() != parent_pid:
            child.kill()
        time.sleep(POLL_S)
    return child.returncode


def main() -> int:
    parent_pid, command = int(sys.argv[1]), sys.argv[2:]
    if not sys.platform.startswith("linux"):
        return _watch(parent_pid, command)
    _die_with_parent()
    if os.getppid() != parent_pid:  # it died before the request was in place
        return 1
    return os.execvp(command[0], command)  # replaces this process


if __name__ == "__main__":
    sys.exit(main())
