"""The weekly report by the schedule: on Monday at seven, once, from a real ledger over Kafka."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pytest

from pipeline.notices import log, notifier
from pipeline.notices.book import BEGUN, REQUEST, NoticeBook
from pipeline.notices.destinations import Destinations
from pipeline.notices.log import begun_json, read_book
from pipeline.notices.notice import Draft
from pipeline.notices.notifier import Notifier
from pipeline.notices.post import Post
from pipeline.notices.weekly_mail import WeeklyMail, week_cover
from pipeline.settings import Settings
from pipeline.stream.topics import Topics, create_or_check_topics
from tests import ledger_fixture
from tests.group_members import members_of
from tests.notices.drafts import draft
from tests.notices.mail_box import MailBox, mail_box
from tests.stream.conftest import migrated_database, url_of

SEVEN = datetime(2026, 11, 23, 7, tzinfo=UTC)
WAIT_S = 120.0


@pytest.fixture(scope="module")
def ledger_url(ledger_server: ledger_fixture.LedgerAddress) -> Iterator[str]:
    for address in migrated_database(ledger_server):
        yield url_of(address)


@pytest.fixture
def box() -> Iterator[MailBox]:
    with mail_box(MailBox()) as box:
        yield box


@pytest.fixture
def settings(kafka: str, topic_prefix: str, ledger_url: str, box: MailBox) -> Settings:
    return Settings(
        kafka_bootstrap=kafka,
        topic_prefix=topic_prefix,
        clickhouse_url=ledger_url,
        smtp_url=box.url,
        mail_from="tally@harbor.example",
        mail_to="a@harbor.example, b@harbor.example",
    )


@dataclass
class Clock:
    now: datetime = SEVEN - timedelta(seconds=1)

    def now_ms(self) -> int:
        return int(self.now.timestamp() * 1000)


@pytest.fixture
async def clock(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Moves the time of all who tell people; its attempts go by the real one."""
    clock = Clock()
    client = {"bootstrap_servers": settings.kafka_bootstrap or ""}
    await create_or_check_topics(client, Topics(settings.topic_prefix), 1)
    monkeypatch.setattr(notifier, "_now_ms", clock.now_ms)
    monkeypatch.setattr(notifier, "FINISH_S", WAIT_S)  # what is sent is recorded, however slowly
    monkeypatch.setattr(log, "STOP_TIMEOUT_S", WAIT_S)  # and no client is given up half closed
    return clock


class Counted(WeeklyMail):
    """Looks often, and counts how often any of its kind has."""

    every_s = 0.1
    looked = 0

    async def look(self, book: NoticeBook, now_ms: int) -> list[Draft]:
        Counted.looked += 1
        return await super().look(book, now_ms)


async def looks(number: int = 20) -> None:
    """Returns after so many more."""
    wanted = Counted.looked + number
    async with asyncio.timeout(WAIT_S):
        while Counted.looked < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def teller(settings: Settings) -> "asyncio.Task[None]":
    client = {"bootstrap_servers": settings.kafka_bootstrap}
    destinations = Destinations(settings)
    watch = Counted(settings, destinations, dict, dict)
    topics = Topics(settings.topic_prefix)
    post = Post(settings, topics.prefix)
    return asyncio.create_task(Notifier(client, topics, destinations, post, (watch,)).run())


async def ended(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def book_of(settings: Settings) -> NoticeBook:
    client = {"bootstrap_servers": settings.kafka_bootstrap}
    return await read_book(client, Topics(settings.topic_prefix).notices)


async def test_once_on_monday_at_seven(settings: Settings, clock: Clock, box: MailBox) -> None:
    tellers = [teller(settings), teller(settings)]
    client = {"bootstrap_servers": settings.kafka_bootstrap}
    group = Topics(settings.topic_prefix).notices_group
    async with asyncio.timeout(WAIT_S):
        while (await book_of(settings)).begun_ms is None:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        while len(await members_of(client, group)) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await looks()
    assert box.taken == []
    clock.now = SEVEN
    async with asyncio.timeout(WAIT_S):
        while len(box.taken) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await ended(*tellers)
    clock.now = SEVEN + timedelta(days=6, hours=23)
    again = teller(settings)
    await looks()
    await ended(again)
    assert sorted(one.receivers[0] for one in box.taken) == ["a@harbor.example", "b@harbor.example"]
    assert {str(one.mail["Subject"]) for one in box.taken} == {
        "AI usage & cost: USD 0.00 in the week of 2026-11-16"
    }
    assert list((await book_of(settings)).notices) == ["report|2026-11-16"]


async def test_when_a_report_is_due(box: MailBox, monkeypatch: pytest.MonkeyPatch) -> None:
    def named(_watch: WeeklyMail, week: date, *_: object) -> Draft:
        return draft(next(iter(week_cover(week))))

    monkeypatch.setattr(WeeklyMail, "_draft", named)
    settings = Settings(smtp_url=box.url, mail_from="t@x.y", mail_to="a@b.c")
    watch = WeeklyMail(settings, Destinations(settings), dict, dict)

    async def due(begun: datetime | None, now: datetime, *requested: date) -> list[str]:
        book = NoticeBook()
        if begun is not None:
            book.apply(BEGUN.encode(), begun_json(int(begun.timestamp() * 1000)))
        for week in requested:
            book.apply(f"{REQUEST}{week.isoformat()}".encode(), b"{}")
        drafts = await watch.look(book, int(now.timestamp() * 1000))
        return [name for one in drafts for name in one.covers]

    second, day = timedelta(seconds=1), timedelta(days=1)
    assert await due(None, SEVEN + day) == []
    assert await due(SEVEN + second, SEVEN + day) == []
    assert await due(SEVEN, SEVEN) == ["report|2026-11-16"]
    assert await due(SEVEN - day, SEVEN - second) == []
    assert await due(SEVEN - day, SEVEN + 3 * day) == ["report|2026-11-16"]
    assert await due(SEVEN - 90 * day, SEVEN + 7 * day) == ["report|2026-11-23"]
    assert await due(None, SEVEN + day, date(2026, 11, 9)) == ["report|2026-11-09"]
    assert await due(SEVEN - day, SEVEN, date(2026, 11, 16)) == ["report|2026-11-16"]
    nobody = settings.replaced(mail_to=None)
    quiet = WeeklyMail(nobody, Destinations(nobody), dict, dict)
    assert await quiet.look(NoticeBook(), int(SEVEN.timestamp() * 1000)) == []
    unread = WeeklyMail(settings, Destinations(settings), dict, lambda: None)
    book = NoticeBook()
    book.apply(f"{REQUEST}2026-11-09".encode(), b"{}")
    assert await unread.look(book, int(SEVEN.timestamp() * 1000)) == []
