"""The fold of ``tallyport.notices``: what was told, what waits, what could not be told; pure.

Records: ``notice|ID`` holds a notice, ``request|WEEK`` asks for the report on a week, ``begun``
says since when this deployment tells people anything. A tombstone forgets.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Final

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.notices.notice import Notice, parse_notice

NOTICE: Final = "notice|"
REQUEST: Final = "request|"
BEGUN: Final = "begun"

log = logging.getLogger(__name__)


class Begun(msgspec.Struct, frozen=True):
    """Schedules count from here; what was due before is not made up for."""

    at_ms: int


class NoticeBook:
    """Takes the records in their order."""

    def __init__(self) -> None:
        self.begun_ms: int | None = None
        self.notices: dict[str, Notice] = {}
        self.requested: set[date] = set()
        self._covered: dict[str, int] = {}
        self._pending: set[str] = set()
        self._counts = Counter[str]()

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Takes one record; what is no record of ours is left alone."""
        name = (key or b"").decode(errors="replace")
        try:
            if name.startswith(NOTICE):
                self._put(name.removeprefix(NOTICE), value)
            elif name.startswith(REQUEST):
                self._request(date.fromisoformat(name.removeprefix(REQUEST)), value)
            elif name == BEGUN and value is not None:
                self.begun_ms = msgspec.json.decode(value, type=Begun).at_ms
        except (CorruptRecord, msgspec.MsgspecError, ValueError) as error:
            log.warning("a record of tallyport.notices is left out: %s", error)

    def is_news(self, covers: Mapping[str, int]) -> bool:
        """Whether anything in ``covers`` has not been told yet at its level."""
        return any(level > self._covered.get(name, -1) for name, level in covers.items())

    def pending(self) -> Iterator[Notice]:
        """Those with a delivery that waits, the oldest first."""
        found = [self.notices[name] for name in self._pending]
        return iter(sorted(found, key=lambda notice: (notice.at_ms, notice.id)))

    @property
    def pending_count(self) -> int:
        return len(self._pending)

    def count(self, status: str) -> int:
        """Deliveries that stand at ``status``."""
        return self._counts[status]

    def expired(self, now_ms: int) -> list[str]:
        """The ids of notices that need not be remembered any more."""
        return [
            notice.id
            for notice in self.notices.values()
            if notice.keep_until_ms <= now_ms and not notice.is_pending
        ]

    def _put(self, notice_id: str, value: bytes | None) -> None:
        self._forget(notice_id)
        if value is None:
            return
        notice = parse_notice(value)
        self.notices[notice_id] = notice
        self._counts.update(delivery.status for delivery in notice.deliveries)
        for name, level in notice.covers.items():
            self._covered[name] = max(level, self._covered.get(name, -1))
        if notice.is_pending:
            self._pending.add(notice_id)

    def _forget(self, notice_id: str) -> None:
        notice = self.notices.pop(notice_id, None)
        self._pending.discard(notice_id)
        if notice is None:
            return
        self._counts.subtract(delivery.status for delivery in notice.deliveries)
        for name, level in notice.covers.items():
            if self._covered.get(name) == level:
                del self._covered[name]

    def _request(self, week: date, value: bytes | None) -> None:
        if value is None:
            self.requested.discard(week)
        else:
            self.requested.add(week)
