"""Hands one delivery to the mail server or to a webhook's receiver, and says how it went."""

import time

from pipeline import metrics
from pipeline.notices.destinations import MAILTO, address_of
from pipeline.notices.mail import Mailer, NotSent
from pipeline.notices.notice import Delivery, Notice, delivery_id
from pipeline.notices.webhook import Webhooks
from pipeline.settings import Settings


class Post:
    """``deployment`` sets apart the ids of deployments that write to the same people."""

    def __init__(self, settings: Settings, deployment: str) -> None:
        self._deployment = deployment
        self._webhooks = Webhooks(settings.webhook_secret)
        self._mailer: Mailer | None = None
        if settings.smtp_url and settings.mail_from:
            self._mailer = Mailer(settings.smtp_url, settings.mail_from)

    async def deliver(self, notice: Notice, delivery: Delivery) -> Delivery:
        """Tries once; the delivery as it stands then."""
        channel = "mail" if delivery.to.startswith(MAILTO) else "webhook"
        try:
            await self._try(notice, delivery)
        except NotSent as error:
            metrics.NOTICES_FAILED.labels(channel).inc()
            return delivery.failed(_now_ms(), str(error), for_good=error.for_good)
        metrics.NOTICES_SENT.labels(channel).inc()
        return delivery.sent(_now_ms())

    async def _try(self, notice: Notice, delivery: Delivery) -> None:
        message, identity = notice.message, delivery_id(self._deployment, notice.id, delivery.to)
        if message is None:
            raise NotSent("its text was lost", for_good=True)
        if not delivery.to.startswith(MAILTO):
            await self._webhooks.send(message, delivery.to, identity, int(time.time()))
        elif self._mailer is None:
            raise NotSent("mail is not set up")  # it was when this was claimed
        else:
            await self._mailer.send(message, address_of(delivery.to), identity)


def _now_ms() -> int:
    return int(time.time() * 1000)
