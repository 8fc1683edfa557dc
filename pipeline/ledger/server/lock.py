"""One process per data folder, and one address per process."""

import errno
import fcntl
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pipeline.core.errors import ConfigurationError, Refused

HOST: Final = "127.0.0.1"
_LOCK_FILE: Final = "lock"
_BACKLOG: Final = 128


@contextmanager
def folder_lock(folder: Path) -> Generator[None]:
    """Holds the lock of a ledger folder; the system frees it when the process ends, however.

    Raises:
        Refused: another process has it; the message names the folder and that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Refused(
                f"the ledger in {folder} is already served by process {owner}; stop it first, "
                "or set TALLYPORT_DATA_DIR to another folder"
            ) from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(file)


def listen(port: int) -> socket.socket:
    """A socket listening on ``port`` of this machine only; 0 takes any free one.

    Raises:
        ConfigurationError: the port cannot be had; the message names it.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Inherited by the connections; without it each answer would wait for a delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        listener.bind((HOST, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
        raise ConfigurationError(f"TALLYPORT_LEDGER_PORT: port {port} on {HOST} {why}") from error
    return listener
