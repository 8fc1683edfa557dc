"""Mail through a real server: security, login, what it refuses, and what does not answer."""

import socket
import threading

import pytest

from pipeline.notices import mail
from pipeline.notices.mail import Mailer, NotSent, mail_server
from pipeline.notices.notice import Message
from tests.notices.certificates import Certificate
from tests.notices.mail_box import MailBox, mail_box

MESSAGE = Message("Größe <b>\r\nBcc: x@y.z", "plain ü\n", "<p>html ü</p>" + "x" * 3000, {})
LOGIN = "tally:p%3Ass%40word@"


async def test_both_parts_arrive_with_the_same_id_each_time() -> None:
    with mail_box(MailBox()) as box:
        mailer = Mailer(box.url, "tally@harbor.example")
        for _ in range(2):
            await mailer.send(MESSAGE, "ops@harbor.example", "abc")
    first, second = box.taken
    assert first.sender == "tally@harbor.example"
    assert first.receivers == [first.mail["To"]] == ["ops@harbor.example"]
    assert first.mail["Message-ID"] == second.mail["Message-ID"] == "<abc@harbor.example>"
    assert first.mail["Subject"] == "Größe <b> Bcc: x@y.z"
    assert first.mail["Bcc"] is None
    assert first.text("plain") == "plain ü\n"
    assert first.text("html").rstrip() == MESSAGE.html
    assert first.mail.get_content_type() == "multipart/alternative"


@pytest.mark.parametrize("scheme", ["smtp+starttls", "smtps"])
async def test_over_tls_with_login(scheme: str, certificate: Certificate) -> None:
    implicit = scheme == "smtps"
    with mail_box(MailBox(), certificate.server, login=True, implicit=implicit) as box:
        url = f"{scheme}://{LOGIN}localhost:{box.port}"
        await Mailer(url, "t@x.y", certificate.trusting).send(MESSAGE, "a@b.c", "id")
        (taken,) = box.taken
        assert taken.login == "tally"
        assert taken.over_tls or implicit

        with pytest.raises(NotSent, match="certificate verify failed"):
            await Mailer(url, "t@x.y").send(MESSAGE, "a@b.c", "id")
        await Mailer(url, "", certificate.trusting).reach()
        wrong = Mailer(url.replace("ss%40", "oo"), "t@x.y", certificate.trusting)
        with pytest.raises(NotSent, match="refuses the login: 535") as refused:
            await wrong.send(MESSAGE, "a@b.c", "id")
        with pytest.raises(NotSent, match="refuses the login: 535"):
            await wrong.reach()
        assert not refused.value.for_good
        assert len(box.taken) == 1


async def test_plain_smtp_takes_starttls_where_it_is_offered(certificate: Certificate) -> None:
    with mail_box(MailBox(), certificate.server, login=True) as box:
        url = f"smtp://{LOGIN}127.0.0.1:{box.port}"
        await Mailer(url, "t@x.y").send(MESSAGE, "a@b.c", "id")
        assert [(one.over_tls, one.login) for one in box.taken] == [(True, "tally")]


async def test_starttls_that_is_not_offered_is_insisted_on() -> None:
    with mail_box(MailBox()) as box:
        with pytest.raises(NotSent, match="STARTTLS"):
            await Mailer(f"smtp+starttls://localhost:{box.port}", "t@x.y").send(
                MESSAGE, "a@b.c", "id"
            )
        assert box.taken == []


async def test_a_password_stays_here_without_a_checked_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mail_box(MailBox()) as box:
        monkeypatch.setattr(mail, "is_loopback", lambda _: False)
        with pytest.raises(NotSent, match="STARTTLS"):
            await Mailer(f"smtp://{LOGIN}127.0.0.1:{box.port}", "t@x.y").send(MESSAGE, "a@b", "id")
        assert box.taken == []


@pytest.mark.parametrize(
    ("answer", "for_good"), [("550 no such user", True), ("451 try again later", False)]
)
async def test_a_refused_receiver(answer: str, for_good: bool) -> None:
    with mail_box(MailBox(refused={"gone@b.c": answer})) as box:
        mailer = Mailer(box.url, "t@x.y")
        with pytest.raises(NotSent, match=answer) as refused:
            await mailer.send(MESSAGE, "gone@b.c", "id")
        assert refused.value.for_good is for_good
        await mailer.send(MESSAGE, "here@b.c", "id")
        assert [one.receivers for one in box.taken] == [["here@b.c"]]


@pytest.mark.parametrize(("answer", "for_good"), [("554 spam", True), ("452 too much mail", False)])
async def test_a_refused_mail(answer: str, for_good: bool) -> None:
    with mail_box(MailBox(answers=[answer])) as box:
        with pytest.raises(NotSent, match=answer) as refused:
            await Mailer(box.url, "t@x.y").send(MESSAGE, "a@b.c", "id")
        assert refused.value.for_good is for_good


async def test_no_server_there() -> None:
    box = MailBox()
    with pytest.raises(NotSent, match=rf"mail server 127.0.0.1:{box.port}: .*refused") as failed:
        await Mailer(box.url, "t@x.y").send(MESSAGE, "a@b.c", "id")
    assert not failed.value.for_good


async def test_a_server_that_never_answers_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "SEND_TIMEOUT_S", 0.2)
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(mail, "STEP_TIMEOUT_S", 0.5)
        with pytest.raises(NotSent, match="did not take it in 0 s"):
            await Mailer(url, "t@x.y").send(MESSAGE, "a@b.c", "id")
    assert threading.active_count() <= before + 1  # the pool's own thread


def test_the_parts_of_an_address() -> None:
    assert mail_server("smtp://h") == ("smtp", "h", 25, None, "")
    assert mail_server("smtps://u%40x:p%2F@h") == ("smtps", "h", 465, "u@x", "p/")
    assert mail_server("smtp+starttls://u@h:2525") == ("smtp+starttls", "h", 2525, "u", "")
