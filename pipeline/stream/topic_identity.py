"""The identity of a topic: the id Kafka gives it, which a recreated topic of the same name lacks.

aiokafka's own metadata request is older than topic ids, so the newer one is spelled out here with
its protocol types.
"""

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from pipeline.core.errors import Refused, TallyportError

WATCH_INTERVAL_S = 2.0
_MISSES_MAX = 3

log = logging.getLogger(__name__)

_NO_ID = uuid.UUID(int=0)
_NO_ERROR = 0
_UNKNOWN_TOPIC = 3


class TopicMissing(TallyportError):
    """The topic does not exist."""


class _Uuid(AbstractType[uuid.UUID]):
    @classmethod
    def encode(cls, value: uuid.UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> uuid.UUID:
        return uuid.UUID(bytes=data.read(16))


class _MetadataResponse(Response):
    API_KEY = 3  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    API_VERSION = 12  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestV12]):
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequestV12]) -> _MetadataRequestV12:
        topics = [(_NO_ID, topic, {}) for topic in self._topics]
        return request_struct_class(topics, False, False, {})


async def topic_ids(client: Mapping[str, Any], topics: Sequence[str]) -> dict[str, uuid.UUID]:
    """The id of each topic that exists; ``client`` holds aiokafka's connection arguments.

    Needs Kafka 3.1 or later. Raises aiokafka's ``KafkaError`` when the broker refuses.
    """
    connection = AIOKafkaClient(**client)
    try:
        await connection.bootstrap()
        answer = await connection.send(connection.get_random_node(), _MetadataRequest(topics))
        found: dict[str, uuid.UUID] = {}
        for topic in answer.to_object()["topics"]:
            code: int = topic["error_code"]
            if code not in (_NO_ERROR, _UNKNOWN_TOPIC):
                raise for_code(code)(topic["name"])
            if code == _NO_ERROR:
                found[topic["name"]] = topic["topic_id"]
        return found
    finally:
        await connection.close()


async def topic_id(client: Mapping[str, Any], topic: str) -> uuid.UUID:
    """The id of ``topic``; it changes when the topic is deleted and created again.

    Raises ``TopicMissing`` when there is no such topic.
    """
    found = await topic_ids(client, [topic])
    if topic not in found:
        raise TopicMissing(f"topic {topic} does not exist; run `tallyport topics`")
    return found[topic]


async def watch_topics(
    client: Mapping[str, Any], recorded: Mapping[str, str], interval_s: float = WATCH_INTERVAL_S
) -> None:
    """Asks for the ids of topics until cancelled; ``recorded`` are the ids to be, by full name.

    Raises ``Refused`` when a topic was recreated or deleted: whoever goes on writing there would
    lose what it held. A broker that does not answer is not noticed here.
    """
    misses = 0
    while True:
        try:
            found = await topic_ids(client, list(recorded))
        except (KafkaError, OSError) as error:
            log.debug("the ids of topics are not known: %s", error)
            await asyncio.sleep(interval_s)
            continue
        _refuse_recreated(found, recorded)
        missing = sorted(recorded.keys() - found.keys())
        # A broker that has just started may not know all topics yet.
        misses = misses + 1 if missing else 0
        if misses >= _MISSES_MAX:
            raise Refused(
                f"topic {missing[0]} was deleted while this process used it: what it held is lost"
            )
        await asyncio.sleep(interval_s)


async def refuse_recreated(client: Mapping[str, Any], recorded: Mapping[str, str]) -> None:
    """Raises ``Refused`` when a topic was recreated; the ids of ``recorded`` are by full name."""
    _refuse_recreated(await topic_ids(client, list(recorded)), recorded)


def _refuse_recreated(found: Mapping[str, uuid.UUID], recorded: Mapping[str, str]) -> None:
    for name, topic in found.items():
        if str(topic) != recorded[name]:
            raise Refused(
                f"topic {name} was recreated while this process used it (id {topic}, it was "
                f"{recorded[name]}): what it held is lost. Stop all workers and sinks, then "
                "restore from the ledger with `tallyport rebuild --discard-tables`"
            )
