"""What a budget can be put on, and the text forms of a scope.

Internally a scope is one string: ``all``, ``port:harbor-7``, or ``port:*`` for the wildcard.
An id that is literally ``*`` is ``port=*``: a form no other scope can have, because after its
kind every other one goes on with a colon. Outside, JSON shows such a scope as ``port:*`` (the
id as it is) and record keys as ``port:%2A``, so only the key tells it from the wildcard.
"""

from typing import NamedTuple

from pipeline.core.errors import InvalidField

ALL = "all"
KINDS = ("org", "port", "group", "user")
UNITS = ("tokens", "cost")
PERIODS = ("day", "week", "month", "rolling-30d")
# By kind: the bounds of the event's id fields.
MAX_ID_LENGTH = {"org": 256, "port": 128, "group": 256, "user": 256}

_SPECIAL = str.maketrans({"%": "%25", "|": "%7C", ":": "%3A"})


class RecordKey(NamedTuple):
    """The parts of a ``scope|unit|period`` key; ``scope`` in its internal form."""

    scope: str
    unit: str
    period: str

    def __str__(self) -> str:
        return record_key(self.scope, self.unit, self.period)


def event_scopes(
    port_id: str, organization_id: str = "", group_id: str = "", user_id: str = ""
) -> tuple[str, ...]:
    """The internal scopes that an event counts in; empty ids are absent."""
    scopes = [ALL]
    if port_id:
        scopes.append(f"port:{port_id}" if port_id != "*" else "port=*")
    if organization_id:
        scopes.append(f"org:{organization_id}" if organization_id != "*" else "org=*")
    if group_id:
        scopes.append(f"group:{group_id}" if group_id != "*" else "group=*")
    if user_id:
        scopes.append(f"user:{user_id}" if user_id != "*" else "user=*")
    return tuple(scopes)


def cell_scope(text: str) -> str:
    """The internal form of a scope that was built as ``kind:id`` from an id, never a wildcard."""
    return f"{text[:-2]}=*" if is_wildcard(text) else text


def parse_scope(text: str) -> str:
    """The internal form of a scope as JSON and flags write it; ``kind:*`` is the wildcard.

    Raises ``InvalidField`` for an unknown kind, and an empty, too long or unencodable id.
    """
    if text == ALL:
        return ALL
    kind, colon, scope_id = text.partition(":")
    if kind not in KINDS or not colon:
        raise InvalidField("scope", f"must be all or {'|'.join(KINDS)}:ID, not {text!r}")
    if not scope_id:
        raise InvalidField("scope", f"the id after {kind}: is empty")
    if len(scope_id) > MAX_ID_LENGTH[kind]:
        raise InvalidField("scope", f"the id has more than {MAX_ID_LENGTH[kind]} characters")
    try:
        scope_id.encode()
    except UnicodeEncodeError:
        raise InvalidField("scope", "the id holds a lone surrogate") from None
    return text


def format_scope(scope: str) -> str:
    """``scope`` as JSON shows it: the id as it is."""
    return scope.replace("=", ":", 1) if is_star_id(scope) else scope


def scope_kind(scope: str) -> str:
    """``all``, ``org``, ``port``, ``group`` or ``user``."""
    return scope[:-2] if is_star_id(scope) else scope.partition(":")[0]


def scope_id(scope: str) -> str:
    """The id, ``*`` for a wildcard and for the id ``*``, empty for ``all``."""
    return "*" if is_star_id(scope) else scope.partition(":")[2]


def is_wildcard(scope: str) -> bool:
    """Whether ``scope`` stands for each id of its kind."""
    return scope.endswith(":*") and scope[:-2] in KINDS


def is_star_id(scope: str) -> bool:
    """Whether ``scope`` is an id that is literally ``*``, which can have no policy of its own."""
    return scope.endswith("=*") and scope[:-2] in KINDS


def wildcard_of(scope: str) -> str | None:
    """The wildcard that covers ``scope``; None for ``all`` and for wildcards."""
    kind, colon, plain_id = scope.partition(":")
    if colon:
        return None if plain_id == "*" else f"{kind}:*"
    return f"{scope[:-2]}:*" if is_star_id(scope) else None


def record_key(scope: str, unit: str, period: str) -> str:
    """The key of the records of a policy or state."""
    return f"{_key_part(scope)}|{unit}|{period}"


def _key_part(scope: str) -> str:
    """``scope`` as it stands in record keys."""
    kind, colon, plain_id = scope.partition(":")
    if colon:
        if ":" in plain_id or "|" in plain_id or "%" in plain_id:
            return f"{kind}:{plain_id.translate(_SPECIAL)}"
        return scope
    return f"{scope[:-2]}:%2A" if is_star_id(scope) else scope


def parse_key(key: str | bytes) -> RecordKey:
    """The parts of a record key; raises ``InvalidField`` unless it is in canonical form."""
    try:
        text = key.decode() if isinstance(key, bytes) else key
    except UnicodeDecodeError:
        raise InvalidField("key", "is not UTF-8") from None
    parts = text.split("|")
    if len(parts) != 3 or parts[1] not in UNITS or parts[2] not in PERIODS:
        raise InvalidField("key", f"must be scope|unit|period, not {text!r}")
    encoded, unit, period = parts
    kind, colon, encoded_id = encoded.partition(":")
    if colon and encoded_id == "%2A" and kind in KINDS:
        return RecordKey(f"{kind}=*", unit, period)
    scope = parse_scope(f"{kind}:{_decode_id(encoded_id)}" if colon else encoded)
    if record_key(scope, unit, period) != text:
        raise InvalidField("key", f"{text!r} is not in canonical form")
    return RecordKey(scope, unit, period)


def _decode_id(encoded: str) -> str:
    return encoded.replace("%7C", "|").replace("%3A", ":").replace("%25", "%")
