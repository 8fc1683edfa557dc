"""How far corrections are resolved: one record on ``tallyport.resolver``, the newest counts.

It is written in the transaction of what it speaks of. Consumer groups forget their offsets when
nothing happens for long, and a rejected correction that is taken again may mean another thing then.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version
from pipeline.stream.reader import read_whole
from pipeline.stream.topics import Topics

PROGRESS_VERSION = 1
PROGRESS_KEY = b"progress"


class Progress(msgspec.Struct, array_like=True):
    """``topic_id`` is that of ``usage.corrections``.

    ``next_offsets`` are its partitions' positions; ``numbers`` count the records written to each
    partition of ``tallyport.resolved``.
    """

    version: int
    topic_id: str
    next_offsets: dict[int, int]
    numbers: dict[int, int]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Progress)


def encode_progress(progress: Progress) -> bytes:
    """The record's value."""
    return _encoder.encode(progress)


async def read_progress(client: Mapping[str, Any], topics: Topics, topic_id: str) -> Progress:
    """Where to go on; from the start where ``usage.corrections`` is not the topic it was."""
    found = Progress(PROGRESS_VERSION, topic_id, {}, {})
    async for records in read_whole(client, topics.resolver):
        for record in records:
            where = f"{topics.resolver} partition 0 offset {record.offset}"
            found = decode_progress(record.value or b"", where)
    if found.topic_id != topic_id:
        return Progress(PROGRESS_VERSION, topic_id, {}, found.numbers)
    return found


def decode_progress(value: bytes, where: str) -> Progress:
    """The record in ``value``; raises ``CorruptRecord`` that begins with ``where``."""
    try:
        progress = _decoder.decode(value)
    except UNREADABLE as error:
        why = unreadable(value, "record of progress", PROGRESS_VERSION, error)
        raise CorruptRecord(f"{where}: {why}") from error
    if progress.version != PROGRESS_VERSION:
        why = wrong_version("record of progress", progress.version, PROGRESS_VERSION)
        raise CorruptRecord(f"{where}: {why}")
    return progress
