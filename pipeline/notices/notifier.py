"""Tells people, from one of the API processes at a time.

What must be told is a level, not an event: budgets over a line, a line that is reached, a week that
is over. So nothing is lost while nobody looks, and what was told is remembered on Kafka:

    1 claim   the notice and where it goes are committed to ``tallyport.notices``
    2 send    each place is tried: the mail server or the webhook's receiver has taken it
    3 record  how it went is committed: sent, due again later, or given up

Killed before 1, the notice is found again and claimed. Killed between 1 and 2, it is sent by
whoever follows. Killed between 2 and 3, it is sent once more, with the same Message-ID or webhook
id. A process that was only thought dead cannot claim or record any more: who follows has taken
over its transactional id.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from aiokafka.errors import IllegalOperation, KafkaError

from pipeline import faults, metrics
from pipeline.core.errors import TallyportError
from pipeline.notices.book import BEGUN, NOTICE, REQUEST, NoticeBook
from pipeline.notices.destinations import Destinations
from pipeline.notices.log import (
    NoticeWriter,
    Office,
    Record,
    begun_json,
    notice_record,
    office,
    writer,
)
from pipeline.notices.notice import Delivery, Draft, Notice, claimed
from pipeline.notices.post import Post
from pipeline.notices.weekly_mail import week_cover
from pipeline.stream.topics import Topics

MAX_PENDING: Final = 200
"""More are not claimed until some have gone out; they wait where they are found."""
MAX_KEPT: Final = 50_000
MAX_CLAIMS: Final = 50
MAX_SENDING: Final = 4
EXPIRE_EVERY_S: Final = 600.0
MAX_EXPIRED: Final = 500
RETRY_S: Final = 3.0
FINISH_S: Final = 6.0
_TURN_MS = 200

log = logging.getLogger(__name__)


class Watch(Protocol):
    """Something that is looked at every ``every_s`` seconds, and may call for notices. What it
    returns and is not claimed must be returned again."""

    @property
    def name(self) -> str: ...

    @property
    def every_s(self) -> float: ...

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]: ...


class Troubles:
    """Why something does not work, by name; logged when that changes."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def note(self, name: str, error: BaseException | None) -> None:
        """Remembers it; None forgets it."""
        if error is None:
            self._told.pop(name, None)
            return
        text = f"notices, {name}: {' '.join(str(error).split())[:200] or type(error).__name__}"
        if self._told.get(name) != text:
            log.warning("%s", text)
        self._told[name] = text

    def lines(self) -> list[str]:
        return list(self._told.values())


class Notifier:
    """``run`` until it is cancelled. ``watches`` only look while this process is the one."""

    def __init__(
        self,
        client: Mapping[str, Any],
        topics: Topics,
        destinations: Destinations,
        post: Post,
        watches: tuple[Watch, ...],
    ) -> None:
        self._client = dict(client)
        self._topics = topics
        self._destinations = destinations
        self._post = post
        self._watches = watches
        self._troubles = Troubles()
        self._term: _Term | None = None

    def problems(self) -> list[str]:
        """What keeps people from being told; no reason to stop serving."""
        found = [*self._destinations.problems(), *self._troubles.lines()]
        if self._term is not None and len(self._term.book.notices) >= MAX_KEPT:
            found.append(f"{MAX_KEPT} notices are remembered: no more until some are over")
        dead = self._term.book.count("dead") if self._term is not None else 0
        if dead:
            found.append(f"{dead} deliveries were given up: `tallyport report notices` lists them")
        return found

    async def run(self) -> None:
        """Waits to be the one that tells people, and does."""
        while True:
            try:
                async with office(self._client, self._topics) as place:
                    self._troubles.note("log", None)
                    while True:
                        await place.won()
                        try:
                            await self._serve(place)
                        finally:
                            place.left()
            except (KafkaError, OSError, TallyportError) as error:
                self._troubles.note("log", error)
            await asyncio.sleep(RETRY_S)

    async def _serve(self, place: Office) -> None:
        """Returns when another process has become the one; raises what ends the connection."""
        try:
            async with writer(self._client, self._topics) as log_writer:
                book = await place.read()
                term = _Term(place, log_writer, book, self._destinations, self._post)
                self._term = term
                async with self._looking(term):
                    await term.run()
        except IllegalOperation as error:  # fenced between two calls
            raise TallyportError("another process tells people now") from error
        finally:
            self._term = None
            _measure(NoticeBook())

    @contextlib.asynccontextmanager
    async def _looking(self, term: "_Term") -> AsyncGenerator[None]:
        tasks = [asyncio.create_task(self._look(watch, term)) for watch in self._watches]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, watch: Watch, term: "_Term") -> None:
        while True:
            try:
                term.found[watch.name] = await watch.look(term.book, _now_ms())
                self._troubles.note(watch.name, None)
            except (KafkaError, OSError, TallyportError) as error:
                self._troubles.note(watch.name, error)
            except Exception as error:
                log.exception("notices, %s: cannot be looked at", watch.name)
                self._troubles.note(watch.name, error)
            await asyncio.sleep(watch.every_s)


class _Outcome(NamedTuple):
    notice_id: str
    place: int
    delivery: Delivery


class _Term:
    """From taking over the log to losing it. ``found`` is what each watch calls for now."""

    def __init__(
        self,
        place: Office,
        log_writer: NoticeWriter,
        book: NoticeBook,
        destinations: Destinations,
        post: Post,
    ) -> None:
        self.book = book
        self.found: dict[str, list[Draft]] = {}
        self._place, self._writer = place, log_writer
        self._destinations, self._post = destinations, post
        self._sending: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._outcomes: list[_Outcome] = []
        self._tidied_s = 0.0

    async def run(self) -> None:
        """Goes round until another process is the one. Raises ``KafkaError``."""
        try:
            if self.book.begun_ms is None:
                await self._write([(BEGUN, begun_json(_now_ms()))])
            while self._place.is_ours:
                await self._claim()
                self._send()
                await self._record()
                await self._tidy()
                _measure(self.book)
                for key, value in await self._place.news(_TURN_MS):
                    if (key or b"").startswith(REQUEST.encode()):  # all else is our own
                        self.book.apply(key, value)
        finally:
            await self._finish()

    async def _finish(self) -> None:
        """What is under way is finished and recorded, or it would be sent again by who follows."""
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=FINISH_S)
        for task in self._sending.values():
            task.cancel()
        await asyncio.gather(*self._sending.values(), return_exceptions=True)
        with contextlib.suppress(KafkaError, TallyportError, asyncio.CancelledError):
            await self._record()

    async def _claim(self) -> None:  # 1
        new = self._new()
        if new:
            faults.point("notice-found")
        answered = [
            (f"{REQUEST}{week.isoformat()}", None)
            for week in self.book.requested
            if not self.book.is_news(week_cover(week))
        ]
        records: list[Record] = [*map(notice_record, new), *answered]
        if records:
            await self._write(records)
            faults.point("notice-claimed")

    def _new(self) -> list[Notice]:
        room = min(MAX_CLAIMS, MAX_PENDING - self.book.pending_count)
        room = min(room, MAX_KEPT - len(self.book.notices))
        drafts = [draft for found in self.found.values() for draft in found]
        self.found.clear()
        new: dict[str, Notice] = {}
        for draft in drafts:
            if len(new) >= room:
                break
            if self.book.is_news(draft.covers) and self._destinations.has_any(draft.to):
                now_ms = _now_ms()
                deliveries = self._destinations.deliveries(draft.to, now_ms)
                new.setdefault(draft.id, claimed(draft, deliveries, now_ms))
        return list(new.values())

    def _send(self) -> None:  # 2
        now_ms = _now_ms()
        for notice in self.book.pending():
            for index, delivery in enumerate(notice.deliveries):
                place = (notice.id, index)
                if len(self._sending) >= MAX_SENDING:
                    return
                is_due = delivery.status == "pending" and delivery.next_at_ms <= now_ms
                if is_due and place not in self._sending:
                    work = self._deliver(notice, index, delivery)
                    self._sending[place] = asyncio.create_task(work)

    async def _deliver(self, notice: Notice, index: int, delivery: Delivery) -> None:
        try:
            outcome = await self._post.deliver(notice, delivery)
        except Exception as error:  # one delivery that nobody can make must not stop all others
            log.exception("%s to %s failed", notice.id, _shown(delivery.to))
            outcome = delivery.failed(_now_ms(), repr(error), for_good=False)
        if outcome.status == "sent":
            faults.point("notice-sent")
        else:
            log.warning("%s to %s: %s", notice.id, _shown(outcome.to), outcome.error)
        self._outcomes.append(_Outcome(notice.id, index, outcome))

    async def _record(self) -> None:  # 3
        for place, task in list(self._sending.items()):
            if task.done():
                task.result()
                del self._sending[place]
        outcomes = [*self._outcomes]
        changed: dict[str, Notice] = {}
        for notice_id, index, delivery in outcomes:
            notice = changed.get(notice_id) or self.book.notices[notice_id]
            changed[notice_id] = notice.with_delivery(index, delivery)
        if changed:
            await self._write([notice_record(notice) for notice in changed.values()])
            del self._outcomes[: len(outcomes)]
            faults.point("notice-recorded")

    async def _tidy(self) -> None:
        """Forgets what is told of no more."""
        now_s = time.monotonic()
        if now_s - self._tidied_s < EXPIRE_EVERY_S and self._tidied_s:
            return
        self._tidied_s = now_s
        expired = self.book.expired(_now_ms())[:MAX_EXPIRED]
        if expired:
            await self._write([(f"{NOTICE}{notice_id}", None) for notice_id in expired])

    async def _write(self, records: list[Record]) -> None:
        """A write that was begun ends, also when this process is told to: what was sent and is not
        recorded would be sent again."""
        writing = asyncio.ensure_future(self._writer.write(records))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait([writing])
            raise
        for key, value in records:
            self.book.apply(key.encode(), value)


def _measure(book: NoticeBook) -> None:
    metrics.NOTICES_WAITING.set(book.count("pending"))
    metrics.NOTICES_DEAD.set(book.count("dead"))


def _shown(place: str) -> str:
    """A place for the log: of a URL no more than its host, as the rest may be a secret."""
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.hostname}" if parts.netloc else place


def _now_ms() -> int:
    return int(time.time() * 1000)
