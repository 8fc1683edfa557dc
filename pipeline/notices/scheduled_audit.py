"""The audit by a schedule: a process of its own with low priority, whose differences are told.

Each turn is recorded when it is over, also when everything agreed; one that was cut short by a
restart is made again.
"""

import asyncio
import contextlib
import json
import logging
from typing import Any, Final

from pipeline.core.windows import format_boundary
from pipeline.notices.book import NoticeBook
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft, Message
from pipeline.ops.background import begin, in_background, report_in

HOUR_MS: Final = 3_600_000
FIRST_HOUR: Final = 3
"""A daily turn begins at 03:00 UTC, when most deployments are quiet."""
TIMEOUT_S: Final = 3600.0
KEEP_DAYS: Final = 32
DIFFERS, FAILED, AGREED = "audit.difference", "audit.failed", "audit.agreed"
_SHOWN = 10

log = logging.getLogger(__name__)


class ScheduledAudit:
    """Runs at most one audit at a time, every ``every_h`` hours; 0 never."""

    name = "scheduled audit"
    every_s = 10.0

    def __init__(self, every_h: int, command: tuple[str, ...] | None = None) -> None:
        self._every_h = every_h
        self._command = command or tuple(in_background("audit", "--json"))

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """Makes the audit when a turn is due; what comes of it."""
        if not self._every_h or book.begun_ms is None:
            return []
        turn_ms = turn_of(now_ms, self._every_h)
        if turn_ms < book.begun_ms or not book.is_news(turn_cover(turn_ms)):
            return []
        log.info("scheduled audit of %s begins", format_boundary(turn_ms))
        status, printed, said = await self._run()
        return [audit_draft(turn_ms, now_ms, status, printed, said)]

    async def _run(self) -> tuple[int | None, bytes, bytes]:
        """Exit status, None when it took too long, and what it wrote."""
        process = await begin(self._command)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                printed, said = await process.communicate()
            return process.returncode, printed, said
        except TimeoutError:
            return None, b"", b""
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()


def turn_of(now_ms: int, every_h: int) -> int:
    """When the newest turn was due."""
    period_ms, first_ms = every_h * HOUR_MS, FIRST_HOUR * HOUR_MS
    return (now_ms - first_ms) // period_ms * period_ms + first_ms


def turn_cover(turn_ms: int) -> dict[str, int]:
    """What the outcome of one turn covers."""
    return {f"audit|{format_boundary(turn_ms)}": 0}


def audit_draft(
    turn_ms: int, now_ms: int, status: int | None, printed: bytes, said: bytes
) -> Draft:
    """The outcome of a turn: an alert, or where everything agreed a mere record."""
    covers = turn_cover(turn_ms)
    keep_until_ms = turn_ms + KEEP_DAYS * DAY_MS
    report = report_in(printed)
    if status == 0 and report is not None and report.get("ok") is True:
        agreed = Message("The audit agrees", "", "", {})
        return Draft(next(iter(covers)), AGREED, covers, keep_until_ms, agreed, None)
    if report is not None and report.get("differences_by_kind"):
        kind, message = DIFFERS, _differences(report, now_ms)
    else:
        kind, message = FAILED, _failure(status, said, now_ms)
    return Draft(next(iter(covers)), kind, covers, keep_until_ms, message)


def _differences(report: dict[str, Any], now_ms: int) -> Message:
    by_kind: dict[str, int] = report["differences_by_kind"]
    total = sum(by_kind.values())
    return letter(
        DIFFERS,
        f"The audit found {total:,} differences" if total != 1 else "The audit found a difference",
        "A recount of the events does not agree with what was counted. Run `tallyport audit` for "
        "the table of differences.",
        [
            *((kind, f"{number:,}") for kind, number in sorted(by_kind.items())),
            *(("First", json.dumps(one)) for one in report.get("differences", [])[:_SHOWN]),
        ],
        now_ms,
        {"differences_by_kind": by_kind, "differences": report.get("differences", [])[:_SHOWN]},
    )


def _failure(status: int | None, said: bytes, now_ms: int) -> Message:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
    why = f"it took longer than {TIMEOUT_S:.0f} s" if status is None else f"status {status}"
    last = lines[-1] if lines else why
    return letter(
        FAILED,
        "The scheduled audit could not be made",
        "Nothing was compared. Run `tallyport audit` to see why.",
        [("Why", last), ("Ended with", why)],
        now_ms,
        {"error": last, "status": status},
    )
