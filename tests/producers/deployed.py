"""A real worker and a real API on topics of their own, for all tests of a module."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics


@contextmanager
def deployed(kafka: str, folder: Path) -> Iterator[Deployment]:
    """Runs both; neither ledger nor sink does."""
    settings = Settings(
        kafka_bootstrap=kafka,
        topic_prefix=f"t{uuid.uuid4().hex[:10]}.",
        data_dir=folder,
        ledger_port=0,
        api_port=0,
        partitions=2,
        replication=1,
    )
    running = Deployment(settings, parts=("worker", "api"))
    asyncio.run(running.start())
    try:
        yield running
    finally:
        asyncio.run(running.stop())


def environ_of(deployment: Deployment, transport: str, folder: Path) -> dict[str, str]:
    """The settings of a service that reports over ``http`` or to ``kafka``."""
    spool = {"TALLYPORT_SPOOL_DIR": str(folder / "spool")}
    if transport == "http":
        return {"TALLYPORT_API_URL": deployment.api_url, **spool}
    settings = deployment.settings
    return {
        "TALLYPORT_KAFKA_BOOTSTRAP": settings.kafka_bootstrap or "",
        "TALLYPORT_TOPIC_PREFIX": settings.topic_prefix,
        **spool,
    }


def records_of(deployment: Deployment, name: str) -> list[Any]:
    """The records on a topic (the name of a field of ``Topics``), as aiokafka reads them."""

    async def read() -> list[Any]:
        settings = deployment.settings
        topic = getattr(Topics(settings.topic_prefix), name)
        return [
            record
            async for records in read_to_end(client_kwargs(settings), topic)
            for record in records
        ]

    return asyncio.run(read())


def events_of(deployment: Deployment, port_id: str) -> list[dict[str, Any]]:
    """A port's events as they stand in Kafka, in order."""
    found = records_of(deployment, "events")
    return [json.loads(record.value) for record in found if record.key == port_id.encode()]
