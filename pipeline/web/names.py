"""``/v1/names``: display names and mail addresses of ids, read and changed."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.names import Name, name_fields, name_from_object, nameable
from pipeline.core.scopes import KINDS, format_scope
from pipeline.stream.name_log import NameTopics, edit_name
from pipeline.web.change_queue import ChangeQueue
from pipeline.web.gate import ADMINS, READERS, Caller, Gate
from pipeline.web.json_bodies import as_object, json_answer, read_json
from pipeline.web.name_feed import NameFeed
from pipeline.web.problems import Problem
from pipeline.web.query import choice, known, whole_number

MAX_NAMES = 10_000
_PATH = "/v1/names/{scope:path}"


class NameEndpoints:
    """The routes under ``/v1/names``."""

    def __init__(self, client: Mapping[str, Any], topics: NameTopics, feed: NameFeed) -> None:
        self._client = client
        self._topics = topics
        self._feed = feed
        self._changes = ChangeQueue(feed)

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/names", self._list, READERS),
            gate.route(_PATH, self._get, READERS),
            gate.route(_PATH, self._put, ADMINS, ["PUT"]),
            gate.route(_PATH, self._delete, ADMINS, ["DELETE"]),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        known(request, ("scope", "kind", "limit", "after"))
        limit = whole_number(request, "limit", 1, MAX_NAMES, MAX_NAMES)
        start = request.query_params.get("after", "")
        kind = choice(request, "kind", KINDS)
        names = self._feed.current().names
        asked = request.query_params.getlist("scope")
        scopes = sorted(
            scope
            for scope in (dict.fromkeys(asked) if asked else names)
            if scope in names
            and scope > start
            and (kind is None or scope.startswith(f"{kind}:"))
            and caller.may_see_id(scope)
        )
        shown = scopes[:limit]
        return json_answer(
            {
                "names": [name_fields(names[scope]) for scope in shown],
                "next": shown[-1] if len(scopes) > limit else None,
            }
        )

    async def _get(self, request: Request, caller: Caller) -> Response:
        scope = _scope(request, caller)
        name = self._feed.current().names.get(format_scope(scope))
        if name is None:
            raise _no_name(scope)
        return json_answer(name_fields(name))

    async def _put(self, request: Request, caller: Caller) -> Response:
        scope = _scope(request, caller)
        name = name_from_object(scope, as_object(await read_json(request, object)))
        before = await self._change(caller, scope, name)
        return json_answer(name_fields(name), 200 if before is not None else 201)

    async def _delete(self, request: Request, caller: Caller) -> Response:
        scope = _scope(request, caller)
        if await self._change(caller, scope, None) is None:
            raise _no_name(scope)
        return Response(status_code=204)

    async def _change(self, caller: Caller, scope: str, name: Name | None) -> Name | None:
        """Writes ``name``; answers the one before once the new one can be read here."""
        before: list[Name | None] = [None]

        def decide(current: Name | None) -> Name | None:
            before[:] = [current]
            return name

        await self._changes.write(
            lambda: edit_name(self._client, self._topics, caller.name, scope, decide)
        )
        return before[0]


def _scope(request: Request, caller: Caller) -> str:
    scope = nameable(request.path_params["scope"])
    if not caller.may_see(scope):
        raise Problem(403, "scope: this key is for other ports")
    return scope


def _no_name(scope: str) -> Problem:
    return Problem(404, f"{format_scope(scope)} has no name")
