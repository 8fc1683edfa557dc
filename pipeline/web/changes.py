"""``GET /v1/changes``: who changed which policy, price, name or key, or ran what; newest first."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import parse_key
from pipeline.stream.change_log import Change, read_changes
from pipeline.web.gate import READERS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.key_file import Key
from pipeline.web.key_ring import KeyRing
from pipeline.web.problems import unavailable
from pipeline.web.query import choice, known, whole_number

MAX_CHANGES = 1_000
DEFAULT_CHANGES = 100
READS_AT_ONCE = 4
SUBJECTS = ("policy", "price", "name", "key", "run")
_CURSOR = re.compile(r"([0-9]{1,19})-([0-9]{1,9})")


class _Cursor(NamedTuple):
    """What is still older: below this offset of the log, and so many changes of keys."""

    offset: int | None
    keys: int


class ChangesEndpoint:
    """The route ``/v1/changes``: the log of changes and runs, and the keys' history."""

    def __init__(self, client: Mapping[str, Any], topic: str, ring: KeyRing | None) -> None:
        self._client = client
        self._topic = topic
        self._ring = ring
        self._reading = 0

    def routes(self, gate: Gate) -> list[Route]:
        return [gate.route("/v1/changes", self._get, READERS)]

    async def _get(self, request: Request, caller: Caller) -> Response:
        known(request, ("limit", "cursor", "what"))
        limit = whole_number(request, "limit", 1, MAX_CHANGES, DEFAULT_CHANGES)
        what = choice(request, "what", SUBJECTS)
        of_keys = key_changes(self._ring.history()) if self._ring is not None else []
        cursor = _cursor(request, len(of_keys))
        if self._reading >= READS_AT_ONCE:
            raise unavailable("too many read the changes now")
        self._reading += 1
        try:
            page = await read_changes(self._client, self._topic, limit, cursor.offset)
        finally:
            self._reading -= 1
        of_keys = of_keys[: cursor.keys]
        merged: list[Change] = []
        logged = [*page.changes]
        before = page.before if not logged else logged[0][0] + 1
        keys_left = len(of_keys)
        while len(merged) < limit and (logged or keys_left):
            if logged and (not keys_left or logged[0][1].at >= of_keys[keys_left - 1].at):
                before, change = logged.pop(0)
            else:
                keys_left -= 1
                change = of_keys[keys_left]
            merged.append(change)
        if not logged:
            before = page.before
        more = bool(before or keys_left)
        shown = [
            msgspec.to_builtins(change)
            for change in merged
            if what in (None, change.what) and _may_see(caller, change)
        ]
        return json_answer({"changes": shown, "next": f"{before}-{keys_left}" if more else None})


def key_changes(keys: tuple[Key, ...]) -> list[Change]:
    """What happened to the keys, oldest first; a key that was revoked happened twice."""
    found: list[Change] = []
    for key in keys:
        body = {
            "id": key.id,
            "role": key.role,
            "ports": list(key.ports),
            "rate": key.rate,
            "user_rate": key.user_rate,
        }
        found.append(Change(key.created_at, key.created_by, "key", key.name, None, body))
        if key.revoked_at is not None:
            who = key.revoked_by or ""
            found.append(Change(key.revoked_at, who, "key", key.name, body, None))
    return sorted(found, key=lambda change: change.at)


def _may_see(caller: Caller, change: Change) -> bool:
    if caller.ports is None:
        return True
    if change.what == "run":
        ports: list[str] | None = (change.after or {}).get("ports")
        return ports is not None and all(map(caller.may_see_port, ports))
    if change.what not in ("policy", "name"):
        return False
    key = change.key if change.what == "policy" else f"{change.key}|tokens|day"
    try:
        return caller.may_see(parse_key(key).scope)
    except InvalidField:
        return False


def _cursor(request: Request, keys: int) -> _Cursor:
    text = request.query_params.get("cursor")
    if text is None:
        return _Cursor(None, keys)
    match = _CURSOR.fullmatch(text)
    if match is None:
        raise InvalidField("cursor", "must be one that an earlier answer gave as next")
    return _Cursor(int(match[1]), min(keys, int(match[2])))
