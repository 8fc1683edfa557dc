"""Who tells people, and how often: on a real Kafka, with real mail and webhooks."""

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import date
from typing import Any

import pytest

from pipeline.notices import log, notice, notifier
from pipeline.notices.book import NoticeBook
from pipeline.notices.destinations import Destinations
from pipeline.notices.log import NoticeWriter, Record, read_book, request_report
from pipeline.notices.notice import Draft
from pipeline.notices.notifier import Notifier, Watch
from pipeline.notices.post import Post
from pipeline.settings import load_settings
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.notices.drafts import draft
from tests.notices.mail_box import MailBox, mail_box
from tests.notices.receiver import Receiver, receiver

WAIT_S = 120.0
SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()


class Levels:
    """A watch that calls for what it is told to, as long as it is told to."""

    name = "levels"
    every_s = 0.02

    def __init__(self) -> None:
        self.drafts: list[Draft] = []
        self.looked = 0

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        self.looked += 1
        return list(self.drafts)


class Place:
    """Topics of their own, and processes that tell people, each a task here."""

    def __init__(self, kafka: str, prefix: str, settings: dict[str, str]) -> None:
        self.client = {"bootstrap_servers": kafka}
        self.topics = Topics(prefix)
        self.settings = load_settings(settings)
        self.levels = Levels()

    def notifier(self, *watches: Watch) -> Notifier:
        destinations = Destinations(self.settings)
        post = Post(self.settings, self.topics.prefix)
        watches = watches or (self.levels,)
        return Notifier(self.client, self.topics, destinations, post, watches)

    @contextlib.asynccontextmanager
    async def telling(self, given: Notifier | None = None) -> AsyncIterator[Notifier]:
        told = given or self.notifier()
        task = asyncio.create_task(told.run())
        try:
            yield told
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def book(self) -> NoticeBook:
        return await read_book(self.client, self.topics.notices)

    async def settled(self, *ids: str) -> NoticeBook:
        """The log once these are there and nothing waits."""
        async with asyncio.timeout(WAIT_S):
            while True:
                book = await self.book()
                if set(ids) <= book.notices.keys() and not book.pending_count:
                    return book
                await asyncio.sleep(0.1)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.fixture
async def place(
    kafka: str, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Place, MailBox, Receiver]]:
    # A client that is given up while Kafka stands still leaves its connections to the collector.
    monkeypatch.setattr(log, "STOP_TIMEOUT_S", WAIT_S)
    with mail_box(MailBox()) as box, receiver(Receiver()) as at:
        settings = {
            "TALLYPORT_SMTP_URL": box.url,
            "TALLYPORT_MAIL_FROM": "tally@harbor.example",
            "TALLYPORT_MAIL_TO": "ops@harbor.example",
            "TALLYPORT_WEBHOOK_URL": at.url,
            "TALLYPORT_WEBHOOK_SECRET": SECRET,
        }
        made = Place(kafka, topic_prefix, settings)
        await create_or_check_topics(made.client, made.topics, 1)
        yield made, box, at


async def test_once_by_mail_and_webhook_across_replicas_and_restarts(
    place: tuple[Place, MailBox, Receiver],
) -> None:
    made, box, at = place
    made.levels.drafts = [draft("a", 10), draft("quiet", to=None)]
    async with made.telling(), made.telling():
        await made.settled("a|10", "quiet|0")
        made.levels.drafts.append(draft("b", to=("mailto:own@b.c",)))
        await made.settled("b|0")
    made.levels.drafts.append(draft("a", 20))
    looked = made.levels.looked
    async with made.telling():
        await made.settled("a|20")
        await until(lambda: made.levels.looked > looked + 20)
    assert [one.mail["Subject"] for one in box.taken] == ["about a", "about b", "about a"]
    assert [one.receivers for one in box.taken][1] == ["own@b.c"]
    assert len(at.posted) == 2
    assert len({one.mail["Message-ID"] for one in box.taken}) == 3
    assert len({one.headers["webhook-id"] for one in at.posted}) == 2


async def test_the_other_replica_goes_on_where_one_leaves(
    place: tuple[Place, MailBox, Receiver],
) -> None:
    made, box, _ = place
    other = Place(made.client["bootstrap_servers"], made.topics.prefix, {})
    other.settings = made.settings
    async with made.telling():
        await until(lambda: made.levels.looked > 0)
        async with other.telling():
            made.levels.drafts = other.levels.drafts = [draft("a")]
            await made.settled("a|0")
            looked = made.levels.looked + other.levels.looked
            # Whichever of the two it is now: Kafka may give the place to who came last.
            await until(lambda: made.levels.looked + other.levels.looked > looked + 20)
            assert [one.mail["Subject"] for one in box.taken] == ["about a"]
            made.levels.drafts = []
    other.levels.drafts = [draft("a"), draft("b")]
    async with other.telling():
        await made.settled("a|0", "b|0")
    assert [one.mail["Subject"] for one in box.taken] == ["about a", "about b"]


async def test_what_is_under_way_when_a_replica_leaves_is_not_sent_twice(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "FINISH_S", WAIT_S)  # however busy the machine is
    made, _, at = place
    sent = asyncio.Event()
    loop = asyncio.get_running_loop()
    at.wait = lambda: (loop.call_soon_threadsafe(sent.set), time.sleep(1))[1]
    made.levels.drafts = [draft("a", to=(at.url,))]
    async with made.telling():
        await sent.wait()
    book = await made.book()
    assert [one.status for one in book.notices["a|0"].deliveries] == ["sent"]
    async with made.telling(), made.telling():
        await made.settled("a|0")
    assert len(at.posted) == 1


async def test_stopped_while_it_records_it_records(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _, at = place
    recording, write = asyncio.Event(), NoticeWriter.write

    async def slow(self: NoticeWriter, records: Sequence[Record]) -> None:
        if any(b'"sent"' in (value or b"") for _, value in records):
            recording.set()
            await asyncio.sleep(0.5)
        await write(self, records)

    monkeypatch.setattr(NoticeWriter, "write", slow)
    made.levels.drafts = [draft("a", to=(at.url,))]
    async with made.telling():
        await recording.wait()
    assert [one.status for one in (await made.book()).notices["a|0"].deliveries] == ["sent"]
    async with made.telling():
        await made.settled("a|0")
    assert len(at.posted) == 1


async def test_tried_again_until_it_is_taken(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "FIRST_RETRY_MS", 50)
    made, box, at = place
    box.answers, at.statuses = ["451 later", "421 later"], [500, 503, 429]
    made.levels.drafts = [draft("a")]
    async with made.telling() as told:
        book = await made.settled("a|0")
        assert told.problems() == []
    by_mail, by_hook = book.notices["a|0"].deliveries
    assert (by_mail.status, by_mail.attempts) == ("sent", 3)
    assert (by_hook.status, by_hook.attempts) == ("sent", 4)
    assert len(box.taken) == 1
    assert len({one.headers["webhook-id"] for one in at.posted}) == 1
    assert len({one.body for one in at.posted}) == 1


async def test_what_is_given_up_shows(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "FIRST_RETRY_MS", 10)
    monkeypatch.setattr(notice, "LONGEST_RETRY_MS", 20)
    monkeypatch.setattr(notice, "MAX_ATTEMPTS", 3)
    made, box, at = place
    box.refused, at.statuses = {"ops@harbor.example": "550 gone"}, [500] * 9
    made.levels.drafts = [draft("a")]
    async with made.telling() as told:
        book = await made.settled("a|0")
        await until(lambda: any("2 deliveries were given up" in one for one in told.problems()))
    by_mail, by_hook = book.notices["a|0"].deliveries
    assert (by_mail.status, by_mail.attempts) == ("dead", 1)
    assert "550" in by_mail.error
    assert (by_hook.status, by_hook.attempts) == ("dead", 3)
    assert len(at.posted) == 3
    assert book.count("dead") == 2


async def test_back_off_survives_a_restart(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "FIRST_RETRY_MS", 3_600_000)
    made, box, _ = place
    box.answers = ["451 later"]
    made.levels.drafts = [draft("a", to=("mailto:a@b.c",))]

    async def attempts() -> int:
        found = (await made.book()).notices.get("a|0")
        return found.deliveries[0].attempts if found else 0

    async with made.telling():
        async with asyncio.timeout(WAIT_S):
            while await attempts() < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    looked = made.levels.looked
    async with made.telling():
        await until(lambda: made.levels.looked > looked + 20)
    assert await attempts() == 1
    assert box.taken == []


async def test_a_request_is_answered_once_its_report_is_out(
    place: tuple[Place, MailBox, Receiver],
) -> None:
    made, box, _ = place

    class Reports:
        name = "reports"
        every_s = 0.02

        async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
            return [
                draft(f"report|{week.isoformat()}", to=("mailto:a@b.c",)) for week in book.requested
            ]

    week = date(2026, 11, 16)
    asked: tuple[Any, ...] = (made.client, made.topics.notices, week, "report|2026-11-16|0")
    async with made.telling(made.notifier(Reports())):
        first, again = await request_report(*asked, WAIT_S), await request_report(*asked, WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while (await made.book()).requested:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    assert first[0] is not None
    assert [one.status for one in first[0].deliveries] == ["sent"]
    assert (first[1], again[1]) == (False, True)
    assert len(box.taken) == 1


async def test_more_than_may_wait_are_claimed_as_others_go_out(
    place: tuple[Place, MailBox, Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "MAX_PENDING", 3)
    made, box, _ = place
    made.levels.drafts = [draft(f"n{n}", to=("mailto:a@b.c",)) for n in range(8)]
    async with made.telling():
        await made.settled(*(f"n{n}|0" for n in range(8)))
    assert len({one.mail["Subject"] for one in box.taken}) == len(box.taken) == 8


async def test_what_is_over_is_forgotten(place: tuple[Place, MailBox, Receiver]) -> None:
    made, box, _ = place
    made.levels.drafts = [draft("old", keep_until_ms=1), draft("new")]
    async with made.telling():
        await made.settled("old|0", "new|0")
    made.levels.drafts = []
    async with made.telling():
        async with asyncio.timeout(WAIT_S):
            while "old|0" in (await made.book()).notices:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert "new|0" in (await made.book()).notices
    assert len(box.taken) == 2
