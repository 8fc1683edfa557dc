"""Display names and mail addresses of ids: shown beside them, never part of what is counted.

A name is a record of its own, keyed by the scope it belongs to. Ids stay what they are in events,
totals and ledger, so a name can be changed or forgotten without touching any of them.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import ALL, format_scope, is_wildcard, parse_scope, record_key

MAX_NAME_LENGTH = 200
MAX_EMAIL_LENGTH = 254
FIELDS = ("scope", "display_name", "email")

_EMAIL = re.compile(r"[^\s@<>\"',;:]{1,64}@[^\s@<>\"',;:]{1,253}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Name(msgspec.Struct, frozen=True):
    """How an id is called, and where its mail goes; ``scope`` is internal (``core.scopes``)."""

    scope: str
    display_name: str | None = None
    email: str | None = None

    @property
    def key(self) -> str:
        """The record key: the scope, percent-encoded as in the keys of policies."""
        return name_key(self.scope)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to keep."""
        return self.display_name is None and self.email is None


def with_name(shown_id: str, name: str | None) -> str:
    """An id for people to read, with its display name where it has one."""
    return f"{name} ({shown_id})" if name else shown_id


def name_key(scope: str) -> str:
    """The key of the name of ``scope``."""
    return record_key(scope, "", "").removesuffix("||")


def nameable(text: str) -> str:
    """The internal form of a scope that can have a name: one id.

    Raises ``InvalidField`` for ``all``, wildcards, and what is no scope.
    """
    scope = parse_scope(text)
    if scope == ALL or is_wildcard(scope):
        raise InvalidField("scope", "must be one id, such as port:harbor-7; only ids have names")
    return scope


def name_from_object(scope: str, body: object) -> Name:
    """The name that a decoded JSON object gives ``scope``; raises ``InvalidField``."""
    if not isinstance(body, Mapping):
        raise InvalidField("name", "must be an object")
    fields = dict(cast("Mapping[str, object]", body))
    unknown = [field for field in fields if field not in FIELDS]
    if unknown:
        raise InvalidField(str(unknown[0]), f"is no field of a name; these are: {_listed()}")
    if fields.get("scope", format_scope(scope)) != format_scope(scope):
        raise InvalidField("scope", "must be that of the path")
    return Name(
        scope,
        _text_of(fields, "display_name", MAX_NAME_LENGTH),
        _email_of(fields),
    )


def name_fields(name: Name) -> dict[str, Any]:
    """The name as on the wire."""
    return {
        "scope": format_scope(name.scope),
        "display_name": name.display_name,
        "email": name.email,
    }


def name_json(name: Name) -> bytes:
    """The record value of ``name``."""
    return msgspec.json.encode(name_fields(name))


def parse_name(key: bytes, value: bytes) -> Name:
    """The name in a record. Raises ``InvalidField`` when it is none, or not under its own key."""
    try:
        body = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidField("name", f"is not JSON ({error})") from None
    if not isinstance(body, dict) or not isinstance(body.get("scope"), str):
        raise InvalidField("scope", "is missing")
    name = name_from_object(nameable(body["scope"]), body)
    if name.key.encode() != key:
        raise InvalidField("key", f"must be {name.key!r} as the body says")
    return name


class NameTable:
    """The fold of the topic of names: the last readable one of each id."""

    def __init__(self) -> None:
        self.names: dict[str, Name] = {}
        """By the scope as JSON shows it."""
        self._scopes: dict[bytes, str] = {}

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Takes one record; one that cannot be read leaves what is there."""
        if value is None:
            self.names.pop(self._scopes.pop(key, ""), None)
            return
        try:
            name = parse_name(key, value)
        except InvalidField:
            return
        shown = self._scopes[key] = format_scope(name.scope)
        self.names[shown] = name


def _text_of(fields: Mapping[str, object], field: str, most: int) -> str | None:
    value = fields.get(field)
    if value is None:
        return None
    if not isinstance(value, str):
        raise InvalidField(field, "must be a string or null")
    value = value.strip()
    if len(value) > most:
        raise InvalidField(field, f"must have at most {most} characters")
    if _CONTROL.search(value):
        raise InvalidField(field, "must not hold control characters or marks of direction")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidField(field, "holds a lone surrogate") from None
    return value or None


def _email_of(fields: Mapping[str, object]) -> str | None:
    value = _text_of(fields, "email", MAX_EMAIL_LENGTH)
    if value is not None and _EMAIL.fullmatch(value) is None:
        raise InvalidField("email", "must be one mail address such as ann@example.com")
    return value


def _listed() -> str:
    return ", ".join(FIELDS)
