"""What people are told: a notice, where it goes, and how each delivery stands; pure."""

import hashlib
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.core.windows import format_ms

DAY_MS: Final = 86_400_000
FIRST_RETRY_MS: Final = 2_000
LONGEST_RETRY_MS: Final = 3_600_000
MAX_ATTEMPTS: Final = 16
"""Waits double from 2 seconds to an hour: the last attempt is about five hours after the first."""
MAX_ERROR_LENGTH: Final = 300

Status = Literal["pending", "sent", "dead"]


class Message(msgspec.Struct, frozen=True):
    """What is said: a mail's subject and two parts, and the data of a webhook. ``html`` may be
    empty."""

    subject: str
    text: str
    html: str
    data: dict[str, Any]


class Delivery(msgspec.Struct, frozen=True):
    """One notice to one place: ``mailto:ADDRESS`` or a URL.

    ``next_at_ms`` is when it may be tried (again), ``settled_at_ms`` when it was sent or given up.
    """

    to: str
    status: Status = "pending"
    attempts: int = 0
    next_at_ms: int = 0
    settled_at_ms: int = 0
    error: str = ""

    def sent(self, now_ms: int) -> "Delivery":
        """It arrived."""
        return msgspec.structs.replace(
            self, status="sent", attempts=self.attempts + 1, settled_at_ms=now_ms, error=""
        )

    def failed(self, now_ms: int, error: str, *, for_good: bool) -> "Delivery":
        """An attempt failed: another one is due later, or none, and it is a dead letter."""
        attempts = self.attempts + 1
        dead = for_good or attempts >= MAX_ATTEMPTS
        return msgspec.structs.replace(
            self,
            status="dead" if dead else "pending",
            attempts=attempts,
            next_at_ms=now_ms + retry_after_ms(attempts),
            settled_at_ms=now_ms if dead else 0,
            error=" ".join(error.split())[:MAX_ERROR_LENGTH],
        )


class Draft(msgspec.Struct, frozen=True):
    """A notice that may be due. ``covers`` says what it tells of: what is covered already at the
    same or a higher level is not told again. ``to`` empty means the default places, None nobody:
    then it is only remembered."""

    id: str
    type: str
    covers: dict[str, int]
    keep_until_ms: int
    message: Message
    to: tuple[str, ...] | None = ()


class Notice(msgspec.Struct, frozen=True):
    """A notice that was claimed. ``message`` goes once nothing of it waits any more."""

    id: str
    type: str
    at_ms: int
    keep_until_ms: int
    covers: dict[str, int]
    subject: str
    deliveries: tuple[Delivery, ...]
    message: Message | None = None

    @property
    def is_pending(self) -> bool:
        return any(delivery.status == "pending" for delivery in self.deliveries)

    @property
    def is_dead(self) -> bool:
        """Whether somebody was not told and will not be."""
        return any(delivery.status == "dead" for delivery in self.deliveries)

    def with_delivery(self, index: int, delivery: Delivery) -> "Notice":
        """The same with one delivery as it stands now."""
        deliveries = (*self.deliveries[:index], delivery, *self.deliveries[index + 1 :])
        changed = msgspec.structs.replace(self, deliveries=deliveries)
        return changed if changed.is_pending else msgspec.structs.replace(changed, message=None)


def claimed(draft: Draft, deliveries: Sequence[Delivery], now_ms: int) -> Notice:
    """The notice that a draft becomes."""
    notice = Notice(
        draft.id,
        draft.type,
        now_ms,
        draft.keep_until_ms,
        draft.covers,
        draft.message.subject,
        tuple(deliveries),
        draft.message,
    )
    return notice if notice.is_pending else msgspec.structs.replace(notice, message=None)


def retry_after_ms(attempts: int) -> int:
    """How long to wait after so many attempts that failed; at least one."""
    return min(FIRST_RETRY_MS << min(attempts - 1, 20), LONGEST_RETRY_MS)


def delivery_id(deployment: str, notice_id: str, to: str) -> str:
    """The identity of a delivery, the same for each attempt and after each restart.

    ``deployment`` tells deployments apart that write to the same people.
    """
    text = "\0".join((deployment, notice_id, to))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def notice_fields(notice: Notice) -> dict[str, Any]:
    """A notice as JSON for whoever asks what was sent, without its text."""
    return {
        "id": notice.id,
        "type": notice.type,
        "at": format_ms(notice.at_ms),
        "subject": notice.subject,
        "deliveries": [_delivery_fields(delivery) for delivery in notice.deliveries],
    }


def _delivery_fields(delivery: Delivery) -> dict[str, Any]:
    waits = delivery.status == "pending" and delivery.attempts > 0
    return {
        "to": delivery.to,
        "status": delivery.status,
        "attempts": delivery.attempts,
        "next_attempt_at": format_ms(delivery.next_at_ms) if waits else None,
        "settled_at": format_ms(delivery.settled_at_ms) if delivery.settled_at_ms else None,
        "error": delivery.error or None,
    }


def notice_json(notice: Notice) -> bytes:
    """The record value of a notice."""
    return msgspec.json.encode(notice)


def parse_notice(value: bytes) -> Notice:
    """Reads it back; raises ``CorruptRecord``."""
    try:
        return msgspec.json.decode(value, type=Notice)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptRecord(f"tallyport.notices: {error}") from error
