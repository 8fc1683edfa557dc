"""Too many records rejected: told once a day when their share in the last minutes is high."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from pipeline.core.windows import format_boundary, window
from pipeline.notices.book import NoticeBook
from pipeline.notices.letters import letter
from pipeline.notices.notice import DAY_MS, Draft
from pipeline.stream.reader import topic_partitions
from pipeline.stream.topics import Topics

WINDOW_MS: Final = 600_000
LEAST: Final = 20
"""Fewer rejected records than this are told by metrics and the page only."""
PERCENT: Final = 5
MAX_READ: Final = 2_000
KEEP_DAYS: Final = 8
TYPE: Final = "events.rejected"
_POLL_MS = 500


class Rejected(NamedTuple):
    """Of about ``taken`` records in the window so many were rejected, by reason. Of more than
    ``MAX_READ`` only so many are counted."""

    taken: int
    by_reason: Mapping[str, int]

    @property
    def rejected(self) -> int:
        return sum(self.by_reason.values())

    @property
    def is_high(self) -> bool:
        return self.rejected >= LEAST and self.rejected * 100 >= self.taken * PERCENT


class RejectedShare:
    """Asks Kafka where both logs stood ten minutes ago, and counts only when that looks high."""

    name = "rejected records"
    every_s = 10.0

    def __init__(self, client: Mapping[str, Any], topics: Topics) -> None:
        self._client = dict(client)
        self._topics = topics

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        """The alert when it is due. Raises ``KafkaError``."""
        if not book.is_news(day_cover(now_ms)):
            return []
        found = await self._measure(now_ms)
        return [rejected_draft(found, now_ms)] if found.is_high else []

    async def _measure(self, now_ms: int) -> Rejected:
        consumer = AIOKafkaConsumer(
            **self._client,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            await consumer.start()
            events = await _span(consumer, self._topics.events, now_ms - WINDOW_MS)
            rejected = await _span(consumer, self._topics.rejected, now_ms - WINDOW_MS)
            taken = sum(end - start for start, end in events.values())
            # The ends of transactions have offsets, too: this is an upper bound.
            most = sum(end - start for start, end in rejected.values())
            if most < LEAST or most * 100 < taken * PERCENT:
                return Rejected(taken, {})
            return Rejected(taken, await _reasons(consumer, rejected))
        finally:
            await consumer.stop()


def day_cover(now_ms: int) -> dict[str, int]:
    """What an alert of today covers."""
    return {f"rejected|{format_boundary(window('day', now_ms).start_ms)[:10]}": 0}


def rejected_draft(found: Rejected, now_ms: int) -> Draft:
    """The alert."""
    covers = day_cover(now_ms)
    reasons = sorted(found.by_reason.items(), key=lambda item: (-item[1], item[0]))
    at_least = "at least " if found.rejected >= MAX_READ else ""
    message = letter(
        TYPE,
        f"{at_least}{found.rejected:,} of about {found.taken:,} records rejected",
        "So much was rejected in the last ten minutes. The originals wait on usage.rejected for "
        "30 days, with the reason in a header. This is told once a day.",
        [(reason, f"{number:,}") for reason, number in reasons],
        now_ms,
        {"rejected": found.rejected, "taken_in": found.taken, "by_reason": dict(reasons)},
    )
    keep_until_ms = window("day", now_ms).resets_at_ms + KEEP_DAYS * DAY_MS
    return Draft(next(iter(covers)), TYPE, covers, keep_until_ms, message)


async def _span(
    consumer: AIOKafkaConsumer, topic: str, since_ms: int
) -> dict[TopicPartition, tuple[int, int]]:
    """By partition, the first offset since then, and where it ends."""
    tps = [TopicPartition(topic, p) for p in sorted(await topic_partitions(consumer, topic))]
    ends = await consumer.end_offsets(tps)
    starts = await consumer.offsets_for_times(dict.fromkeys(tps, since_ms))
    spans: dict[TopicPartition, tuple[int, int]] = {}
    for tp in tps:
        start = starts[tp]
        spans[tp] = (ends[tp] if start is None else min(start.offset, ends[tp]), ends[tp])
    return spans


async def _reasons(
    consumer: AIOKafkaConsumer, spans: Mapping[TopicPartition, tuple[int, int]]
) -> dict[str, int]:
    consumer.assign(list(spans))
    for tp, (start, _) in spans.items():
        consumer.seek(tp, start)
    found = Counter[str]()
    while found.total() < MAX_READ:
        open_tps = [tp for tp, (_, end) in spans.items() if await consumer.position(tp) < end]
        if not open_tps:
            break
        batches = await consumer.getmany(*open_tps, timeout_ms=_POLL_MS, max_records=MAX_READ)
        for tp, records in batches.items():
            for record in records:
                if record.offset < spans[tp][1]:
                    found[_reason(record.headers)] += 1
    return dict(found)


def _reason(headers: Any) -> str:
    told = next((value for name, value in headers if name == "reason"), b"") or b""
    return told.decode(errors="replace")[:64] or "unknown"
