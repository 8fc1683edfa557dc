"""A disk that is really full: the kernel refuses what a process writes.

``Ballast`` fills a small file system to its last byte. ``small_file_system`` makes one, which needs
the right to mount, or takes the shared memory of a container, which is small. ``FileSizeLimit``
needs neither: no file of one process may grow any more (RLIMIT_FSIZE).
"""

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

SIZE_MB = 96
LARGEST_BYTES = 1 << 30
CHUNK_BYTES = 1 << 20
SHARED_MEMORY = Path("/dev/shm")


class SmallDisk(Protocol):
    """Full between ``fill`` and ``free``, for the process that was named."""

    def fill(self, pid: int) -> None:
        """No more space."""
        ...

    def free(self) -> None:
        """Space again."""
        ...


@contextmanager
def small_file_system(mount_point: Path) -> Iterator[Path | None]:
    """A folder on a file system of at most 1 GiB; None where there is no way to one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(mount_point)]
    if shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0:
        try:
            yield mount_point
        finally:
            subprocess.run(["umount", "--lazy", str(mount_point)], check=True)
    elif SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).total <= LARGEST_BYTES:
        with tempfile.TemporaryDirectory(prefix="tallyport-", dir=SHARED_MEMORY) as folder:
            yield Path(folder)
    else:
        yield None


class Ballast:
    """What takes the space on the file system of ``folder``, whoever writes there."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ballast"

    def fill(self, pid: int) -> None:
        with self._file.open("wb", buffering=0) as file:
            size = CHUNK_BYTES
            while size:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    size //= 2

    def free(self) -> None:
        self._file.unlink()


class FileSizeLimit:
    """The limit of one process, set from outside while it runs."""

    def __init__(self) -> None:
        self._pid = 0
        self._before = (0, 0)

    def fill(self, pid: int) -> None:
        self._pid = pid
        self._before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, self._before[1]))

    def free(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, self._before)
