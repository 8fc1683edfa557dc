"""The API keys of a deployment, in one file: who may do what, and since when.

A key is shown once, when it is made; the file has only a hash of it. A revoked key stays in the
file without its hash, so that the file is also the history of the keys.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline.core.errors import ConfigurationError, InvalidField
from pipeline.web.rate_limit import parse_rate

INGEST: Final = "ingest"
READ: Final = "read"
ADMIN: Final = "admin"
ROLES: Final = (INGEST, READ, ADMIN)
MAX_KEYS: Final = 10_000
MAX_NAME_LENGTH: Final = 64
MAX_PORTS: Final = 1_000

_PREFIX: Final = "tp"
_SECRET_BYTES: Final = 32
_PERSON: Final = b"tallyport-apikey"
_KEY: Final = re.compile(r"tp_([0-9a-f]{12})_([0-9a-f]{64})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NO_HASH: Final = "0" * 64


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One key. ``ports`` empty means all of them; ``hash`` is empty once it is revoked.

    ``rate`` limits its requests, ``user_rate`` those for one user, as in ``20/min``; times are
    RFC 3339.
    """

    id: str
    name: str
    role: str
    ports: tuple[str, ...] = ()
    rate: str | None = None
    user_rate: str | None = None
    hash: str = ""
    created_at: str = ""
    created_by: str = ""
    revoked_at: str | None = None
    revoked_by: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None

    def shown(self) -> dict[str, Any]:
        """What may be told of it: everything but its hash."""
        fields = msgspec.structs.asdict(self)
        del fields["hash"]
        return {**fields, "ports": list(self.ports)}


class _File(msgspec.Struct):
    keys: tuple[Key, ...] = ()


_decoder = msgspec.json.Decoder(_File)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Every key of the file, revoked ones included; an empty file has none.

    Raises ``ConfigurationError`` when the file is missing or cannot be read as keys.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"keys file {path} cannot be read: {error.strerror}") from error
    if not text.strip():
        return ()
    try:
        keys = _decoder.decode(text).keys
        for key in keys:
            _check(key)
    except (msgspec.MsgspecError, UnicodeDecodeError, InvalidField) as error:
        raise ConfigurationError(f"keys file {path} is damaged: {error}") from error
    return keys


def create_key(
    path: Path,
    name: str,
    role: str,
    *,
    ports: Sequence[str] = (),
    rate: str | None = None,
    user_rate: str | None = None,
    who: str,
    now: datetime,
) -> tuple[Key, str]:
    """Adds a key to the file; the key as it is kept, and its text, which nobody can get again.

    Raises ``InvalidField`` for what is not allowed in a key, and when the name is taken.
    """
    key_id, secret = secrets.token_hex(6), secrets.token_hex(_SECRET_BYTES)
    key = Key(
        id=key_id,
        name=name,
        role=role,
        ports=tuple(dict.fromkeys(ports)),
        rate=rate,
        user_rate=user_rate,
        hash=_hash(secret),
        created_at=_rfc3339(now),
        created_by=who,
    )
    _check(key)
    with _changing(path) as keys:
        if any(known.is_active and known.name == name for known in keys):
            raise InvalidField("name", f"{name!r} is the name of another key; revoke it first")
        if len(keys) >= MAX_KEYS:
            raise InvalidField("name", f"the file holds {MAX_KEYS} keys, which is its limit")
        keys.append(key)
    return key, f"{_PREFIX}_{key_id}_{secret}"


def revoke_key(path: Path, name: str, *, who: str, now: datetime) -> Key:
    """Takes the key of that name (or id) out of use. Raises ``InvalidField`` without one."""
    with _changing(path) as keys:
        for index, key in enumerate(keys):
            if key.is_active and name in (key.name, key.id):
                keys[index] = revoked = msgspec.structs.replace(
                    key, hash="", revoked_at=_rfc3339(now), revoked_by=who
                )
                return revoked
    raise InvalidField("name", f"there is no key {name!r} in use")


class KeyTable:
    """The keys in use, found by the text a client sends."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._by_id = {key.id: key for key in keys if key.is_active}

    def __len__(self) -> int:
        return len(self._by_id)

    def with_id(self, key_id: str) -> Key | None:
        """The key in use that has this id."""
        return self._by_id.get(key_id)

    def find(self, text: str) -> Key | None:
        """The key whose text this is. Takes as long for a wrong secret as for an unknown key."""
        match = _KEY.fullmatch(text)
        key_id, secret = match.groups() if match else ("", "")
        key = self._by_id.get(key_id)
        expected = key.hash if key is not None else _NO_HASH
        same = hmac.compare_digest(_hash(secret), expected)
        return key if same else None


def _check(key: Key) -> None:
    if not _NAME.fullmatch(key.name) or len(key.name) > MAX_NAME_LENGTH:
        raise InvalidField(
            "name", f"must be 1 to {MAX_NAME_LENGTH} letters, digits, '.', '_' or '-'"
        )
    if key.role not in ROLES:
        raise InvalidField("role", f"must be one of {', '.join(ROLES)}")
    if len(key.ports) > MAX_PORTS or not all(1 <= len(port) <= 128 for port in key.ports):
        raise InvalidField("port-id", f"at most {MAX_PORTS} ids of 1 to 128 characters")
    for field, rate in (("rate", key.rate), ("user-rate", key.user_rate)):
        if rate is not None:
            parse_rate(rate, field)


def _hash(secret: str) -> str:
    # The secret is 256 random bits: nothing to guess, so no slow hash is needed.
    return hashlib.blake2b(secret.encode(), digest_size=32, person=_PERSON).hexdigest()


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def _changing(path: Path) -> Generator[list[Key]]:
    """The keys to change; written back in one step, under a lock, readable by the owner only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(read_keys(path)) if path.exists() else []
            yield keys
            body = [msgspec.to_builtins(key) for key in keys]
            _replace(path, json.dumps({"keys": body}, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"keys file {path} cannot be written: {error.strerror}") from error


def _replace(path: Path, text: str) -> None:
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # made with mode 600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
