"""A real mail server in a thread, which keeps what it takes and refuses what it is told to."""

import email
import email.policy
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from pipeline.ops.loopback_ports import free_port

START_TIMEOUT_S = 60.0


@dataclass
class Taken:
    """One mail as it was handed in."""

    sender: str
    receivers: list[str]
    mail: EmailMessage
    login: str | None = None
    over_tls: bool = False

    def text(self, kind: str) -> str:
        """The part of this subtype."""
        part = self.mail.get_body((kind,))
        assert part is not None
        return part.get_content().replace("\r\n", "\n")


@dataclass
class MailBox:
    """``refused`` answers a receiver with a code, ``answers`` are used up by the first mails."""

    port: int = field(default_factory=free_port)
    taken: list[Taken] = field(default_factory=list[Taken])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    answers: list[str] = field(default_factory=list[str])
    on_mail: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def to(self, receiver: str) -> list[Taken]:
        return [one for one in self.taken if receiver in one.receivers]

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: Any
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.answers:
            answer = self.answers.pop(0)
            if not answer.startswith("250"):
                return answer
        assert isinstance(envelope.content, bytes)
        self.taken.append(
            Taken(
                envelope.mail_from or "",
                list(envelope.rcpt_tos),
                email.message_from_bytes(envelope.content, policy=email.policy.default),
                session.auth_data.login.decode() if session.auth_data else None,
                session.ssl is not None,
            )
        )
        self.on_mail()
        return "250 taken"


def _login(
    _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, given: Any
) -> AuthResult:
    assert isinstance(given, LoginPassword)
    good = (given.login, given.password) == (b"tally", b"p:ss@word")
    return AuthResult(success=good, handled=False, auth_data=given if good else None)


@contextmanager
def mail_box(
    box: MailBox, tls: ssl.SSLContext | None = None, *, login: bool = False, implicit: bool = False
) -> Iterator[MailBox]:
    """``box`` behind a server: with STARTTLS by ``tls`` (TLS from the start if ``implicit``)."""
    options: dict[str, Any] = {}
    if tls is not None and not implicit:
        options |= {"tls_context": tls, "require_starttls": True}
    if login:
        options |= {"authenticator": _login, "auth_required": True}
        options |= {"auth_require_tls": tls is not None and not implicit}
    controller = Controller(
        box,
        hostname="127.0.0.1",
        port=box.port,
        ready_timeout=START_TIMEOUT_S,
        ssl_context=tls if implicit else None,
        **options,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Requiring AUTH while not requiring TLS")
        controller.start()
        try:
            yield box
        finally:
            controller.stop()
