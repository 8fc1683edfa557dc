"""Compiles ``slice.c`` to a library beside it: ``python -m pipeline.native.build [--required]``.

The library is plain C behind ``ctypes``: it needs a C compiler (``CC``, or ``cc``), no headers of
Python, and serves every version of it. Without a compiler there is none, and the worker does all
of it in Python: the same totals, at a third of the speed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("slice.c")
LIBRARY = Path(__file__).with_name("libslice.so")
# Not -march=native: an image is built on one machine and runs on others.
FLAGS = ("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden")
COMPILE_TIMEOUT_S = 120.0


class NotCompiled(Exception):
    """There is no C compiler, or it failed."""


def source_digest() -> str:
    """Names the source, so that a library of another one is noticed."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]


def compile_library(target: Path = LIBRARY, more_flags: tuple[str, ...] = ()) -> None:
    """Compiles it to ``target``, which appears at once or not at all. Raises ``NotCompiled``."""
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or ""]
    if not compiler[0]:
        raise NotCompiled("no C compiler (cc) on the path, and CC is not set")
    defined = f'-DTP_SOURCE="{source_digest()}"'
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler, *FLAGS, *more_flags, defined, "-o", str(made), str(SOURCE)]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotCompiled(f"{compiler[0]}: {error}") from error
        if ran.returncode:
            raise NotCompiled(f"{compiler[0]} failed:\n{ran.stderr.strip()}")
        made.replace(target)


def main() -> None:
    """Compiles it. Without a compiler says what follows from that, which is an error only where
    the library is ``--required``."""
    try:
        compile_library()
    except NotCompiled as error:
        if "--required" in sys.argv[1:]:
            sys.exit(f"not compiled: {error}")
        LIBRARY.unlink(missing_ok=True)
        print(f"not compiled, the worker runs at a third of its speed: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
