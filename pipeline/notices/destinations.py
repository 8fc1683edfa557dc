"""Where notices go: the places a policy names, or the default ones, and which of them can be
reached; pure."""

from typing import Final
from urllib.parse import urlsplit

from pipeline.notices.notice import Delivery
from pipeline.settings import Settings, variable

MAILTO: Final = "mailto:"


class Destinations:
    """``mail`` are the addresses of reports, ``all`` those of alerts that name none."""

    def __init__(self, settings: Settings) -> None:
        addresses = [part.strip() for part in (settings.mail_to or "").split(",") if part.strip()]
        self._has_mail_settings = bool(settings.smtp_url or settings.mail_from or addresses)
        self.can_mail = bool(settings.smtp_url and settings.mail_from)
        self.mail = tuple(f"{MAILTO}{address}" for address in dict.fromkeys(addresses))
        self._hook = settings.webhook_url
        hooks = (self._hook,) if self._hook else ()
        self.all = (*(self.mail if self.can_mail else ()), *hooks)

    @property
    def can_report(self) -> bool:
        """Whether the weekly report can be mailed to somebody."""
        return self.can_mail and bool(self.mail)

    def has_any(self, to: tuple[str, ...] | None) -> bool:
        """Whether a notice would go anywhere; one that goes to nobody is only remembered."""
        return to is None or bool(to or self.all)

    def problems(self) -> list[str]:
        """Why the default places cannot be reached as they are set."""
        found: list[str] = []
        if self._has_mail_settings and not self.can_mail:
            found.append(f"mail needs both {variable('smtp_url')} and {variable('mail_from')}")
        if self._hook and (obstacle := url_obstacle(self._hook)):
            found.append(f"{variable('webhook_url')}: {obstacle}")
        return found

    def deliveries(self, to: tuple[str, ...] | None, now_ms: int) -> tuple[Delivery, ...]:
        """One for each place; those that cannot work are dead from the start, and say why."""
        if to is None:
            return ()
        return tuple(self._delivery(place, now_ms) for place in dict.fromkeys(to or self.all))

    def _delivery(self, place: str, now_ms: int) -> Delivery:
        error = self._obstacle(place)
        if error is None:
            return Delivery(place)
        return Delivery(place, "dead", settled_at_ms=now_ms, error=error)

    def _obstacle(self, place: str) -> str | None:
        if not place.startswith(MAILTO):
            return url_obstacle(place)
        if not self.can_mail:
            return f"{variable('smtp_url')} or {variable('mail_from')} is not set"
        return None if is_address(address_of(place)) else "this is no mail address"


def address_of(place: str) -> str:
    """The address in ``mailto:ADDRESS``; header fields after a ``?`` do not count."""
    return place.removeprefix(MAILTO).partition("?")[0].strip()


def is_address(text: str) -> bool:
    """Whether it can be a receiver: one address, without what could end a line or begin another."""
    local, at, domain = text.rpartition("@")
    return bool(at and local and domain) and not any(
        char in ' ,;:<>()[]"\\' or not char.isprintable() for char in text
    )


def url_obstacle(url: str) -> str | None:
    """Why a URL cannot be posted to; None when it can."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "this is no URL"
    if parts.scheme not in ("http", "https"):
        return "only http: and https: URLs are posted to"
    if not parts.hostname or port == 0 or not url.isascii() or not url.isprintable() or " " in url:
        return "this is no URL with a host"
    if parts.username is not None or parts.password is not None:
        return "a URL with a user name or password is not posted to"
    return None
