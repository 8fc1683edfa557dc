"""Query parameters, each checked, with the field named in what is refused."""

from collections.abc import Collection
from datetime import UTC, datetime

from starlette.requests import Request

from pipeline.core.errors import InvalidField


def known(request: Request, names: Collection[str]) -> None:
    """Refuses parameters that nobody reads: a misspelt filter would show too much."""
    for name in request.query_params:
        if name not in names:
            raise InvalidField(name, f"is no parameter here; these are: {', '.join(sorted(names))}")


def whole_number(request: Request, name: str, low: int, high: int, default: int) -> int:
    """The number under ``name``; raises ``InvalidField`` outside ``low`` … ``high``."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 19 and low <= int(text) <= high):
        raise InvalidField(name, f"must be a whole number from {low} to {high}")
    return int(text)


def choice(request: Request, name: str, allowed: Collection[str]) -> str | None:
    """The value under ``name``, None without one; raises ``InvalidField``."""
    text = request.query_params.get(name)
    if text is not None and text not in allowed:
        raise InvalidField(name, f"must be one of {', '.join(allowed)}")
    return text


def moment(request: Request, name: str) -> datetime | None:
    """A date or an RFC 3339 time under ``name``, UTC where it names no offset."""
    text = request.query_params.get(name)
    return None if text is None else moment_of(name, text)


def moment_of(name: str, text: str) -> datetime:
    """The same of a ``text`` from elsewhere; raises ``InvalidField`` for ``name``."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidField(name, "must be a date such as 2026-11-22 or an RFC 3339 time") from None
