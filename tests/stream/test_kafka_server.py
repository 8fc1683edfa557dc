"""The embedded Kafka: real start, real data, and every way in which it can end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.core.errors import ConfigurationError, Refused
from pipeline.ops.kafka_jars import kafka_jars, pinned_jars
from pipeline.ops.kafka_server import (
    KafkaCluster,
    KafkaFailed,
    KafkaServer,
    answers,
    new_cluster_id,
)
from pipeline.ops.loopback_ports import free_port, port_is_free
from pipeline.ops.maven_jars import JarsUnavailable, PinnedJar

TOPIC = "records"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path / "kafka")
    try:
        yield server
    finally:
        server.kill()


async def _produce(bootstrap: str, values: list[bytes]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(TOPIC, value, partition=0)
    finally:
        await producer.stop()


async def _consume(bootstrap: str) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        partition = TopicPartition(TOPIC, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        [end] = (await consumer.end_offsets([partition])).values()
        values: list[bytes] = []
        while await consumer.position(partition) < end:
            batches = await consumer.getmany(timeout_ms=1000)
            values += [record.value for records in batches.values() for record in records]
        return values
    finally:
        await consumer.stop()


async def _create_topic(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(TOPIC, 1, 1)])
    finally:
        await admin.close()


async def test_acknowledged_records_survive_a_kill_and_a_stop(server: KafkaServer) -> None:
    server.start()
    await _create_topic(server.bootstrap)
    await _produce(server.bootstrap, [b"one", b"two"])
    first_address, killed_pid = server.bootstrap, server.pid

    server.kill()
    assert not _runs(killed_pid)
    server.start()
    assert server.bootstrap == first_address
    assert await _consume(server.bootstrap) == [b"one", b"two"]
    await _produce(server.bootstrap, [b"three"])

    server.stop()
    again = KafkaServer(server.folder)
    try:
        again.start()
        assert await _consume(again.bootstrap) == [b"one", b"two", b"three"]
    finally:
        again.kill()


def test_a_node_alone_may_stand_still_longer_than_one_among_others(
    server: KafkaServer, tmp_path: Path
) -> None:
    node = KafkaCluster(tmp_path / "cluster").nodes[0]
    for prepared, session_ms in ((server, 6_000), (node, 3_000)):
        prepared.prepare()
        try:
            settings = (prepared.folder / "server.properties").read_text().splitlines()
        finally:
            prepared.kill()
        assert f"broker.session.timeout.ms={session_ms}" in settings


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} .*TALLYPORT_KAFKA_PORT"):
            KafkaServer(tmp_path / "kafka", port).start()


def test_a_second_server_on_the_same_folder_is_refused(server: KafkaServer) -> None:
    server.start()
    with pytest.raises(Refused, match=rf"already running .*{os.getpid()}"):
        KafkaServer(server.folder).start()
    assert answers("127.0.0.1", server.port, 1)


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka")
    server.prepare()
    config = tmp_path / "kafka" / "server.properties"
    config.write_text(config.read_text() + "num.io.threads=none\n")
    server.launch()
    with pytest.raises(KafkaFailed, match=r"num\.io\.threads"):
        server.wait_ready()
    assert server.exit_status() is not None


def test_a_home_without_kafka_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="TALLYPORT_KAFKA_HOME"):
        KafkaServer(tmp_path / "kafka", home=tmp_path).start()


def test_an_unpacked_kafka_is_used_where_one_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "libs").symlink_to(kafka_jars())
    server = KafkaServer(tmp_path / "kafka", home=home)
    try:
        server.start()
        assert str(home / "libs") in Path(f"/proc/{server.pid}/cmdline").read_text()
    finally:
        server.kill()


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib; from pipeline.ops.kafka_server import KafkaServer;"
        "s = KafkaServer(pathlib.Path(sys.argv[1])); s.start(); print(s.pid, s.port, flush=True);"
        "time.sleep(600)"
    )
    folder = tmp_path / "kafka"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        kafka_pid, port = map(int, parent.stdout.readline().split())
        assert _runs(kafka_pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.communicate()
    deadline = time.monotonic() + 60
    while _runs(kafka_pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(kafka_pid)
    while not port_is_free("127.0.0.1", port) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel closes its sockets after the process is gone
    assert port_is_free("127.0.0.1", port)
    heir = KafkaServer(folder, port)
    try:
        heir.start()
    finally:
        heir.kill()


def test_cluster_ids_are_never_taken_for_an_option() -> None:
    ids = {new_cluster_id() for _ in range(500)}
    assert len(ids) == 500
    assert all(len(one) == 22 and not one.startswith("-") for one in ids)


def test_jars_are_pinned_and_complete() -> None:
    jars = pinned_jars()
    assert len(jars) == 46
    assert len({jar.filename for jar in jars}) == 46
    assert all(len(jar.sha256) == 64 for jar in jars)
    folder = kafka_jars()
    assert {jar.filename for jar in jars} <= {path.name for path in folder.iterdir()}


def test_a_jar_with_another_checksum_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(jar: PinnedJar, repository: Path) -> Path:
        repository.mkdir(parents=True, exist_ok=True)
        path = repository / jar.filename
        path.write_bytes(b"something else")
        return path

    monkeypatch.setattr("pipeline.ops.maven_jars._download", download)
    folder = tmp_path / "cache" / "kafka"
    with pytest.raises(JarsUnavailable, match="SHA-256"):
        kafka_jars(folder)
    assert not folder.exists()
    assert [path.name for path in folder.parent.iterdir()] == ["kafka.lock"]


def test_a_free_port_is_free() -> None:
    assert port_is_free("127.0.0.1", free_port())


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(500)]
    assert len(set(ports)) == len(ports)


def test_a_port_that_was_given_is_kept_from_other_processes_until_its_server_listens() -> None:
    port = free_port()
    code = (
        "import sys; from pipeline.ops import loopback_ports as ports;"
        "ports._FIRST = ports._LAST = int(sys.argv[1]); ports.free_port()"
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(port)], capture_output=True, text=True, check=False
    )
    assert f"found no free port on 127.0.0.1 between {port} and {port}" in other.stderr
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free("127.0.0.1", port)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
