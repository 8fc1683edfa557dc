"""The keys as the running API knows them: read again whenever the file has changed."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.core.errors import ConfigurationError
from pipeline.settings import Settings, variable
from pipeline.web.key_file import Key, KeyTable, read_keys
from pipeline.web.loopback import is_loopback

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5

_Stamp = tuple[int, int, int]


def open_ring(settings: Settings) -> "KeyRing | None":
    """The keys of the API; None where there is no file, and so only this machine may ask.

    Raises ``ConfigurationError`` where the network could ask without a key, and for a file that
    is missing or damaged.
    """
    path = settings.api_keys_file
    if path is not None:
        if not path.is_file():
            raise ConfigurationError(f"{variable('api_keys_file')} no file at {path}")
        return KeyRing(path)
    if not is_loopback(settings.api_host):
        raise ConfigurationError(
            f"{variable('api_host')} must be a loopback address such as 127.0.0.1 "
            f"while {variable('api_keys_file')} is not set"
        )
    return None


class KeyRing:
    """Finds keys. A file that has become unreadable leaves the keys as they were, and is told of
    by ``problems``: a slip of the pen should not shut out every service."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ``ConfigurationError`` when the file cannot be read as keys."""
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._keys = read_keys(path)
        self._table = KeyTable(self._keys)
        self._looked_s = clock()
        self._problem: str | None = None

    def find(self, text: str) -> Key | None:
        """The key in use whose text this is."""
        self._look()
        return self._table.find(text)

    def with_id(self, key_id: str) -> Key | None:
        """The key in use that has this id."""
        self._look()
        return self._table.with_id(key_id)

    def history(self) -> tuple[Key, ...]:
        """Every key, revoked ones included."""
        self._look()
        return self._keys

    def problems(self) -> list[str]:
        """What is wrong with the file now."""
        self._look()
        return [self._problem] if self._problem else []

    def _look(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        stamp = _stamp(self._path)
        if stamp == self._stamp and self._problem is None:
            return
        try:
            self._keys = read_keys(self._path)
        except ConfigurationError as error:
            if self._problem is None:
                log.error("%s; the keys stay as they were", error)
            self._problem = str(error)
            return
        self._table = KeyTable(self._keys)
        self._stamp, self._problem = stamp, None
        log.info("%d keys in use", len(self._table))


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
