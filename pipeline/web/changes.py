"""``GET /v1/changes``: who changed which policy, price, name or key, or ran what; newest first."""

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.scopes import parse_key
from pipeline.stream.change_log import Change, Page, read_changes
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

        def asked_for(change: Change) -> bool:
            return what in (None, change.what) and _may_see(caller, change)

        # Where some are left out, more is read than is shown; still, a page may be short of them.
        all_shown = what is None and caller.ports is None
        page = await self._read(limit if all_shown else MAX_CHANGES, cursor.offset)
        shown, rest = _newest(page, of_keys[: cursor.keys], limit, asked_for)
        more = bool(rest.offset or rest.keys)
        return json_answer(
            {
                "changes": [msgspec.to_builtins(change) for change in shown],
                "next": f"{rest.offset}-{rest.keys}" if more else None,
            }
        )

    async def _read(self, limit: int, before: int | None) -> Page:
        if self._reading >= READS_AT_ONCE:
            raise unavailable("too many read the changes now")
        self._reading += 1
        try:
            return await read_changes(self._client, self._topic, limit, before)
        finally:
            self._reading -= 1


def _newest(
    page: Page, of_keys: list[Change], limit: int, asked_for: Callable[[Change], bool]
) -> tuple[list[Change], _Cursor]:
    """The newest of both logs that are asked for, and where what was not looked at begins."""
    logged = deque(page.changes)
    before = logged[0][0] + 1 if logged else page.before
    keys_left = len(of_keys)
    shown: list[Change] = []
    # Behind the end of this page of the log stand changes that may be newer than the next key's.
    while len(shown) < limit and (logged or (keys_left and not page.before)):
        if logged and (not keys_left or logged[0][1].at >= of_keys[keys_left - 1].at):
            before, change = logged.popleft()
        else:
            keys_left -= 1
            change = of_keys[keys_left]
        if asked_for(change):
            shown.append(change)
    return shown, _Cursor(before if logged else page.before, keys_left)


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
