"""Named points where a test may kill the process, as the kernel or a power cut would.

``FAULT_POINT=name:count`` in the environment arms one point: the process gets SIGKILL the
``count``-th time it passes there. With ``name:count:hang`` the thread that passes there stands
still for ever instead. Unarmed, passing a point costs one comparison.
"""

import os
import signal
import threading

_armed, _, _rest = os.environ.get("FAULT_POINT", "").partition(":")
_count, _, _mode = _rest.partition(":")
_passes_left = int(_count) if _count.isdecimal() else 1


def point(name: str) -> None:
    """Ends or stops the process here if a test has armed this point."""
    if name == _armed:
        _pass()


def _pass() -> None:
    global _passes_left
    _passes_left -= 1
    if _passes_left > 0:
        return
    if _mode == "hang":
        threading.Event().wait()
    os.kill(os.getpid(), signal.SIGKILL)
