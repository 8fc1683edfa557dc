"""One piece of the spool: entries in a memory-mapped file, each written before its length is.

A write into the mapping is in the system's page cache at once: it survives the death of the
process by any signal, though not that of the machine. Layout, little-endian:

    0   8  magic
    8   8  where the first unfinished entry starts
    16     entries: u32 length of the rest | u32 CRC-32 of the rest | u16 length of the key | key |
           value; a length of 0 ends them
"""

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

SEGMENT_BYTES = 1024 * 1024
_MAGIC = b"TALLYSP1"
_FIRST = 16
_HEAD = struct.Struct("<IIH")
_LENGTH = struct.Struct("<I")
_DONE = struct.Struct("<Q")
_REST_OF_HEAD = 6


class Entry(NamedTuple):
    """A key and value, and where the next entry starts."""

    key: bytes
    value: bytes
    end: int


class Damaged(Exception):
    """What stands there is no entry; ``end`` is where the next one starts, None if unknown."""

    def __init__(self, end: int | None) -> None:
        super().__init__("damaged spool entry")
        self.end = end


class Segment:
    """Appended to by one process; ``end`` is where the next entry goes."""

    def __init__(self, memory: mmap.mmap, path: Path | None) -> None:
        self.path = path
        self._memory = memory
        self._size = len(memory)
        self.end = _FIRST

    @classmethod
    def create(cls, path: Path | None, size: int = SEGMENT_BYTES) -> "Segment":
        """An empty segment in a new file, or without a path in memory only.

        Its space is allocated now, or a full disk would kill the process at a later write.
        Raises ``OSError`` when there is no room.
        """
        if path is None:
            memory = mmap.mmap(-1, size)
        else:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _allocate(descriptor, size)
                memory = mmap.mmap(descriptor, size)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        memory[0:8] = _MAGIC
        _DONE.pack_into(memory, 8, _FIRST)
        return cls(memory, path)

    @classmethod
    def open(cls, path: Path) -> "Segment":
        """A segment that a dead process left. Raises ``OSError`` or ``Damaged``."""
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size < _FIRST:
                raise Damaged(None)
            memory = mmap.mmap(file.fileno(), 0)
        if memory[0:8] != _MAGIC:
            memory.close()
            raise Damaged(None)
        segment = cls(memory, path)
        segment.end = segment._size
        return segment

    @property
    def done(self) -> int:
        """Where the first unfinished entry starts; what comes before it is never sent again."""
        return min(max(_DONE.unpack_from(self._memory, 8)[0], _FIRST), self._size)

    @done.setter
    def done(self, position: int) -> None:
        _DONE.pack_into(self._memory, 8, position)

    def append(self, key: bytes, value: bytes) -> bool:
        """Writes an entry; False when it does not fit."""
        start = self.end
        body = start + _HEAD.size
        end = body + len(key) + len(value)
        if end > self._size - _LENGTH.size:
            return False
        memory = self._memory
        memory[body : body + len(key)] = key
        memory[body + len(key) : end] = value
        crc = zlib.crc32(value, zlib.crc32(key))
        # The length is what makes it an entry, so it is written last.
        _HEAD.pack_into(memory, start, 0, crc, len(key))
        _LENGTH.pack_into(memory, start, end - start - _LENGTH.size)
        self.end = end
        return True

    def read(self, position: int) -> Entry | None:
        """The entry that starts at ``position``, None where they end. Raises ``Damaged``."""
        memory = self._memory
        if position + _HEAD.size > self.end:
            return None
        length, crc, key_length = _HEAD.unpack_from(memory, position)
        if length == 0:
            return None
        end = position + _LENGTH.size + length
        if end > self.end:
            raise Damaged(None)
        if key_length > length - _REST_OF_HEAD:
            raise Damaged(end)
        start = position + _HEAD.size
        key, value = memory[start : start + key_length], memory[start + key_length : end]
        if zlib.crc32(value, zlib.crc32(key)) != crc:
            raise Damaged(end)
        return Entry(key, value, end)

    def remove(self) -> None:
        """Closes the segment and deletes its file."""
        self._memory.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the segment and leaves its file."""
        self._memory.close()


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for _ in range(0, size, 65_536):
        os.write(descriptor, bytes(min(65_536, size)))
