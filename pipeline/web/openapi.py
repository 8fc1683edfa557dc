"""``/openapi.json``: what the API takes and answers, made from tables and the code's own types."""

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.event_fields import BILLING_SCOPES, COUNTERS, FLAGS, KINDS, OPTIONAL_TEXTS
from pipeline.core.names import MAX_EMAIL_LENGTH, MAX_NAME_LENGTH
from pipeline.core.rejections import REASONS as RECORD_REASONS
from pipeline.core.scopes import KINDS as SCOPE_KINDS
from pipeline.core.scopes import PERIODS, UNITS
from pipeline.web.changes import SUBJECTS
from pipeline.web.event_forms import CLOUDEVENT, CLOUDEVENT_BATCH, JSON, NDJSON
from pipeline.web.id_usage import ORDERS
from pipeline.web.ingest import REASONS, Result
from pipeline.web.otlp_messages import PROTOBUF
from pipeline.web.problems import MEDIA_TYPE
from pipeline.web.run_endpoints import ReplayBody, RepriceBody
from pipeline.web.states import CheckBody
from pipeline.web.usage_rows import FILTERS, SPAN

Json = dict[str, Any]

_ANY: Json = {"type": "object"}
_PROBLEM: Json = {"$ref": "#/components/schemas/Problem"}
_COMMON = ("400", "401", "403", "404", "408", "413", "415", "429", "500", "503")
_TITLES = {
    "200": "Done.",
    "201": "Made.",
    "202": "Under way.",
    "204": "Gone.",
    "207": "Some events were accepted.",
    "304": "As you have it.",
}


def openapi_routes() -> list[Route]:
    """The document, open to everybody."""

    async def show(_: Request) -> Response:
        return Response(_encoded(), media_type="application/json")

    return [Route("/openapi.json", show)]


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document())


def document() -> Json:
    """The OpenAPI 3.1 document."""
    _, types = msgspec.json.schema_components(
        (CheckBody, ReplayBody, RepriceBody, Result), ref_template="#/components/schemas/{name}"
    )
    components = {
        **types,
        "Event": _event(),
        "Name": _name(),
        "Policy": _policy(),
        "Problem": _problem(),
        "Run": _run(),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tallyport",
            "version": version("tallyport"),
            "description": "Meters AI usage and stops runaway bills. See docs/api.md.",
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
        "paths": _paths(),
    }


def _paths() -> Json:
    return {
        **_reporting(),
        **_asking(),
        **_budgets(),
        **_prices(),
        **_changes(),
        **_reports(),
        **_names(),
        **_usage(),
        **_id_usage(),
        **_rejected(),
        **_runs(),
    }


def _reporting() -> Json:
    event: Json = {"$ref": "#/components/schemas/Event"}
    result: Json = {"$ref": "#/components/schemas/Result"}
    results: Json = {
        "type": "object",
        "required": ["results"],
        "properties": {"results": {"type": "array", "items": result}},
    }
    several = {"type": "array", "items": event, "maxItems": 1000}
    envelopes = {"type": "array", "items": _ANY}
    events = _body(
        {
            JSON: {"anyOf": [event, several]},
            NDJSON[0]: {},
            CLOUDEVENT: _ANY,
            CLOUDEVENT_BATCH: envelopes,
        }
    )
    spans = _body({JSON: _ANY, PROTOBUF: {}})
    answers: dict[str, Json | None] = {"200": results, "207": results}
    return {
        "/v1/events": {"post": _operation("Report usage", answers, events)},
        "/v1/traces": {"post": _operation("Report spans (OTLP)", {"200": _ANY}, spans)},
    }


def _asking() -> Json:
    check = _body({JSON: {"$ref": "#/components/schemas/CheckBody"}})
    filters = [
        _query("scope", {"type": "string"}),
        _query("unit", {"enum": [*UNITS]}),
        _query("period", {"enum": [*PERIODS]}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}),
        _query("after", {"type": "string"}),
    ]
    return {
        "/v1/check": {"post": _operation("May a call go ahead?", {"200": _ANY}, check)},
        "/v1/state": {"get": _operation("States of budgets", {"200": _ANY}, parameters=filters)},
        "/v1/state/stream": {"get": _stream()},
    }


def _budgets() -> Json:
    policy: Json = {"$ref": "#/components/schemas/Policy"}
    body = _body({JSON: _ANY})
    written: dict[str, Json | None] = {"200": policy, "201": policy}
    one: Json = {
        "parameters": [
            _path("scope", {"type": "string", "examples": ["port:harbor-7"]}),
            _path("unit", {"enum": [*UNITS]}),
            _path("period", {"enum": [*PERIODS]}),
        ],
        "get": _operation("A budget policy", {"200": policy, "304": None}),
        "put": _operation("Replace a policy", written, body, more=("412",)),
        "patch": _operation("Change a policy", written, body, more=("412",)),
        "delete": _operation("Delete a policy", {"204": None}, more=("412",)),
    }
    return {
        "/v1/budgets": {"get": _operation("Budget policies", {"200": _ANY})},
        "/v1/budgets/{scope}/{unit}/{period}": one,
    }


def _prices() -> Json:
    names = ("provider", "model", "service_tier", "at")
    asked = [_query(name, {"type": "string"}) for name in names]
    return {
        "/v1/prices": {
            "get": _operation("Prices", {"200": _ANY}, parameters=asked),
            "put": _operation("Publish rates", {"200": _ANY}, _body({JSON: _ANY})),
        },
        "/v1/prices/explain": {
            "get": _operation("Why a price is what it is", {"200": _ANY}, parameters=asked)
        },
        "/v1/prices/book": {"get": _operation("The built-in book", {"200": _ANY, "304": None})},
    }


def _changes() -> Json:
    asked = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1_000}),
        _query("cursor", {"type": "string"}),
        _query("what", {"enum": [*SUBJECTS]}),
    ]
    return {"/v1/changes": {"get": _operation("Who changed what", {"200": _ANY}, parameters=asked)}}


def _reports() -> Json:
    secret: Json = {"name": "X-Cron-Secret", "in": "header", "schema": {"type": "string"}}
    answers: dict[str, Json | None] = {"200": _ANY, "202": _ANY}
    asked = [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1_000}),
        _query("status", {"enum": ["pending", "sent", "dead"]}),
    ]
    weekly = _operation(
        "Mail the weekly report, once for each week",
        answers,
        parameters=[secret, _query("secret", {"type": "string"})],
        more=("502",),
    )
    return {
        "/v1/reports/weekly": {"post": {**weekly, "security": [{}]}},
        "/v1/notices": {
            "get": _operation("What was sent to whom", {"200": _ANY}, parameters=asked)
        },
    }


def _names() -> Json:
    name: Json = {"$ref": "#/components/schemas/Name"}
    asked = [
        _query("scope", {"type": "array", "items": {"type": "string"}}),
        _query("kind", {"enum": [*SCOPE_KINDS]}),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000}),
        _query("after", {"type": "string"}),
    ]
    one: Json = {
        "parameters": [_path("scope", {"type": "string", "examples": ["user:u1"]})],
        "get": _operation("The name of an id", {"200": name}),
        "put": _operation("Name an id", {"200": name, "201": name}, _body({JSON: name})),
        "delete": _operation("Forget the name of an id", {"204": None}),
    }
    return {
        "/v1/names": {"get": _operation("Names of ids", {"200": _ANY}, parameters=asked)},
        "/v1/names/{scope}": one,
    }


def _usage() -> Json:
    filters = _usage_filters()
    rows = [
        *filters,
        _query("group_by", {"type": "string", "examples": ["model,feature,day"]}),
        *_paging(10_000),
    ]
    summary = [
        _query("billing_scope", {"enum": [*BILLING_SCOPES]}),
        _query("organization_id", {"type": "string"}),
    ]
    unpriced = [*filters, _query("limit", {"type": "integer", "minimum": 1, "maximum": 1_000})]
    usage = _operation("What was used", {"200": _ANY}, parameters=rows)
    usage["responses"]["200"]["content"]["text/csv"] = {"schema": {"type": "string"}}
    return {
        "/v1/whoami": {"get": _operation("Who asks, and what they may do", {"200": _ANY})},
        "/v1/usage": {"get": usage},
        "/v1/usage/summary": {
            "get": _operation("Today, this month and 30 days", {"200": _ANY}, parameters=summary)
        },
        "/v1/usage/unpriced": {
            "get": _operation("Models without a price", {"200": _ANY}, parameters=unpriced)
        },
    }


def _id_usage() -> Json:
    """Lists of ids, and what one of them used."""
    budget = [_query("unit", {"enum": [*UNITS]}), _query("period", {"enum": [*PERIODS]})]
    listed = [
        _query("search", {"type": "string"}),
        _query("order", {"enum": [*ORDERS]}),
        *_paging(1_000),
    ]
    span = [_query(name, {"type": "string"}) for name in SPAN]
    events = [
        _query("port_id", {"type": "string"}),
        _query("billing_scope", {"enum": [*BILLING_SCOPES]}),
        *span,
        *_paging(1_000),
    ]
    paths: Json = {
        "/v1/usage/all": {
            "get": _operation("What all used, and its budget", {"200": _ANY}, parameters=budget)
        },
        "/v1/usage/users/{id}": {
            "parameters": [_path("id", {"type": "string"})],
            "get": _operation("The events of a user", {"200": _ANY}, parameters=events),
        },
    }
    for kind in ("ports", "groups", "organizations", "users"):
        told = f"The {kind}, and what each used this month"
        paths[f"/v1/usage/{kind}"] = {"get": _operation(told, {"200": _ANY}, parameters=listed)}
        paths.setdefault(
            f"/v1/usage/{kind}/{{id}}",
            {
                "parameters": [_path("id", {"type": "string"})],
                "get": _operation(
                    f"What one of the {kind} used, and its budget", {"200": _ANY}, parameters=budget
                ),
            },
        )
    return paths


def _rejected() -> Json:
    newest = [_query("reason", {"enum": [*RECORD_REASONS]}), *_paging(200)]
    hours = [_query("hours", {"type": "integer", "minimum": 1, "maximum": 720})]
    return {
        "/v1/rejected": {
            "get": _operation("The newest refused records", {"200": _ANY}, parameters=newest)
        },
        "/v1/rejected/count": {
            "get": _operation("How many were refused, by reason", {"200": _ANY}, parameters=hours)
        },
    }


def _runs() -> Json:
    """Dry runs, and what is started from them."""
    run: Json = {"$ref": "#/components/schemas/Run"}
    runs: Json = {
        "type": "object",
        "required": ["runs"],
        "properties": {"runs": {"type": "array", "items": run}},
    }
    begun: dict[str, Json | None] = {"202": run}
    named = [_path("id", {"type": "string"})]

    def dry_run(summary: str, body: str) -> Json:
        schema = _body({JSON: {"$ref": f"#/components/schemas/{body}"}})
        return {"post": _operation(summary, begun, schema, more=("409",))}

    start = _operation("Start what a dry run has shown", begun, more=("409",))
    return {
        "/v1/reprices": dry_run("What pricing booked events again would change", "RepriceBody"),
        "/v1/replays": dry_run("What sending rejected records again would do", "ReplayBody"),
        "/v1/runs": {"get": _operation("The last runs", {"200": runs})},
        "/v1/runs/{id}": {
            "parameters": named,
            "get": _operation("A run and its progress", {"200": run}),
            "delete": _operation("Stop a run", {"204": None}),
        },
        "/v1/runs/{id}/start": {"parameters": named, "post": start},
    }


def _usage_filters() -> list[Json]:
    kinds: Json = {"kind": {"enum": [*KINDS]}, "billing_scope": {"enum": [*BILLING_SCOPES]}}
    return [_query(name, kinds.get(name, {"type": "string"})) for name in (*FILTERS, *SPAN)]


def _paging(most: int) -> list[Json]:
    return [
        _query("limit", {"type": "integer", "minimum": 1, "maximum": most}),
        _query("cursor", {"type": "string"}),
    ]


def _operation(
    summary: str,
    answers: dict[str, Json | None],
    body: Json | None = None,
    parameters: list[Json] | None = None,
    more: tuple[str, ...] = (),
) -> Json:
    responses: Json = {
        status: {"description": "Refused.", "content": {MEDIA_TYPE: {"schema": _PROBLEM}}}
        for status in (*_COMMON, *more)
    }
    for status, schema in answers.items():
        responses[status] = {"description": _TITLES[status]}
        if schema is not None:
            responses[status]["content"] = {JSON: {"schema": schema}}
    found: Json = {"summary": summary, "responses": dict(sorted(responses.items()))}
    if body is not None:
        found["requestBody"] = body
    if PROTOBUF in (body or {}).get("content", {}):
        for status in ("200", "400"):
            responses[status]["content"][PROTOBUF] = {}
    return {**found, "parameters": parameters} if parameters else found


def _stream() -> Json:
    found = _operation("Follow the states of budgets", {"200": _ANY})
    found["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    return found


def _body(content: dict[str, Json]) -> Json:
    shown = {name: {"schema": schema} if schema else {} for name, schema in content.items()}
    return {"required": True, "content": shown}


def _path(name: str, schema: Json) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "schema": schema}


def _event() -> Json:
    text: Json = {"type": ["string", "null"], "maxLength": 256}
    identity: Json = {"type": "string", "minLength": 1, "maxLength": 128}
    count: Json = {"type": ["integer", "null"], "minimum": 0, "maximum": 10**10}
    flag: Json = {"type": ["boolean", "null"]}
    return {
        "type": "object",
        "required": ["event_id", "occurred_at", "port_id", "provider", "model"],
        "properties": {
            "event_id": identity,
            "occurred_at": {"type": "string", "format": "date-time"},
            "port_id": identity,
            "provider": identity,
            "model": identity,
            **dict.fromkeys(OPTIONAL_TEXTS, text),
            "feature": {"type": ["string", "null"], "maxLength": 128},
            "kind": {"enum": [*KINDS, None]},
            "billing_scope": {"enum": [*BILLING_SCOPES, None]},
            **dict.fromkeys(COUNTERS, count),
            "audio_seconds": {"type": ["number", "string", "null"]},
            **dict.fromkeys(FLAGS, flag),
            "reported_cost": {"type": ["string", "null"]},
            "tags": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
        },
    }


def _policy() -> Json:
    cap: Json = {"type": ["integer", "string", "null"]}
    return {
        "type": "object",
        "required": ["scope", "unit", "period", "enabled"],
        "properties": {
            "scope": {"type": "string"},
            "unit": {"enum": [*UNITS]},
            "period": {"enum": [*PERIODS]},
            "enabled": {"type": "boolean"},
            "soft_cap": cap,
            "hard_cap": cap,
            "warn_threshold_pct": {"type": "integer", "minimum": 0, "maximum": 100},
            "on_stale": {"enum": ["allow", "deny"]},
            "extra": {"type": ["object", "null"]},
            "notify": {"type": "array", "items": {"type": "string"}},
        },
    }


def _name() -> Json:
    text: Json = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": {
            "scope": {"type": "string"},
            "display_name": {**text, "maxLength": MAX_NAME_LENGTH},
            "email": {**text, "maxLength": MAX_EMAIL_LENGTH},
        },
    }


def _run() -> Json:
    text: Json = {"type": "string"}
    number: Json = {"type": "integer"}
    properties: Json = {
        "id": text,
        "kind": {"enum": ["reprice", "replay"]},
        "dry_run": {"type": "boolean"},
        "state": {"enum": ["running", "done", "failed", "stopped"]},
        "selection": _ANY,
        "started_by": text,
        "started_at": text,
        "ended_at": {"type": ["string", "null"]},
        "progress": {
            "type": "object",
            "required": ["done", "total"],
            "properties": {"done": number, "total": {"type": ["integer", "null"]}},
        },
        "result": {"type": ["object", "null"]},
        "problem": {"type": ["string", "null"]},
    }
    return {"type": "object", "required": [*properties], "properties": properties}


def _problem() -> Json:
    return {
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "field": {"type": "string"},
            "results": {"type": "array", "items": {"$ref": "#/components/schemas/Result"}},
        },
        "description": f"RFC 9457. Reasons of results: {', '.join(REASONS)}.",
    }
