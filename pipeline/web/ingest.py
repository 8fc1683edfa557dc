"""``POST /v1/events``: validated as the worker does, answered once the broker has them."""

import time
from itertools import repeat
from typing import Final, Literal, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline import metrics
from pipeline.core.event_codec import MAX_EVENT_BYTES, TimeLimits, decode_event, judge_time
from pipeline.core.rejections import EVENT_REASONS, Rejection
from pipeline.core.usual_events import read_valid_array
from pipeline.web.bodies import InFlight, declared_size, read_body
from pipeline.web.event_forms import NO_HEADERS, Found, Submitted, media_type, take_apart
from pipeline.web.event_log import EventLog, Outgoing, Placed
from pipeline.web.gate import REPORTERS, Caller, Gate
from pipeline.web.problems import Problem

MAX_BODY_BYTES: Final = 1024 * 1024
FORBIDDEN_PORT: Final = "forbidden-port"
"""Beside the reasons of the contract: the key may not send for this port."""
_FEW: Final = 32
REASONS: Final = (*EVENT_REASONS, FORBIDDEN_PORT)


class Result(msgspec.Struct, gc=False):
    """What became of one event; ``reason`` is one of ``REASONS``."""

    event_id: str | None
    status: Literal["accepted", "rejected"]
    reason: str | None = None
    detail: str | None = None
    partition: int | None = None
    offset: int | None = None


_Fate = str | Result
"""What a refused event is answered, or the id of one that is to be sent."""


class _Results(msgspec.Struct):
    results: list[Result]


class _Identity(msgspec.Struct):
    """What can be told of an event that was refused; an envelope has its id elsewhere."""

    event_id: str | None = None
    id: str | None = None


class Intake:
    """Takes events in for callers: judges, sends, and says what became of each."""

    def __init__(self, event_log: EventLog, limits: TimeLimits) -> None:
        self._log = event_log
        self._limits = limits

    async def take(self, found: list[Found], caller: Caller) -> list[Result]:
        """The fate of each event, in order. Raises ``Problem`` 503 when the broker does not
        acknowledge; nothing is claimed accepted then."""
        now_ms = int(time.time() * 1000)
        fates: list[_Fate] = []
        outgoing: list[Outgoing] = []
        self._accept(found, caller, now_ms, fates, outgoing)
        placed = await self._log.send(outgoing) if outgoing else Placed([], [])
        results = _results(fates, placed)
        if outgoing:
            metrics.HTTP_EVENTS_ACCEPTED.inc(len(outgoing))
        if len(outgoing) < len(results):
            for result in results:
                if result.reason is not None:
                    metrics.HTTP_EVENTS_REJECTED.labels(result.reason).inc()
        return results

    def _accept(
        self,
        group: list[Found],
        caller: Caller,
        now_ms: int,
        fates: list[_Fate],
        outgoing: list[Outgoing],
    ) -> None:
        """All at once, else a few at a time, else one by one: what is refused or unusual costs
        only its neighbours the quick way."""
        if self._accept_together(group, caller, now_ms, fates, outgoing):
            return
        if len(group) <= _FEW:
            fates += [self._judge(one, caller, now_ms, outgoing) for one in group]
            return
        for first in range(0, len(group), _FEW):
            few = group[first : first + _FEW]
            self._accept(few, caller, now_ms, fates, outgoing)

    def _accept_together(
        self,
        group: list[Found],
        caller: Caller,
        now_ms: int,
        fates: list[_Fate],
        outgoing: list[Outgoing],
    ) -> bool:
        """Accepts a group that is nothing but usual valid events, for a fraction of what they cost
        singly; False when it may not be."""
        if {*map(type, group)} != {bytes}:
            return False
        values = cast("list[bytes]", group)
        array = b"[%b]" % b",".join(values)
        if len(array) > MAX_EVENT_BYTES and max(map(len, values)) > MAX_EVENT_BYTES:
            return False
        valid = read_valid_array(array)
        if valid is None:
            return False
        for extreme_us in (min(valid.occurred_at_us), max(valid.occurred_at_us)):
            # What lies between them passes, too.
            if judge_time(extreme_us, now_ms, self._limits) is not None:
                return False
        ports = [event.port_id for event in valid.events]
        if caller.ports is not None and not caller.ports.issuperset(ports):
            return False
        outgoing += zip(map(str.encode, ports), values, repeat(NO_HEADERS))
        fates += [event.event_id for event in valid.events]
        return True

    def _judge(self, one: Found, caller: Caller, now_ms: int, outgoing: list[Outgoing]) -> _Fate:
        """What becomes of one event; an accepted one is added to ``outgoing``."""
        if isinstance(one, Rejection):
            return _refused(None, one)
        if isinstance(one, bytes):
            one = Submitted(one)
        event = decode_event(one.value, one.headers)
        if isinstance(event, Rejection):
            return _refused(_identity(one), event)
        late = judge_time(event.occurred_at_us, now_ms, self._limits)
        if late is not None:
            return _refused(event.event_id, late)
        if caller.ports is not None and event.port_id not in caller.ports:
            detail = "port_id: this key may not send for this port"
            return Result(event.event_id, "rejected", FORBIDDEN_PORT, detail)
        outgoing.append((event.port_id.encode(), one.value, one.headers))
        return event.event_id


def _refused(event_id: str | None, why: Rejection) -> Result:
    return Result(event_id, "rejected", why.reason, why.detail)


def _results(fates: list[_Fate], placed: Placed) -> list[Result]:
    """The answers in order; ``placed`` has those that were sent."""
    if len(placed.offsets) == len(fates):
        ids = cast("list[str]", fates)
        none = repeat(None)
        return [*map(Result, ids, repeat("accepted"), none, none, *placed)]
    places = zip(*placed, strict=True)
    return [
        Result(fate, "accepted", None, None, *next(places)) if isinstance(fate, str) else fate
        for fate in fates
    ]


class EventsEndpoint:
    """The route ``/v1/events``."""

    def __init__(self, intake: Intake, in_flight: InFlight) -> None:
        self._intake = intake
        self._in_flight = in_flight

    def routes(self, gate: Gate) -> list[Route]:
        return [gate.route("/v1/events", self._post, REPORTERS, ["POST"])]

    async def _post(self, request: Request, caller: Caller) -> Response:
        name = media_type(request.headers.get("content-type"))
        with self._in_flight.holding(declared_size(request, MAX_BODY_BYTES)):
            body = await read_body(request, MAX_BODY_BYTES)
            found = take_apart(body, name, request.headers.items())
            results = await self._intake.take(found, caller)
        return _answer(results)


def _answer(results: list[Result]) -> Response:
    refused = sum([result.reason is not None for result in results])
    if refused < len(results):
        body = msgspec.json.encode(_Results(results))
        return Response(body, 207 if refused else 200, media_type="application/json")
    forbidden = bool(results) and all(result.reason == FORBIDDEN_PORT for result in results)
    detail = _first_line(results) if results else "the request holds no event"
    extra = {"results": [msgspec.to_builtins(result) for result in results]}
    raise Problem(403 if forbidden else 400, detail, extra=extra)


def _first_line(results: list[Result]) -> str:
    first = f"{results[0].reason}: {results[0].detail}"
    return first if len(results) == 1 else f"none of {len(results)} events was valid; {first}"


def _identity(one: Submitted) -> str | None:
    try:
        found = msgspec.json.decode(one.value, type=_Identity)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found.event_id or (found.id if one.headers else None)
