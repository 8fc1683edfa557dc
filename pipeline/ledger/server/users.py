"""Who is asking: the reader (no password, this machine only) and the sink."""

import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline.core.errors import TallyportError
from pipeline.ledger.server.errors import AUTHENTICATION_FAILED, QueryError

READER: Final = "default"
SINK_USER: Final = "tallyport_sink"
_PASSWORD_FILE: Final = "sink-password"


@dataclass(frozen=True, slots=True)
class User:
    """A caller; only one that ``may_write`` changes anything."""

    name: str
    may_write: bool


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
    """Checks names and passwords."""

    def __init__(self, password: str) -> None:
        self._password = password.encode()

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
        raise QueryError(
            AUTHENTICATION_FAILED,
            f"{name}: Authentication failed: password is incorrect, "
            "or there is no user with such name.",
        )
