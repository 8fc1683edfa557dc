"""A process that is told to keeps what it let go of, or gives it back, once."""

import platform
import subprocess
import sys

LIBC = platform.libc_ver()[0]
BUFFERS = """
import resource, sys
from pipeline.freed_memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory() == (sys.argv[2] == "glibc")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for _ in range(50):
        parts = [bytes(1_000_000) for _ in range(4)]
        b"".join(parts)

work()
before = faults()
work()
print(faults() - before)
"""

PIECES = """
import sys
from pipeline.freed_memory import give_back_freed_memory, keep_freed_memory

def resident_pages():
    return int(open("/proc/self/statm").read().split()[1])

keep_freed_memory()
pieces = [bytes(2_000) for _ in range(40_000)]
last = pieces.pop()  # else they are the end of the heap, which is cut off by itself
pieces.clear()
before = resident_pages()
assert give_back_freed_memory() == (sys.argv[2] == "glibc")
print((before - resident_pages()) * 4096)
"""


def printed(script: str, mode: str = "") -> int:
    done = subprocess.run(
        [sys.executable, "-c", script, mode, LIBC],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


def test_large_buffers_are_not_asked_for_again() -> None:
    kept, given_back = printed(BUFFERS, "kept"), printed(BUFFERS, "given back")
    assert kept * 20 < given_back or LIBC != "glibc"


def test_what_lies_free_goes_back() -> None:
    assert printed(PIECES) > 60_000_000 or LIBC != "glibc"
