"""``/v1/reprices``, ``/v1/replays`` and ``/v1/runs``: what would change is looked at, then started.

A run that writes can only be started from a dry run of the same selection that has ended well, so
nobody starts what nobody has seen.
"""

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.core.corrections import MAX_RATE_ID_CHARS, MAX_REASON_CHARS
from pipeline.core.errors import InvalidField
from pipeline.core.rejections import REASONS
from pipeline.web.gate import ADMINS, Caller, Gate
from pipeline.web.json_bodies import json_answer, read_json
from pipeline.web.problems import Problem
from pipeline.web.query import known, moment_of
from pipeline.web.runs import Run, Runs, Work

MAX_ROWS: Final = 500
"""Rows of a difference that are shown; its sums are of all."""
MAX_DAYS: Final = 400
SEEN_MS: Final = 30 * 60 * 1000
"""For so long after a dry run what it showed may be started."""
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2106, 1, 1, tzinfo=UTC)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Moment = Annotated[str, msgspec.Meta(max_length=40)]
_Why = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON_CHARS // 2)]


class RepriceBody(
    msgspec.Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}
):
    """Which booked events are looked at: of ``from`` up to and without ``to``, and these names.
    ``rate_id`` is the rate they get, else whichever the rules choose now; ``reason`` is kept with
    every entry."""

    start: _Moment
    end: _Moment
    port_id: _Text | None = None
    provider: _Text | None = None
    model: _Text | None = None
    rate_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_RATE_ID_CHARS)] | None = None
    reason: _Why = "reprice"


class ReplayBody(msgspec.Struct, forbid_unknown_fields=True, rename={"start": "from", "end": "to"}):
    """Which rejected records are looked at; what is not given does not limit. Times are those of
    the rejection; ``to`` is excluded, and now where it is not given."""

    reasons: Annotated[list[str], msgspec.Meta(max_length=len(REASONS))] = []
    port_id: _Text | None = None
    start: _Moment | None = None
    end: _Moment | None = None
    again: bool = False


class RunEndpoints:
    """The routes of runs. All are for the role ``admin``; a key for some ports gets at these."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def routes(self, gate: Gate) -> list[Route]:
        return [
            gate.route("/v1/reprices", self._reprice, ADMINS, ["POST"]),
            gate.route("/v1/replays", self._replay, ADMINS, ["POST"]),
            gate.route("/v1/runs", self._list, ADMINS),
            gate.route("/v1/runs/{id}", self._get, ADMINS),
            gate.route("/v1/runs/{id}", self._stop, ADMINS, ["DELETE"]),
            gate.route("/v1/runs/{id}/start", self._start, ADMINS, ["POST"]),
        ]

    async def _reprice(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        body = await read_json(request, RepriceBody)
        start, end = _within("from", body.start), _within("to", body.end)
        if start >= end:
            raise InvalidField("from", "must lie before to")
        if end - start > timedelta(days=MAX_DAYS):
            raise InvalidField("to", f"must lie at most {MAX_DAYS} days after from")
        port_id = _port(caller, body.port_id)
        if caller.ports is not None and port_id is None:
            raise InvalidField("port_id", "is needed: this key is for some ports")
        names = {
            "port_id": port_id,
            "provider": body.provider,
            "model": body.model,
            "rate_id": body.rate_id,
        }
        _check_texts({**names, "reason": body.reason})
        span = {"from": _text(start), "to": _text(end)}
        words = _options({**span, **names, "reason": f"{body.reason} ({caller.name})"})

        def command(dry_run: bool) -> Sequence[str]:
            return ("reprice", "--json", f"--rows={MAX_ROWS}", *_dry(dry_run), *words)

        selection = {**span, **names, "reason": body.reason}
        ports = None if port_id is None else frozenset({port_id})
        return self._begin(Work("reprice", selection, command, ports), caller, dry_run=True)

    async def _replay(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        body = await read_json(request, ReplayBody)
        if unknown := sorted(set(body.reasons) - set(REASONS)):
            raise InvalidField("reasons", f"{unknown[0]!r} is none of {', '.join(REASONS)}")
        reasons = [one for one in REASONS if one in body.reasons]
        start = None if body.start is None else _within("from", body.start)
        end = datetime.now(UTC) if body.end is None else _within("to", body.end)
        if start is not None and start >= end:
            raise InvalidField("from", "must lie before to")
        port_id = _port(caller, body.port_id)
        _check_texts({"port_id": port_id})
        ports = caller.ports if port_id is None else frozenset({port_id})
        span = {"from": None if start is None else _text(start), "to": _text(end)}
        words = [
            *_options(span),
            *(f"--reason={one}" for one in reasons),
            *(f"--port-id={one}" for one in sorted(ports or ())),
            *(("--again",) if body.again else ()),
        ]

        def command(dry_run: bool) -> Sequence[str]:
            return ("replay-rejected", "--json", *_dry(dry_run), *words)

        selection = {"reasons": reasons, "port_id": port_id, **span, "again": body.again}
        return self._begin(Work("replay", selection, command, ports), caller, dry_run=True)

    def _begin(self, work: Work, caller: Caller, *, dry_run: bool) -> Response:
        run = self._runs.begin(work, caller.name, dry_run=dry_run)
        return json_answer(run.to_json(), 202, {"Location": f"/v1/runs/{run.id}"})

    async def _list(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        seen = [run for run in self._runs.all() if _may_see(caller, run)]
        return json_answer({"runs": [run.to_json() for run in seen]})

    async def _get(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        return json_answer(self._find(request, caller).to_json())

    async def _stop(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        await self._runs.stop(self._find(request, caller))
        return Response(status_code=204)

    async def _start(self, request: Request, caller: Caller) -> Response:
        known(request, ())
        seen = self._find(request, caller)
        if not seen.dry_run or seen.state != "done":
            raise Problem(409, "only what a dry run has shown can be started")
        if time.time_ns() // 1_000_000 - (seen.ended_ms or 0) > SEEN_MS:
            raise Problem(409, "what the dry run showed is too long ago; look again")
        return self._begin(seen.work, caller, dry_run=False)

    def _find(self, request: Request, caller: Caller) -> Run:
        wanted = request.path_params["id"]
        for run in self._runs.all():
            if run.id == wanted and _may_see(caller, run):
                return run
        raise Problem(404, "there is no such run here; each API process knows its own, and the "
                           "last ones only")  # fmt: skip


def _may_see(caller: Caller, run: Run) -> bool:
    ports = run.work.ports
    return caller.ports is None or (ports is not None and ports <= caller.ports)


def _port(caller: Caller, asked: str | None) -> str | None:
    """The one port that is meant, None for all that the key is for."""
    if asked is None:
        return caller.only_port
    if not caller.may_see_port(asked):
        raise Problem(403, "port_id: this key is for other ports", extra={"field": "port_id"})
    return asked


def _within(name: str, text: str) -> datetime:
    found = moment_of(name, text)
    if not _FIRST <= found <= _LAST:
        raise InvalidField(name, "must lie between 1970 and 2106")
    return found


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _check_texts(texts: dict[str, str | None]) -> None:
    """They become words of a command, which cannot hold every character."""
    for name, text in texts.items():
        if text is not None and _CONTROL.search(text):
            raise InvalidField(name, "must not contain control characters")


def _options(values: dict[str, str | None]) -> list[str]:
    return [
        f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None
    ]


def _dry(dry_run: bool) -> tuple[str, ...]:
    return ("--dry-run",) if dry_run else ()
