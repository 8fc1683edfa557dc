"""Mail through an SMTP server: addresses and security from one URL, one receiver at a time.

``smtps://`` speaks TLS from the start (port 465) and ``smtp+starttls://`` insists on STARTTLS
(587); both check the server's certificate. ``smtp://`` (25) takes STARTTLS where the server offers
it; a password is sent only over a connection whose certificate was checked, or to this machine.
"""

import asyncio
import contextlib
import smtplib
import socket
import ssl
from collections.abc import Callable, Generator
from datetime import UTC, datetime
from email.errors import MessageError
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline.core.errors import TallyportError
from pipeline.notices.notice import Message
from pipeline.web.loopback import is_loopback

STEP_TIMEOUT_S = 15.0
"""For each answer of the server."""
SEND_TIMEOUT_S = 60.0
"""For the whole of it."""

_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
_PERMANENT = range(500, 600)


class NotSent(TallyportError):
    """A message was not taken; ``for_good`` when trying again is of no use."""

    def __init__(self, message: str, *, for_good: bool = False) -> None:
        super().__init__(message)
        self.for_good = for_good


class MailServer(NamedTuple):
    """Where mail is handed in, and how. ``user`` None means without login."""

    scheme: str
    host: str
    port: int
    user: str | None = None
    password: str = ""


def mail_server(url: str) -> MailServer:
    """The parts of ``smtp[s|+starttls]://user:password@host:port``, which settings have checked."""
    parts = urlsplit(url)
    return MailServer(
        parts.scheme,
        parts.hostname or "",
        parts.port or _PORTS[parts.scheme],
        unquote(parts.username) if parts.username else None,
        unquote(parts.password or ""),
    )


def mail_of(message: Message, sender: str, receiver: str, message_id: str) -> EmailMessage:
    """The mail; the same ``message_id`` each time it is sent."""
    mail = EmailMessage()
    mail["From"] = sender
    mail["To"] = receiver
    mail["Subject"] = " ".join(message.subject.split())
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = message_id
    mail["Auto-Submitted"] = "auto-generated"  # so that nobody's vacation answers
    mail.set_content(message.text)
    if message.html:
        mail.add_alternative(message.html, subtype="html")
    return mail


class Mailer:
    """Hands mail to the server, in a thread, within ``SEND_TIMEOUT_S``."""

    def __init__(self, url: str, sender: str, context: ssl.SSLContext | None = None) -> None:
        self.server = mail_server(url)
        self.sender = sender
        self._context = context

    def message_id(self, delivery_id: str) -> str:
        """The Message-ID of a delivery."""
        return f"<{delivery_id}@{self.sender.rpartition('@')[2].strip('<> ')}>"

    async def send(self, message: Message, receiver: str, delivery_id: str) -> None:
        """Returns when the server has taken the mail. Raises ``NotSent``."""
        try:
            mail = mail_of(message, self.sender, receiver, self.message_id(delivery_id))
        except (MessageError, ValueError) as error:
            raise NotSent(f"no mail can be made of this: {error}", for_good=True) from error
        await self._in_thread(lambda connection: connection.hand_in(mail, receiver))

    async def reach(self) -> None:
        """Returns when the server has answered and taken the login. Raises ``NotSent``."""
        await self._in_thread(_Connection.reach)

    async def _in_thread(self, work: Callable[["_Connection"], None]) -> None:
        connection = _Connection(self.server, self._context)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await asyncio.to_thread(work, connection)
        except TimeoutError as error:
            connection.cut()
            raise NotSent(f"{self._where} did not take it in {SEND_TIMEOUT_S:.0f} s") from error
        except asyncio.CancelledError:
            connection.cut()
            raise
        except smtplib.SMTPException as error:
            raise _refused(error, self._where) from error
        except OSError as error:
            why = error.strerror or str(error) or type(error).__name__
            raise NotSent(f"{self._where}: {why}") from error

    @property
    def _where(self) -> str:
        return f"mail server {self.server.host}:{self.server.port}"


class _Connection:
    """One connection, for one mail. ``cut`` from another thread ends what it waits for."""

    def __init__(self, server: MailServer, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._context = context
        self._smtp: smtplib.SMTP | None = None

    def reach(self) -> None:
        with self._ready():
            pass

    def hand_in(self, mail: EmailMessage, receiver: str) -> None:
        with self._ready() as smtp:
            smtp.send_message(mail, parseaddr(str(mail["From"]))[1], [receiver])

    @contextlib.contextmanager
    def _ready(self) -> Generator[smtplib.SMTP]:
        with self._connected() as smtp:
            self._smtp = smtp
            self._log_in(smtp, self._secure(smtp))
            yield smtp

    def cut(self) -> None:
        connected = getattr(self._smtp, "sock", None)
        if isinstance(connected, socket.socket):
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def _connected(self) -> smtplib.SMTP:
        host, port = self._server.host, self._server.port
        if self._server.scheme == "smtps":
            return smtplib.SMTP_SSL(host, port, timeout=STEP_TIMEOUT_S, context=self._checking())
        return smtplib.SMTP(host, port, timeout=STEP_TIMEOUT_S)

    def _secure(self, smtp: smtplib.SMTP) -> bool:
        """STARTTLS as the scheme wants it; whether the server is known to be the one meant."""
        smtp.ehlo_or_helo_if_needed()
        if self._server.scheme == "smtps":
            return True
        must = self._server.scheme == "smtp+starttls"
        if must or (self._server.user and not is_loopback(self._server.host)):
            smtp.starttls(context=self._checking())
            return True
        if smtp.has_extn("starttls"):
            # Whoever could forge a certificate could as well hide the offer: no use in checking.
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            smtp.starttls(context=context)
        return is_loopback(self._server.host)

    def _log_in(self, smtp: smtplib.SMTP, checked: bool) -> None:
        if self._server.user is None:
            return
        if not checked:
            raise smtplib.SMTPNotSupportedError("no password is sent over this connection")
        smtp.ehlo_or_helo_if_needed()
        smtp.login(self._server.user, self._server.password)

    def _checking(self) -> ssl.SSLContext:
        return self._context or ssl.create_default_context()


def _refused(error: smtplib.SMTPException, where: str) -> NotSent:
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, answer = next(iter(error.recipients.values()), (0, b""))
        told = answer.decode(errors="replace")
        return NotSent(f"{where} refuses the receiver: {code} {told}", for_good=code in _PERMANENT)
    if isinstance(error, smtplib.SMTPAuthenticationError):  # somebody may put the login right
        return NotSent(f"{where} refuses the login: {error.smtp_code}")
    if isinstance(error, smtplib.SMTPResponseException):
        told = error.smtp_error
        text = told if isinstance(told, str) else told.decode(errors="replace")
        refused = isinstance(error, smtplib.SMTPDataError | smtplib.SMTPSenderRefused)
        for_good = refused and error.smtp_code in _PERMANENT
        return NotSent(f"{where}: {error.smtp_code} {text}", for_good=for_good)
    return NotSent(f"{where}: {error}")
