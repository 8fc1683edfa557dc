"""``/v1/budgets``: policies, read and changed."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.errors import InvalidField
from pipeline.core.policies import (
    InvalidPolicy,
    Policy,
    PolicyTable,
    merge_partial,
    policy_fields,
    policy_from_object,
    policy_json,
    unset_policy,
)
from pipeline.core.scopes import PERIODS, UNITS, RecordKey, format_scope, parse_scope, record_key
from pipeline.stream.policy_log import PolicyEdit, PolicyTopics, PolicyView, edit_policies
from pipeline.web.change_queue import ChangeQueue
from pipeline.web.gate import ADMINS, READERS, Caller, Gate
from pipeline.web.json_bodies import as_object, json_answer, read_json
from pipeline.web.policy_feed import PolicyFeed
from pipeline.web.problems import Problem
from pipeline.web.query import choice, known, whole_number

MAX_BUDGETS = 10_000
_PATH = "/v1/budgets/{scope:path}/{unit}/{period}"

Change = Callable[[Policy | None], Policy | None]
"""The policy that a budget is to have, from the one it has; None is none."""


class BudgetEndpoints:
    """The routes under ``/v1/budgets``."""

    def __init__(self, client: Mapping[str, Any], topics: PolicyTopics, feed: PolicyFeed) -> None:
        self._client = client
        self._topics = topics
        self._feed = feed
        self._changes = ChangeQueue(feed)

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/budgets", self._list, READERS),
            gate.route(_PATH, self._get, READERS),
            gate.route(_PATH, self._put, ADMINS, ["PUT"]),
            gate.route(_PATH, self._patch, ADMINS, ["PATCH"]),
            gate.route(_PATH, self._delete, ADMINS, ["DELETE"]),
        ]

    async def _list(self, request: Request, caller: Caller) -> Response:
        known(request, ("scope", "unit", "period", "limit", "after"))
        limit = whole_number(request, "limit", 1, MAX_BUDGETS, MAX_BUDGETS)
        start = request.query_params.get("after", "")
        scope = request.query_params.get("scope")
        wanted = RecordKey(
            parse_scope(scope) if scope is not None else "",
            choice(request, "unit", UNITS) or "",
            choice(request, "period", PERIODS) or "",
        )
        table = self._feed.current()
        keys = sorted(
            key
            for key, policy in table.policies.items()
            if key > start and caller.may_see(policy.scope) and _matches(policy, wanted)
        )
        shown = keys[:limit]
        return json_answer(
            {
                "policies": [policy_fields(table.policies[key]) for key in shown],
                "invalid": [] if caller.ports is not None else _invalid(table),
                "next": shown[-1] if len(keys) > limit else None,
            }
        )

    async def _get(self, request: Request, caller: Caller) -> Response:
        budget = _budget(request, caller)
        policy = self._feed.current().policies.get(str(budget))
        found = policy or unset_policy(*budget)
        if found is None:
            raise _no_policy(budget)
        if etag(found) in (_tags(request, "if-none-match") or ()):
            return Response(status_code=304, headers={"ETag": etag(found)})
        return _shown(found)

    async def _put(self, request: Request, caller: Caller) -> Response:
        budget = _budget(request, caller)
        body = as_object(await read_json(request, object))
        given = {**_named(budget), **body}
        if any(given[name] != value for name, value in _named(budget).items()):
            raise InvalidField("scope", "scope, unit and period must be those of the path")
        policy = policy_from_object(given)
        return await self._change(request, caller, budget, lambda _: policy)

    async def _patch(self, request: Request, caller: Caller) -> Response:
        budget = _budget(request, caller)
        changes = as_object(await read_json(request, object))
        return await self._change(
            request, caller, budget, lambda current: merge_partial(*budget, current, changes)
        )

    async def _delete(self, request: Request, caller: Caller) -> Response:
        return await self._change(request, caller, _budget(request, caller), lambda _: None)

    async def _change(
        self, request: Request, caller: Caller, budget: RecordKey, change: Change
    ) -> Response:
        """Changes one budget, unless its precondition fails; answers once it can be read here."""
        key = str(budget)
        before: list[Policy | None] = []
        after: list[Policy | None] = []

        def decide(view: PolicyView) -> list[PolicyEdit]:
            current = view.policies.get(key)
            _check_precondition(request, current or unset_policy(*budget), current)
            policy = change(current)
            if policy is None and not view.knows(key):
                raise _no_policy(budget)
            before[:], after[:] = [current], [policy]
            unchanged = policy is not None and policy == current
            return [] if unchanged else [PolicyEdit(key, policy)]

        await self._changes.write(
            lambda: edit_policies(self._client, self._topics, caller.name, decide)
        )
        policy = after[0]
        if policy is None:
            return Response(status_code=204)
        return _shown(policy, 200 if before[0] is not None else 201)


def etag(policy: Policy) -> str:
    """The entity tag of a policy: the same for the same content, whoever wrote it."""
    return f'"{hashlib.blake2b(policy_json(policy), digest_size=12).hexdigest()}"'


def _budget(request: Request, caller: Caller) -> RecordKey:
    parts = request.path_params
    scope = parse_scope(parts["scope"])
    for name, allowed in (("unit", UNITS), ("period", PERIODS)):
        if parts[name] not in allowed:
            raise InvalidField(name, f"must be one of {', '.join(allowed)}")
    if not caller.may_see(scope):
        raise Problem(403, "scope: this key is for other ports")
    if caller.ports is not None and request.method != "GET" and scope == "port:*":
        raise Problem(403, "scope: this key may not change what holds for other ports")
    return RecordKey(scope, parts["unit"], parts["period"])


def _named(budget: RecordKey) -> dict[str, str]:
    return {"scope": format_scope(budget.scope), "unit": budget.unit, "period": budget.period}


def _check_precondition(request: Request, shown: Policy | None, current: Policy | None) -> None:
    """RFC 9110's ``If-Match`` and ``If-None-Match`` against what a GET would show."""
    tag = None if shown is None else etag(shown)
    wanted = _tags(request, "if-match")
    if wanted is not None and not (tag in wanted or ("*" in wanted and current is not None)):
        raise Problem(412, "the policy is another one by now; read it again (If-Match)")
    unwanted = _tags(request, "if-none-match")
    if unwanted is not None and (tag in unwanted or ("*" in unwanted and current is not None)):
        raise Problem(412, "there is such a policy already (If-None-Match)")


def _tags(request: Request, name: str) -> list[str] | None:
    given = request.headers.getlist(name)
    return [tag.strip() for line in given for tag in line.split(",")] if given else None


def _shown(policy: Policy, status: int = 200) -> Response:
    return json_answer(policy_fields(policy), status, {"ETag": etag(policy)})


def _no_policy(budget: RecordKey) -> Problem:
    return Problem(404, f"there is no policy {record_key(*budget)}")


def _matches(policy: Policy, wanted: RecordKey) -> bool:
    return all(
        not one or one == has
        for one, has in zip(wanted, (policy.scope, policy.unit, policy.period), strict=True)
    )


def _invalid(table: PolicyTable) -> list[dict[str, Any]]:
    return [_invalid_fields(found) for found in table.invalid.values()]


def _invalid_fields(found: InvalidPolicy) -> dict[str, Any]:
    return {
        "key": found.key.decode(errors="replace"),
        "offset": found.offset,
        "field": found.field,
        "rule": found.rule,
        "last_valid": policy_fields(found.last_valid) if found.last_valid else None,
    }
