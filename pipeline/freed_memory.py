"""Memory that was let go of: kept by the process for what comes next, or given back at once.

glibc gives large pieces back to the system at once, and the system fills each with zeros when it
is asked for again. Whoever reads and writes batches of hundreds of kilobytes, many times a second,
pays ten times for that what copying them costs.
"""

import ctypes
from typing import Final

KEPT_BYTES: Final = 64 * 1024 * 1024
"""So much may lie free at the end of each of glibc's heaps: memory beyond it is given back."""
LARGE_BYTES: Final = 32 * 1024 * 1024
"""From here on a piece is its own, given back when it is freed; glibc takes no higher bound."""

_TRIM_ALL: Final = 0

# <malloc.h>
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """For this process from now on; False where the C library is none that can be told to."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    trimmed = mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES) == 1
    return mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) == 1 and trimmed


def give_back_freed_memory() -> bool:
    """Once, after work that needed far more memory than what follows: what lies free goes back to
    the system. Whether anything did; False where the C library has no such call."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    malloc_trim.argtypes = (ctypes.c_size_t,)
    malloc_trim.restype = ctypes.c_int
    return malloc_trim(_TRIM_ALL) == 1
