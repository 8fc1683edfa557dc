"""How every client of the project reaches Kafka: address, security, and whether it answers."""

import asyncio
import logging
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.helpers import create_ssl_context

from pipeline import client_close, fetched_records, topic_leaders
from pipeline.core.errors import ConfigurationError, TallyportError
from pipeline.endpoints import read_endpoints
from pipeline.settings import Settings

REACH_TIMEOUT_S = 10.0
_CONNECTING = ("aiokafka", "aiokafka.client", "aiokafka.conn")

client_close.install()
fetched_records.install()
topic_leaders.install()


class KafkaUnreachable(TallyportError):
    """No broker answered in time."""


def kafka_address(settings: Settings) -> str:
    """``HOST:PORT[,HOST:PORT…]``: the configured one, else the one running on this data folder.

    Raises ``ConfigurationError`` that says what to set when there is neither.
    """
    if settings.kafka_bootstrap is not None:
        return settings.kafka_bootstrap
    found = read_endpoints(settings.data_dir)
    if found.kafka is not None:
        return found.kafka
    left = "what ran there has ended" if "kafka" in found.stale else "none runs there"
    raise ConfigurationError(
        f"no Kafka address: TALLYPORT_KAFKA_BOOTSTRAP is not set, and in the data folder "
        f"{settings.data_dir} {left}; start `tallyport up`, or set TALLYPORT_KAFKA_BOOTSTRAP "
        "or TALLYPORT_DATA_DIR"
    )


def client_kwargs(settings: Settings) -> dict[str, Any]:
    """Connection arguments for any aiokafka client: ``bootstrap_servers`` and security.

    Raises ``ConfigurationError`` when no address is known or a certificate cannot be loaded.
    """
    protocol = settings.kafka_security_protocol or "PLAINTEXT"
    kwargs: dict[str, Any] = {
        "bootstrap_servers": kafka_address(settings),
        "security_protocol": protocol,
    }
    if protocol.endswith("SSL"):
        kwargs["ssl_context"] = _ssl_context(settings)
    if protocol.startswith("SASL"):
        kwargs["sasl_mechanism"] = settings.kafka_sasl_mechanism or "PLAIN"
        kwargs["sasl_plain_username"] = settings.kafka_sasl_username
        kwargs["sasl_plain_password"] = settings.kafka_sasl_password
    return kwargs


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    try:
        return create_ssl_context(
            cafile=settings.kafka_ssl_cafile,
            certfile=settings.kafka_ssl_certfile,
            keyfile=settings.kafka_ssl_keyfile,
        )
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"TALLYPORT_KAFKA_SSL_CAFILE, _CERTFILE or _KEYFILE cannot be loaded: {error}"
        ) from error


async def check_kafka(settings: Settings, timeout_s: float = REACH_TIMEOUT_S) -> None:
    """Reach a broker and log in. Raises ``KafkaUnreachable`` with one line on what failed."""
    kwargs = client_kwargs(settings)
    admin = AIOKafkaAdminClient(**kwargs, request_timeout_ms=int(timeout_s * 1000))
    with _causes() as causes:
        try:
            async with asyncio.timeout(timeout_s):
                await admin.start()
                await admin.describe_cluster()
        except TimeoutError as error:
            reason = f"no answer within {timeout_s:.0f} s"
            raise _unreachable(settings, kwargs, causes[-1] if causes else reason) from error
        except (KafkaError, OSError) as error:
            reason = " ".join((causes[-1] if causes else str(error)).split())
            raise _unreachable(settings, kwargs, reason) from error
        finally:
            await admin.close()


@contextmanager
def _causes() -> Generator[list[str]]:
    """Why connections failed, which the client says in its log only; that stays quiet meanwhile."""
    causes: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR and isinstance(record.args, tuple) and record.args:
            causes.append(str(record.args[-1]))
        return False

    loggers = [logging.getLogger(name) for name in _CONNECTING]
    for one in loggers:
        one.addFilter(take)
    try:
        yield causes
    finally:
        for one in loggers:
            one.removeFilter(take)


def _unreachable(settings: Settings, kwargs: dict[str, Any], reason: str) -> KafkaUnreachable:
    secured = kwargs["security_protocol"]
    return KafkaUnreachable(
        f"Kafka at {kwargs['bootstrap_servers']} cannot be used ({secured}): {reason[:200]}; "
        + (
            "check TALLYPORT_KAFKA_BOOTSTRAP and the TALLYPORT_KAFKA_* security settings"
            if settings.kafka_bootstrap
            else f"it was found in {settings.data_dir}; is `tallyport up` still running?"
        )
    )
