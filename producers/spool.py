"""Events that wait to be sent: a bounded queue on disk that outlives the process.

Every process has a folder of its own below the destination's, locked for as long as it lives. A
folder whose lock is free belonged to a process that died; whoever finds it sends what it holds.

    SPOOL_DIR/DESTINATION/PID-RANDOM/lock
                                    /00000001.seg …
"""

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from producers.segment import SEGMENT_BYTES, Damaged, Entry, Segment
from producers.stats import LOST_FAILED, LOST_FULL, LostReason

MAX_DISK_BYTES = 256 * 1024 * 1024
"""Of all processes that send to one destination from this machine."""
MAX_MEMORY_BYTES = 16 * 1024 * 1024
"""Of one process, where no folder can be used."""

_LOCK = "lock"
_PREFIX_OF_NEW = "."


class Queue:
    """Entries of several segments, first to last.

    ``finished`` counts those that are done with, ``damaged`` those of them that cannot be read.
    """

    def __init__(self) -> None:
        self.damaged = 0
        self.finished = 0
        self._segments: deque[Segment] = deque()

    def peek(self, max_entries: int, max_bytes: int) -> list[Entry]:
        """The first unfinished entries, at least one where there is one, of one segment."""
        while self._segments:
            head = self._segments[0]
            is_passed = self._is_passed(head)  # asked first: until then something may be added
            entries = self._read(head, max_entries, max_bytes)
            if entries or not is_passed:
                return entries
            self._segments.popleft()
            head.remove()
        return []

    def finish(self, entries: Sequence[Entry]) -> None:
        """The first entries, as ``peek`` gave them, are done with."""
        self._segments[0].done = entries[-1].end
        self.finished += len(entries)

    def _is_passed(self, segment: Segment) -> bool:
        """Whether nothing will be added to the segment any more."""
        return True

    def _read(self, segment: Segment, max_entries: int, max_bytes: int) -> list[Entry]:
        entries: list[Entry] = []
        position, size = segment.done, 0
        while len(entries) < max_entries:
            try:
                entry = segment.read(position)
            except Damaged as damaged:
                if entries:  # first what comes before it
                    break
                self.damaged += 1
                self.finished += 1
                if damaged.end is None:
                    segment.end = position
                    break
                position = segment.done = damaged.end
                continue
            if entry is None:
                break
            size += len(entry.value)
            if entries and size > max_bytes:
                break
            entries.append(entry)
            position = entry.end
        return entries


class Orphan(Queue):
    """What a process that died has left behind, taken over."""

    def __init__(self, folder: Path, lock: int) -> None:
        super().__init__()
        self._folder = folder
        self._descriptor = lock
        for path in sorted(folder.glob("*.seg")):
            try:
                self._segments.append(Segment.open(path))
            except (OSError, ValueError, Damaged):
                self.damaged += 1
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Deletes the folder, once everything in it is finished."""
        _remove_folder(self._folder)
        os.close(self._descriptor)

    def close(self) -> None:
        """Leaves the rest to whoever comes next."""
        for segment in self._segments:
            segment.close()
        os.close(self._descriptor)


class Spool(Queue):
    """This process's own queue; ``append`` may be called from any thread.

    ``root`` is the destination's folder; None keeps the queue in memory. ``max_bytes`` bounds
    what all processes keep under ``root``. ``appended`` counts entries. Raises ``OSError`` where
    the folder cannot be used.
    """

    def __init__(self, root: Path | None, max_bytes: int | None = None) -> None:
        super().__init__()
        self.root = root
        default = MAX_MEMORY_BYTES if root is None else MAX_DISK_BYTES
        self._max_bytes = default if max_bytes is None else max_bytes
        self._lock = threading.Lock()
        self._count = 0
        self.appended = 0
        self._tags: dict[int, object] = {}
        self._next: Segment | None = None
        self._folder: Path | None = None
        self._descriptor = -1
        if root is not None:
            self._folder, self._descriptor = _new_folder(root)
        self._tail = self._new_segment()
        self._segments.append(self._tail)

    @property
    def is_on_disk(self) -> bool:
        return self.root is not None

    @property
    def waiting(self) -> int:
        """How many entries are unfinished."""
        return self.appended - self.finished

    def append(self, key: bytes, value: bytes, tag: object = None) -> LostReason | None:
        """Adds an entry, or returns why it cannot: ``LOST_FULL`` or ``LOST_FAILED``.

        Once it returns, the entry outlives this process. ``tag`` is kept beside it in memory.
        """
        with self._lock:
            number = self.appended
            if tag is not None:
                self._tags[number] = tag
            if not self._tail.append(key, value):
                trouble = self._go_on()
                if trouble is not None:
                    self._tags.pop(number, None)
                    return trouble
                self._tail.append(key, value)
            self.appended += 1
            return None

    def take_tag(self, index: int) -> object:
        """The tag of the unfinished entry with that place in the queue, which forgets it."""
        return self._tags.pop(self.finished + index, None)

    def prepare(self) -> None:
        """Makes the next segment ready where the current one fills up, for ``append``'s sake."""
        if self._next is None and self._tail.end > SEGMENT_BYTES // 2 and self._has_room():
            with contextlib.suppress(OSError):
                self._next = self._new_segment()

    def orphans(self) -> Iterator[Orphan]:
        """Takes over the folders of processes that died, one after the other."""
        if self.root is None:
            return
        with contextlib.suppress(OSError):
            for folder in sorted(self.root.iterdir()):
                if folder == self._folder or not folder.is_dir():
                    continue
                lock = _take_over(folder)
                if lock is not None:
                    yield Orphan(folder, lock)

    def close(self) -> None:
        """Removes the queue when it is empty, else leaves it to the next process."""
        segments = [*self._segments, *([] if self._next is None else [self._next])]
        is_empty = not self.waiting
        for segment in segments:
            if is_empty:
                segment.remove()
            else:
                segment.close()
        if self._folder is not None:
            if is_empty:
                _remove_folder(self._folder)
            os.close(self._descriptor)

    def abandon(self) -> None:
        """After a fork: it stays the parent's, and dies with the parent alone."""
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _is_passed(self, segment: Segment) -> bool:
        return segment is not self._tail

    def _go_on(self) -> LostReason | None:
        """Makes another segment the current one; returns why that cannot be done."""
        segment, self._next = self._next, None
        if segment is None:
            if not self._has_room():
                return LOST_FULL
            try:
                segment = self._new_segment()
            except OSError:
                return LOST_FAILED
        self._segments.append(segment)
        self._tail = segment
        return None

    def _new_segment(self) -> Segment:
        self._count += 1
        if self._folder is None:
            return Segment.create(None)
        return Segment.create(self._folder / f"{self._count:08d}.seg")

    def _has_room(self) -> bool:
        if self.root is None:
            return (len(self._segments) + 1) * SEGMENT_BYTES <= self._max_bytes
        used = 0
        with contextlib.suppress(OSError):
            used = sum(path.stat().st_size for path in self.root.glob("*/*.seg"))
        return used + SEGMENT_BYTES <= self._max_bytes


def spool_root(configured: Path | None, destination: str) -> Path:
    """The folder of one destination, made where it is missing, for this user alone.

    Without a configured folder it is one below the system's temporary folder, which outlives
    processes but perhaps not a restart of the machine. Raises ``OSError`` where it cannot be used.
    """
    # Together these take a tenth of the SDK's import time.
    import hashlib
    import tempfile

    base = configured
    if base is None:
        base = Path(tempfile.gettempdir()) / f"tallyport-spool-{os.getuid()}"
        base.mkdir(mode=0o700, exist_ok=True)
        found = base.lstat()
        if found.st_uid != os.getuid() or base.is_symlink():
            raise PermissionError(f"{base} belongs to somebody else")
    name = hashlib.blake2b(destination.encode(), digest_size=8).hexdigest()
    root = base / name
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    return root


def _new_folder(root: Path) -> tuple[Path, int]:
    """A folder of this process, and its lock, which it has from the moment it can be seen."""
    name = f"{os.getpid()}-{os.urandom(4).hex()}"
    hidden, folder = root / (_PREFIX_OF_NEW + name), root / name
    hidden.mkdir(mode=0o700)
    try:
        lock = os.open(hidden / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        hidden.rename(folder)
    except BaseException:
        _remove_folder(hidden)
        raise
    return folder, lock


def _take_over(folder: Path) -> int | None:
    """The lock of a folder whose owner has died; None while it lives or when another was first."""
    if folder.name.startswith(_PREFIX_OF_NEW):  # made by one who may not have locked it yet
        return None
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if (folder / _LOCK).stat().st_ino == os.fstat(lock).st_ino:
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        folder.rmdir()
