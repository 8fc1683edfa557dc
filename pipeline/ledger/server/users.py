"""Who is asking: the reader (no password, this machine only), the sink, and holders of API keys."""

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.core.errors import TallyportError
from pipeline.ledger.server.errors import AUTHENTICATION_FAILED, QueryError
from pipeline.web.key_file import ADMIN, READ
from pipeline.web.key_ring import KeyRing

READER: Final = "default"
SINK_USER: Final = "tallyport_sink"
_PASSWORD_FILE: Final = "sink-password"


@dataclass(frozen=True, slots=True)
class User:
    """A caller; only one that ``may_write`` changes anything. ``ports`` empty means all of them."""

    name: str
    may_write: bool
    ports: tuple[str, ...] = ()

    @property
    def has_password(self) -> bool:
        """Whether it has shown that it is no page in this machine's browser."""
        return self.name != READER


def sink_password(folder: Path) -> str:
    """The sink's password of this ledger folder: generated once, kept in a file of mode 600.

    Raises:
        TallyportError: the file is there but empty.
    """
    path = folder / _PASSWORD_FILE
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        password = path.read_text().strip()
        if not password:
            raise TallyportError(f"{path} is empty; remove it to get a new password") from None
        return password
    password = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(password + "\n")
        file.flush()
        os.fsync(file.fileno())
    return password


class Users:
    """Checks names and passwords. The key's name and the key are those of an API key that may
    read: whoever may read usage over the API may read it here, limited to the same ports."""

    def __init__(self, password: str, keys: KeyRing | None = None) -> None:
        self._password = password.encode()
        self._keys = keys

    def authenticate(self, name: str, password: str) -> User:
        """The user of that name.

        Raises:
            QueryError: AUTHENTICATION_FAILED, the same for a wrong name and a wrong password.
        """
        if name == READER:
            return User(READER, may_write=False)
        matches = hmac.compare_digest(password.encode(), self._password)
        if matches and name == SINK_USER:
            return User(SINK_USER, may_write=True)
        key = self._keys.find(password) if self._keys is not None else None
        if key is not None and key.name == name and key.role in (READ, ADMIN):
            return User(name, may_write=False, ports=key.ports)
        raise QueryError(
            AUTHENTICATION_FAILED,
            f"{name}: Authentication failed: password is incorrect, "
            "or there is no user with such name.",
        )
