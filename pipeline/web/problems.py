"""Errors as the API tells them: problem documents after RFC 9457."""

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pipeline.core.errors import InvalidField, TallyportError
from pipeline.stream.change_log import ChangeLogError
from pipeline.stream.name_log import NameLogError
from pipeline.stream.policy_log import PolicyLogError
from pipeline.stream.rate_log import RateLogError
from pipeline.stream.rate_publishing import RatesRefused

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


class Problem(Exception):
    """Ends a request with a problem document; ``extra`` are members beside the standard ones."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def body(self) -> dict[str, Any]:
        """The document."""
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }

    def response(self) -> Response:
        """The answer that carries it."""
        text = json.dumps(self.body, ensure_ascii=False, separators=(",", ":"))
        # A value that came from the client may hold what UTF-8 has no form for.
        content = text.encode("utf-8", "replace")
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def unavailable(detail: str, retry_after_s: int = RETRY_AFTER_S) -> Problem:
    """503: what is needed does not answer now; nothing was done."""
    return Problem(503, detail, headers={"Retry-After": str(retry_after_s)})


def too_many(detail: str, wait_s: float) -> Problem:
    """429: come back after ``wait_s`` seconds."""
    return Problem(429, detail, headers={"Retry-After": str(max(1, int(-(-wait_s // 1))))})


def invalid(error: InvalidField) -> Problem:
    """400 that names the field and the rule it breaks."""
    return Problem(400, str(error), extra={"field": error.field})


def problem_of(error: Exception) -> Problem:
    """What the API says of an error; one that nobody expected is logged and not told."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, InvalidField):
        return invalid(error)
    if isinstance(error, RatesRefused):
        return Problem(400, str(error))
    if isinstance(error, PolicyLogError | RateLogError | NameLogError | ChangeLogError):
        return unavailable(str(error))
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, TallyportError):
        log.warning("a request failed: %s", error)
        return Problem(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
    log.error("a request failed for a reason that is not the caller's", exc_info=error)
    return Problem(500, "the server failed; its log says why")


async def handle_error(_: Request, error: Exception) -> Response:
    """Starlette's handler for every exception."""
    return problem_of(error).response()


def _of_http(error: HTTPException) -> Problem:
    details = {404: "there is nothing at this path", 405: "this path does not take that method"}
    detail = details.get(error.status_code, error.detail)
    return Problem(error.status_code, detail, headers=error.headers)
