"""The SDK's way to the deployment, for the commands that do what the SDK does."""

import os
from typing import TYPE_CHECKING

from pipeline.cli.context import DOTENV, settings
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from producers.transports.transport import Transport


async def connected() -> "Transport":
    """Over HTTP where ``TALLYPORT_API_URL`` is set, else to Kafka, which is known to answer.

    Raises ``ConfigurationError`` and ``KafkaUnreachable``.
    """
    from producers.settings import KAFKA_NAMES, read_settings

    configured = settings()
    found, mistakes = read_settings(os.environ, DOTENV)
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    if found.api_url:
        from producers.transports.http import HttpTransport

        return HttpTransport(found.api_url, found.api_key)
    from pipeline.kafka import check_kafka, kafka_address
    from producers.transports.kafka import KafkaTransport, client_settings

    await check_kafka(configured)
    names = [name.lower() for name in KAFKA_NAMES]
    given = {name.removeprefix("kafka_"): getattr(configured, name) for name in names}
    given["bootstrap"] = kafka_address(configured)
    return KafkaTransport(client_settings(given), configured.topic_prefix)
