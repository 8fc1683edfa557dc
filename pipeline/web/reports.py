"""``POST /v1/reports/weekly`` for schedulers, and ``GET /v1/notices``: what was sent to whom."""

import contextlib
import hmac
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pipeline.notices.destinations import Destinations
from pipeline.notices.log import read_book, request_report
from pipeline.notices.notice import notice_fields
from pipeline.notices.weekly_mail import week_cover
from pipeline.reports.figures import last_week
from pipeline.settings import Settings, variable
from pipeline.web.gate import ADMINS, Caller, Gate
from pipeline.web.json_bodies import json_answer
from pipeline.web.problems import Problem, unavailable
from pipeline.web.query import choice, known, whole_number

SEND_WAIT_S = 25.0
MAX_NOTICES = 1_000
DEFAULT_NOTICES = 100
READS_AT_ONCE = 4
_STATUSES = ("pending", "sent", "dead")


class ReportEndpoints:
    """The route ``/v1/reports/weekly``, open to whoever has the secret, and ``/v1/notices``."""

    def __init__(self, settings: Settings, client: Mapping[str, Any], topic: str) -> None:
        self._secret = settings.cron_secret
        self._destinations = Destinations(settings)
        self._client = client
        self._topic = topic
        self._reading = 0

    def routes(self, gate: Gate) -> list[Route]:
        return [
            Route("/v1/reports/weekly", self._weekly, methods=["POST"]),
            gate.route("/v1/notices", self._notices, ADMINS),
        ]

    async def _weekly(self, request: Request) -> Response:
        """Once for each week, whoever asks how often: 200 when it has been sent, 202 while it is
        being sent."""
        self._admit(request)
        if not self._destinations.can_report:
            names = ", ".join(map(variable, ("smtp_url", "mail_from", "mail_to")))
            raise unavailable(f"no report can be mailed while these are not set: {names}", 60)
        week = last_week(datetime.now(UTC).date())
        notice_id = next(iter(week_cover(week)))
        with self._one_of_few():
            notice, was_there = await request_report(
                self._client, self._topic, week, notice_id, SEND_WAIT_S
            )
        if notice is not None and not notice.is_pending and notice.is_dead:
            errors = "; ".join(one.error for one in notice.deliveries if one.error)
            raise Problem(502, f"the report was given up: {errors}")
        sent = notice is not None and not notice.is_pending
        status = "pending" if not sent else "already-sent" if was_there else "sent"
        body = {"week": week.isoformat(), "status": status}
        return json_answer(body, 200 if sent else 202)

    def _admit(self, request: Request) -> None:
        """Raises ``Problem`` 503 while no secret is set, 401 unless the request knows it."""
        if not self._secret:
            raise unavailable(f"{variable('cron_secret')} is not set", 60)
        header, query = request.headers.get("x-cron-secret"), request.query_params.get("secret")
        given = (query or "").encode() if header is None else header.encode("latin-1")
        if not hmac.compare_digest(given, self._secret.encode()):
            raise Problem(401, "the secret is missing or wrong: X-Cron-Secret or ?secret=")

    @contextlib.contextmanager
    def _one_of_few(self) -> Generator[None]:
        """Lets few read the topic at a time, or wait for a report. Raises ``Problem`` 503."""
        if self._reading >= READS_AT_ONCE:
            raise unavailable("too many ask for reports or notices now")
        self._reading += 1
        try:
            yield
        finally:
            self._reading -= 1

    async def _notices(self, request: Request, caller: Caller) -> Response:
        known(request, ("limit", "status"))
        if caller.ports is not None:
            raise Problem(403, "a key that is limited to ports may not see what is sent")
        limit = whole_number(request, "limit", 1, MAX_NOTICES, DEFAULT_NOTICES)
        status = choice(request, "status", _STATUSES)
        with self._one_of_few():
            book = await read_book(self._client, self._topic)
        found = [
            notice_fields(notice)
            for notice in sorted(book.notices.values(), key=lambda one: (-one.at_ms, one.id))
            if notice.deliveries and status in (None, *(one.status for one in notice.deliveries))
        ]
        counts = {name: book.count(name) for name in _STATUSES}
        return json_answer({"notices": found[:limit], "deliveries": counts})
