"""The Kafka that tests run against; it is the real one in every case.

In this order: the address in ``TALLYPORT_TEST_KAFKA``, a container where a Docker engine answers,
the embedded Kafka. There is no skip: when none of them comes up, the tests fail. One broker serves
the whole session, so each test takes its own topic prefix.
"""

import contextlib
import os
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ops.kafka_server import KafkaServer, answers
from pipeline.ops.loopback_ports import free_port

ADDRESS_VARIABLE = "TALLYPORT_TEST_KAFKA"
IMAGE = "apache/kafka:4.1.0"
CONTAINER_TIMEOUT_S = 90.0


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """The bootstrap address ``HOST:PORT`` of a real Kafka."""
    given = os.environ.get(ADDRESS_VARIABLE)
    if given:
        yield given
        return
    with contextlib.ExitStack() as stack:
        yield _container(stack) or _embedded(stack)


@pytest.fixture
def topic_prefix() -> str:
    """A topic prefix nobody else uses."""
    return f"t{uuid.uuid4().hex[:10]}."


def _embedded(stack: contextlib.ExitStack) -> str:
    folder = stack.enter_context(
        tempfile.TemporaryDirectory(prefix="tallyport-kafka-", ignore_cleanup_errors=True)
    )
    server = KafkaServer(Path(folder))
    stack.callback(server.kill)
    server.start()
    return server.bootstrap


def _container(stack: contextlib.ExitStack) -> str | None:
    """A broker in a container, or None where there is no engine or it cannot run the image."""
    socket = Path("/var/run/docker.sock")
    if not os.environ.get("DOCKER_HOST") and not socket.exists():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import docker

            docker.from_env(timeout=5).ping()
            port = free_port()
            container = _configured(port)
            stack.callback(container.stop)
            container.start()
            _wait(port)
        except Exception as error:  # no engine, no image, no network: the embedded one then
            print(f"no Kafka in a container ({type(error).__name__}); using the embedded one")
            return None
    return f"127.0.0.1:{port}"


def _configured(port: int) -> Any:
    from testcontainers.core.container import DockerContainer

    settings = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://0.0.0.0:9092,CONTROLLER://127.0.0.1:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:9093",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_TRANSACTION_ABORT_TIMED_OUT_TRANSACTION_CLEANUP_INTERVAL_MS": "1000",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_MESSAGE_MAX_BYTES": "8388608",
    }
    container = DockerContainer(IMAGE).with_bind_ports(9092, port)
    for name, value in settings.items():
        container = container.with_env(name, value)
    return container


def _wait(port: int) -> None:
    import time

    deadline = time.monotonic() + CONTAINER_TIMEOUT_S
    while not answers("127.0.0.1", port, 1):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the container did not answer within {CONTAINER_TIMEOUT_S:.0f} s")
        time.sleep(0.2)
