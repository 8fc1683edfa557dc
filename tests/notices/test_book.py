"""What is remembered of notices, how deliveries go on, and where they go; without any server."""

from datetime import date
from decimal import Decimal

import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.core.windows import parse_ms
from pipeline.notices.book import BEGUN, NOTICE, REQUEST, NoticeBook
from pipeline.notices.destinations import Destinations, address_of, is_address, url_obstacle
from pipeline.notices.log import begun_json
from pipeline.notices.notice import (
    LONGEST_RETRY_MS,
    MAX_ATTEMPTS,
    Delivery,
    Draft,
    Notice,
    claimed,
    delivery_id,
    notice_json,
    retry_after_ms,
)
from pipeline.notices.rejected_share import Rejected, rejected_draft
from pipeline.notices.scheduled_audit import audit_draft, turn_of
from pipeline.notices.stalls import Stalls
from pipeline.notices.unpriced_models import cover_of, unpriced_draft
from pipeline.notices.usage_line import line_nano, month_cover, rolling_filters, usage_draft
from pipeline.settings import load_settings
from tests.notices.drafts import draft

NOON_MS = parse_ms("2026-11-22T12:00:00Z")


def kept(book: NoticeBook, one: Draft, *deliveries: Delivery) -> Notice:
    notice = claimed(one, deliveries, 5)
    book.apply(f"{NOTICE}{notice.id}".encode(), notice_json(notice))
    return notice


def test_what_was_told_is_no_news_at_its_level_or_below() -> None:
    book = NoticeBook()
    assert book.is_news({"a": 0})
    kept(book, draft("a", 100), Delivery("mailto:x@y"))
    assert not book.is_news({"a": 100})
    assert not book.is_news({"a": 50})
    assert book.is_news({"a": 101})
    assert book.is_news({"a": 100, "b": 0})
    book.apply(f"{NOTICE}a|100".encode(), None)
    assert book.is_news({"a": 0})
    assert book.pending_count == 0


def test_a_text_is_kept_until_everybody_was_told() -> None:
    first = claimed(draft("a"), [Delivery("mailto:x@y"), Delivery("https://z")], 5)
    assert first.message is not None
    second = first.with_delivery(0, first.deliveries[0].sent(7))
    assert second.is_pending
    assert second.message is not None
    third = second.with_delivery(1, second.deliveries[1].failed(8, "no\n way", for_good=True))
    assert not third.is_pending
    assert third.is_dead
    assert third.message is None
    assert third.deliveries == (
        Delivery("mailto:x@y", "sent", 1, 0, 7),
        Delivery("https://z", "dead", 1, 8 + 2_000, 8, "no way"),
    )


def test_attempts_are_further_and_further_apart_and_end() -> None:
    waits_ms = [retry_after_ms(attempts) for attempts in range(1, MAX_ATTEMPTS)]
    assert waits_ms[:4] == [2_000, 4_000, 8_000, 16_000]
    assert waits_ms == sorted(waits_ms)
    assert waits_ms[-1] == LONGEST_RETRY_MS
    assert 4 * 3_600_000 < sum(waits_ms) < 6 * 3_600_000
    delivery, now_ms = Delivery("mailto:x@y"), 0
    for attempt in range(1, MAX_ATTEMPTS + 1):
        assert delivery.status == "pending", attempt
        delivery = delivery.failed(now_ms, "451", for_good=False)
        now_ms = delivery.next_at_ms
    assert delivery.status == "dead"
    assert delivery.attempts == MAX_ATTEMPTS


def test_only_what_is_over_and_old_is_forgotten() -> None:
    book = NoticeBook()
    kept(book, draft("waits", keep_until_ms=10), Delivery("mailto:x@y"))
    kept(book, draft("done", keep_until_ms=10))
    kept(book, draft("new", keep_until_ms=99))
    assert book.expired(50) == ["done|0"]


def test_requests_and_the_beginning_are_read_back() -> None:
    book = NoticeBook()
    book.apply(BEGUN.encode(), begun_json(77))
    book.apply(f"{REQUEST}2026-11-16".encode(), b"{}")
    assert (book.begun_ms, book.requested) == (77, {date(2026, 11, 16)})
    book.apply(f"{REQUEST}2026-11-16".encode(), None)
    assert book.requested == set()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b"{}"),
        (b"\xff", b"{}"),
        (b"notice|a", b"{"),
        (b"notice|a", b"[1]"),
        (b"request|never", b"{}"),
        (b"begun", b"\xff"),
        (b"other", b"1"),
    ],
)
def test_what_is_no_record_of_ours_is_left_alone(key: bytes | None, value: bytes) -> None:
    book = NoticeBook()
    book.apply(key, value)
    assert (book.notices, book.requested, book.begun_ms) == ({}, set(), None)


def test_ids_of_deliveries_depend_on_nothing_else() -> None:
    assert delivery_id("p.", "a", "mailto:x@y") == delivery_id("p.", "a", "mailto:x@y")
    made = {
        delivery_id(deployment, name, to)
        for deployment in ("", "p.")
        for name in ("a", "ab")
        for to in ("mailto:x@y", "bmailto:x@y")
    }
    assert len(made) == 8


MAIL = {
    "TALLYPORT_SMTP_URL": "smtp://localhost",
    "TALLYPORT_MAIL_FROM": "t@x.y",
    "TALLYPORT_MAIL_TO": "a@b.c, d@e.f,a@b.c",
}
HOOK = {"TALLYPORT_WEBHOOK_URL": "https://hooks.example/x"}


def test_alerts_go_to_everybody_by_default_and_where_a_policy_says() -> None:
    places = Destinations(load_settings(MAIL | HOOK))
    assert places.all == ("mailto:a@b.c", "mailto:d@e.f", "https://hooks.example/x")
    assert [one.to for one in places.deliveries((), 1)] == list(places.all)
    assert [one.to for one in places.deliveries(("mailto:p@q.r",), 1)] == ["mailto:p@q.r"]
    assert places.deliveries(None, 1) == ()
    assert places.can_report
    assert places.problems() == []


def test_what_cannot_work_is_given_up_at_once_and_says_why() -> None:
    places = Destinations(load_settings(HOOK | {"TALLYPORT_MAIL_TO": "a@b.c"}))
    assert not places.can_report
    assert places.all == ("https://hooks.example/x",)
    assert "TALLYPORT_SMTP_URL" in places.problems()[0]
    wrong = Destinations(load_settings({"TALLYPORT_WEBHOOK_URL": "https://u:p@hooks.example/x"}))
    assert "TALLYPORT_WEBHOOK_URL" in wrong.problems()[0]
    found = places.deliveries(
        ("mailto:a@b.c", "ftp://x", "https://u:p@x/", "https://ok.example"), 9
    )
    assert [one.status for one in found] == ["dead", "dead", "dead", "pending"]
    assert all(one.error and one.settled_at_ms == 9 for one in found[:3])
    nowhere = Destinations(load_settings({}))
    assert not nowhere.has_any(())
    assert nowhere.has_any(("mailto:a@b.c",))
    assert nowhere.has_any(None)


@pytest.mark.parametrize(
    "text", ["a@b.c\r\nBcc: x@y", "a b@c", "a@b,c@d", "@b", "a@", "a", "<a@b>", 'a"@b', "a@b;c"]
)
def test_no_mail_address(text: str) -> None:
    assert not is_address(address_of(f"mailto:{text}"))


def test_header_fields_of_a_mailto_do_not_count() -> None:
    assert address_of("mailto:a@b.c?subject=x&bcc=y@z") == "a@b.c"
    assert is_address("a+tag@b.c")


@pytest.mark.parametrize(
    "url",
    ["gopher://x", "file:///etc/passwd", "http://", "http://x:0/", "http://[::1", "http://a b/",
     "http://x/\r\nHost: y", "https://ü.example/", "https://u@x/", "http://x:99999/"],
)  # fmt: skip
def test_no_url_to_post_to(url: str) -> None:
    assert url_obstacle(url)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WEBHOOK_SECRET", "whsec_not base64"),
        ("WEBHOOK_SECRET", "whsec_"),
        ("WEBHOOK_URL", "ftp://x"),
        ("SMTP_URL", "http://x"),
        ("MAIL_FROM", "a@b, c@d"),
        ("AUDIT_HOURS", "-1"),
    ],
)
def test_settings_that_are_wrong_are_named(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TALLYPORT_{name} must"):
        load_settings({f"TALLYPORT_{name}": value})


def test_the_usage_alert_is_of_a_month_and_of_what_the_organisation_pays() -> None:
    assert line_nano(Decimal("0.000000001")) == 1
    assert line_nano(Decimal(0)) == 0
    november_ms = 1_795_305_600_000
    wanted = rolling_filters(november_ms)
    assert wanted.billing_scope == "org"
    assert wanted.start is not None
    assert wanted.end is not None
    assert (wanted.end - wanted.start).days == 30
    made = usage_draft(5 * 10**9, 5 * 10**9, "USD", november_ms)
    assert made.covers == month_cover(november_ms) == {made.id: 0}
    assert made.message.data["data"]["used"] == "5"


def test_models_without_a_price_are_told_together_and_remembered_each() -> None:
    rows = [
        {"provider": "a|b", "model": "c", "unpriced_requests": 2},
        {"provider": "a", "model": "b|c", "unpriced_requests": 1},
    ]
    made = unpriced_draft(rows, NOON_MS)
    assert set(made.covers) == {cover_of(row, NOON_MS) for row in rows}
    assert len(made.covers) == 2
    assert made.message.subject == "No price for 2 models"
    assert unpriced_draft(rows[::-1], NOON_MS).id == made.id


@pytest.mark.parametrize(
    ("taken", "rejected", "is_high"),
    [(100, 19, False), (100, 20, True), (400, 20, True), (401, 20, False), (0, 0, False)],
)
def test_when_the_share_of_rejected_records_is_high(
    taken: int, rejected: int, is_high: bool
) -> None:
    found = Rejected(taken, {"too-old": rejected - rejected // 3, "bad-timestamp": rejected // 3})
    assert found.is_high is is_high
    assert f"{rejected} of about {taken}" in rejected_draft(found, NOON_MS).message.subject


async def test_a_part_is_told_of_once_it_has_stood_still_for_long() -> None:
    standing = {"worker": "at offset 7"}

    async def stalled() -> dict[str, str]:
        return dict(standing)

    book, stalls = NoticeBook(), Stalls(stalled)
    assert await stalls.look(book, NOON_MS) == []
    assert await stalls.look(book, NOON_MS + 29_000) == []
    (made,) = await stalls.look(book, NOON_MS + 31_000)
    assert "worker" in made.message.subject
    kept(book, made)
    assert await stalls.look(book, NOON_MS + 40_000) == []
    standing.clear()
    assert await stalls.look(book, NOON_MS + 50_000) == []
    standing["sink"] = "x"
    assert await stalls.look(book, NOON_MS + 60_000) == []


@pytest.mark.parametrize(
    ("status", "printed", "said", "kind"),
    [
        (0, b'{"ok": true, "differences_by_kind": {}}', b"", "audit.agreed"),
        (1, b'{"ok": false, "differences_by_kind": {"row-missing": 2}}', b"", "audit.difference"),
        (2, b"", b"x\ntallyport: no Kafka address\n", "audit.failed"),
        (0, b"no json", b"", "audit.failed"),
        (-9, b"", b"", "audit.failed"),
        (None, b"", b"", "audit.failed"),
    ],
)
def test_what_comes_of_an_audit(status: int | None, printed: bytes, said: bytes, kind: str) -> None:
    made = audit_draft(NOON_MS, NOON_MS + 5, status, printed, said)
    assert made.type == kind
    assert (made.to is None) == (kind == "audit.agreed")
    if said:
        assert made.message.data["data"]["error"] == "tallyport: no Kafka address"


def test_audits_are_due_at_fixed_hours() -> None:
    hour_ms = 3_600_000
    assert turn_of(NOON_MS, 24) == NOON_MS - 9 * hour_ms
    assert turn_of(NOON_MS - 10 * hour_ms, 24) == NOON_MS - 33 * hour_ms
    assert turn_of(NOON_MS, 1) == NOON_MS
