"""A process that is told to keeps what it let go of, instead of asking for it again."""

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


def faults(mode: str) -> int:
    printed = subprocess.run(
        [sys.executable, "-c", BUFFERS, mode, LIBC],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    return int(printed)


def test_large_buffers_are_not_asked_for_again() -> None:
    kept, given_back = faults("kept"), faults("given back")
    assert kept * 20 < given_back or LIBC != "glibc"
