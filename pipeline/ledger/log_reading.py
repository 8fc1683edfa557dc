"""Which log this Kafka is, read from the topic that says it."""

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import CorruptRecord
from pipeline.ledger.manifests import LogEpoch, decode_epoch
from pipeline.stream.reader import read_to_end


async def read_log(kafka: Mapping[str, Any], topic: str) -> LogEpoch | None:
    """The log as its first record says; ready as soon as any record of it says so.

    None while nobody has begun it.
    """
    log: LogEpoch | None = None
    async for records in read_to_end(kafka, topic):
        for record in records:
            try:
                found = decode_epoch(record.value or b"")
            except CorruptRecord as error:
                raise CorruptRecord(
                    f"{topic} partition {record.partition} offset {record.offset}: {error}"
                ) from error
            if log is None or (found.id == log.id and found.ready):
                log = found
    return log
