"""The brokers under a chaos run, and which of them does what."""

import asyncio
import os
import signal
from pathlib import Path
from random import Random
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from pipeline.core.errors import ConfigurationError
from pipeline.ops.kafka_server import KafkaCluster, KafkaServer

ROLES = ("events-leader", "state-leader", "controller", "group-coordinator", "transactions-leader")
READY_TIMEOUT_S = 180.0
PORT_TRIES = 20
METADATA_TOPIC = "__cluster_metadata"

_REPLICAS = CompactArray(("replica_id", Int32), ("log_end_offset", Int64), ("tags", TaggedFields))


class _QuorumResponse(Response):
    API_KEY = 55  # pyright: ignore[reportAssignmentType]
    API_VERSION = 0  # pyright: ignore[reportAssignmentType]
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("high_watermark", Int64),
                        ("voters", _REPLICAS),
                        ("observers", _REPLICAS),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _QuorumRequestV0(RequestStruct):
    API_KEY = 55
    API_VERSION = 0
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _QuorumResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("partitions", CompactArray(("partition", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _QuorumRequest(Request[_QuorumRequestV0]):
    API_KEY = 55

    def build(self, request_struct_class: type[_QuorumRequestV0]) -> _QuorumRequestV0:
        return request_struct_class([(METADATA_TOPIC, [(0, {})], {})], {})


class Brokers:
    """``size`` Kafka nodes on this machine, started from the main thread (see ``tether``)."""

    def __init__(self, folder: Path, size: int) -> None:
        self._cluster = KafkaCluster(folder, size)

    @property
    def nodes(self) -> list[KafkaServer]:
        """All nodes, also those that are down."""
        return self._cluster.nodes

    @property
    def bootstrap(self) -> str:
        """The addresses of all nodes; known once they were started."""
        return self._cluster.bootstrap

    async def start(self) -> None:
        """Starts all nodes that do not run and waits until each answers."""
        down = [node for node in self.nodes if not runs(node)]
        await asyncio.gather(*(_prepare(node) for node in down))
        for node in down:
            node.launch()
        await asyncio.gather(*(asyncio.to_thread(n.wait_ready, READY_TIMEOUT_S) for n in down))

    def kill(self) -> None:
        """SIGKILL to all of them."""
        self._cluster.kill()

    def stop(self) -> None:
        """A clean stop of all of them."""
        self._cluster.stop()

    async def in_sync(self) -> None:
        """Returns once every partition has all its replicas in sync."""
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await self._is_in_sync():  # noqa: ASYNC110
                await asyncio.sleep(0.2)

    async def node_of(self, role: str, rng: Random, group: str, events: str, state: str) -> int:
        """The index of the node that has ``role`` now; any node when nobody knows."""
        topics = {
            "events-leader": events,
            "state-leader": state,
            "transactions-leader": "__transaction_state",
        }
        try:
            async with asyncio.timeout(30), _Admin(self.bootstrap) as admin:
                if role == "controller":
                    return await _controller(admin) - 1
                if role == "group-coordinator":
                    return await admin.find_coordinator(group) - 1
                (topic,) = await admin.describe_topics([topics[role]])
                return rng.choice(topic["partitions"])["leader"] - 1
        except (KafkaError, TimeoutError):
            return rng.randrange(len(self.nodes))

    async def _is_in_sync(self) -> bool:
        try:
            async with asyncio.timeout(30), _Admin(self.bootstrap) as admin:
                topics = await admin.describe_topics()
        except (KafkaError, TimeoutError, OSError):
            return False
        partitions = [p for topic in topics for p in topic["partitions"]]
        return bool(partitions) and all(
            p["leader"] >= 0 and len(p["isr"]) == len(p["replicas"]) for p in partitions
        )


class _Admin:
    """An admin client as a context."""

    def __init__(self, bootstrap: str) -> None:
        self._client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5_000)

    async def __aenter__(self) -> AIOKafkaAdminClient:
        try:
            await self._client.start()
        except BaseException:
            await self._client.close()
            raise
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def _controller(admin: AIOKafkaAdminClient) -> int:
    """The leader of KRaft's quorum; what metadata calls the controller is any broker."""
    client: Any = admin._client
    answer = await client.send(client.get_random_node(), _QuorumRequest())
    return answer.to_object()["topics"][0]["partitions"][0]["leader_id"]


async def _prepare(node: KafkaServer) -> None:
    for attempt in range(PORT_TRIES):
        try:
            await asyncio.to_thread(node.prepare)
            return
        except ConfigurationError:  # a connection of before may hold the port for a moment
            if attempt == PORT_TRIES - 1:
                raise
            await asyncio.sleep(0.5)


def runs(node: KafkaServer) -> bool:
    """Whether the node's process lives."""
    return node.exit_status() is None


def pause(node: KafkaServer) -> None:
    """SIGSTOP: connections stay open and nothing answers."""
    os.kill(node.pid, signal.SIGSTOP)


def resume(node: KafkaServer) -> None:
    """SIGCONT."""
    os.kill(node.pid, signal.SIGCONT)
