"""Worker or sink that no longer advances while work waits: told once a day for each."""

from collections.abc import Awaitable, Callable
from typing import Final

from pipeline.core.windows import format_boundary, window
from pipeline.notices.book import NoticeBook
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft

PATIENCE_MS: Final = 30_000
"""A part that restarts is no reason to wake anybody."""
KEEP_DAYS: Final = 8
TYPE: Final = "part.stalled"

Stalled = Callable[[], Awaitable[dict[str, str]]]
"""Which parts stand still now, each with a line that says where."""


class Stalls:
    """Looks often, and tells what has stood still for ``PATIENCE_MS`` without a pause."""

    name = "stalled parts"
    every_s = 5.0

    def __init__(self, stalled: Stalled) -> None:
        self._stalled = stalled
        self._since_ms: dict[str, int] = {}

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """The alerts that are due."""
        found = await self._stalled()
        self._since_ms = {part: self._since_ms.get(part, now_ms) for part in found}
        return [
            stall_draft(part, line, now_ms)
            for part, line in sorted(found.items())
            if now_ms - self._since_ms[part] >= PATIENCE_MS
            and book.is_news(stall_cover(part, now_ms))
        ]


def stall_cover(part: str, now_ms: int) -> dict[str, int]:
    """What an alert of today on ``part`` covers."""
    return {f"stalled|{part}|{format_boundary(window('day', now_ms).start_ms)[:10]}": 0}


def stall_draft(part: str, line: str, now_ms: int) -> Draft:
    """The alert."""
    covers = stall_cover(part, now_ms)
    message = letter(
        TYPE,
        f"The {part} has stopped advancing",
        "Records wait and are not counted. Nothing is lost: they are taken once it goes on. Its "
        "log and its /health/ready say why. This is told once a day.",
        [("Part", part), ("What waits", line)],
        now_ms,
        {"part": part, "detail": line},
    )
    keep_until_ms = window("day", now_ms).resets_at_ms + KEEP_DAYS * DAY_MS
    return Draft(next(iter(covers)), TYPE, covers, keep_until_ms, message)
