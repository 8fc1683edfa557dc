"""Times as users type them."""

from datetime import UTC, datetime
from typing import Any

import click


class Time(click.ParamType):
    """A date or an RFC 3339 time; UTC where it names no offset."""

    name = "TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no date like 2026-11-22 and no RFC 3339 time", param, ctx)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
