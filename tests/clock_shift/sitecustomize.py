"""On a part's PYTHONPATH this shifts its wall clock: by the seconds in the file ``CLOCK_SHIFT``.

The file may change at any time; the monotonic clock goes on as it is, as on a machine whose clock
somebody sets.
"""

import os
import time

_file = os.environ.get("CLOCK_SHIFT", "")
_real_time, _real_time_ns, _monotonic = time.time, time.time_ns, time.monotonic
_shift_s, _read_at_s = 0, float("-inf")


def _shift() -> int:
    global _shift_s, _read_at_s
    if _monotonic() - _read_at_s > 0.05:
        _read_at_s = _monotonic()
        with open(_file, encoding="ascii") as file:  # noqa: PTH123
            _shift_s = int(file.read() or 0)
    return _shift_s


if _file:
    time.time = lambda: _real_time() + _shift()
    time.time_ns = lambda: _real_time_ns() + _shift() * 1_000_000_000
