"""The embedded Kafka: Apache Kafka itself as one KRaft node, its data in a folder."""

import base64
import shutil
import socket
import struct
import subprocess
import time
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from aiokafka.protocol.metadata import MetadataRequest_v1, MetadataResponse_v1

from pipeline.core.errors import ConfigurationError, TallyportError
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.folder_lock import FolderLock
from pipeline.ops.java_runtime import java_command
from pipeline.ops.kafka_jars import kafka_jars
from pipeline.ops.loopback_ports import free_port, usable_port

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
FORMAT_TIMEOUT_S = 60.0
PROBE_TIMEOUT_S = 2.0

# Measured on two cores: the first compiler alone starts a third faster, takes half the processor
# time over the first minutes and carries the same load; the serial collector needs least memory.
# With the usual bounds for classes and code it collected everything three times in the first
# minute, for 50 to 130 ms each.
JVM_FLAGS = (
    "-XX:MetaspaceSize=96m",
    "-XX:ReservedCodeCacheSize=240m",
    "-Xms128m",
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSZ",
)

# One small machine, few topics; what Kafka keeps for itself stays small, and a transaction whose
# owner died is ended a second after its own timeout rather than ten.
SERVER_CONFIG: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "auto.create.topics.enable": "false",
    "broker.heartbeat.interval.ms": "300",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "num.recovery.threads.per.data.dir": "2",
    "offsets.topic.num.partitions": "4",
    "offsets.retention.minutes": "43200",
    "transaction.state.log.num.partitions": "8",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "log.cleaner.dedupe.buffer.size": "33554432",
    "log.cleaner.backoff.ms": "5000",
    "log.retention.check.interval.ms": "60000",
    "message.max.bytes": "8388608",
    "replica.fetch.max.bytes": "8388608",
}

# A node that stands still for longer than its session leads nothing until it is back. Among several
# another takes over, and soon is better. Nobody does for one that is alone: it would only fence its
# own clients, after a few seconds without disk or processor. A killed node may register again only
# when its old session has run out.
SESSION_AMONG_OTHERS_MS = 3_000
SESSION_ALONE_MS = 6_000


class KafkaFailed(TallyportError):
    """The embedded Kafka did not start or has stopped; the message names its log."""


class KafkaServer:
    """One Kafka node (broker and controller) on loopback, with its data in ``folder``.

    ``port`` 0 takes any free port, kept over restarts of this object. ``quorum`` maps the node id
    of every controller to its port, for several nodes on one machine (see ``KafkaCluster``); by
    default this node is alone. ``start`` is ``prepare`` + ``launch`` + ``wait_ready``; of these
    only ``launch`` must run on the main thread (see ``tether``).
    """

    def __init__(
        self,
        folder: Path,
        port: int = 0,
        *,
        home: Path | None = None,
        log_file: Path | None = None,
        node_id: int = 1,
        quorum: Mapping[int, int] | None = None,
        cluster_id: str | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.node_id = node_id
        self.log_file = (log_file or folder / "kafka.log").absolute()
        self._home = home
        self._asked_port = port
        self._port = 0
        self._quorum = dict(quorum or {})
        self._fixed_quorum = quorum is not None
        self._cluster_id = cluster_id or new_cluster_id()
        self._lock = FolderLock(self.folder / "lock", "Kafka")
        self._command: list[str] = []
        self._child: ChildProcess | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def bootstrap(self) -> str:
        """``HOST:PORT`` for clients; known once it was started."""
        return f"{HOST}:{self._port}"

    @property
    def pid(self) -> int:
        if self._child is None:
            raise KafkaFailed("the embedded Kafka is not running")
        return self._child.pid

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and wait until it answers clients.

        Raises ``ConfigurationError`` for a port in use, ``Refused`` while another process runs on
        the folder, ``KafkaFailed`` with the last error in its log when it does not come up in time.
        """
        self.prepare()
        self.launch()
        self.wait_ready(timeout_s)

    def prepare(self) -> None:
        """Take the folder, choose ports, write the configuration, format the storage once."""
        self._lock.acquire()
        try:
            self._port = usable_port(self._port or self._asked_port, "TALLYPORT_KAFKA_PORT", HOST)
            if not self._fixed_quorum:
                self._quorum = {self.node_id: free_port(HOST)}
            self._command = [java_command(), *JVM_FLAGS, "-cp", f"{_libs(self._home)}/*"]
            self._format_once()
            self._write_config(self._storage)
        except BaseException:
            self._lock.release()
            raise

    def launch(self) -> None:
        """Start the process; returns at once."""
        self._child = ChildProcess(
            "kafka",
            [*self._command, "kafka.Kafka", str(self._config_file)],
            self.log_file,
            inherited=[self._lock.fileno()],
        )

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Return once the node answers a metadata request and is part of its cluster."""
        deadline = time.monotonic() + timeout_s
        while not answers(HOST, self._port, self.node_id):
            if self.exit_status() is not None:
                status, note = self.exit_status(), self.log_note()
                self._forget()
                raise KafkaFailed(f"Kafka ended with status {status} while starting{note}")
            if time.monotonic() > deadline:
                note = self.log_note()
                self.kill()
                raise KafkaFailed(f"Kafka was not ready within {timeout_s:.0f} s{note}")
            time.sleep(0.05)

    def exit_status(self) -> int | None:
        """None while it runs, else how it ended (negative: a signal)."""
        return 0 if self._child is None else self._child.exit_status()

    def terminate(self) -> None:
        """Ask it to stop; does not wait."""
        if self._child is not None:
            self._child.terminate()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End it cleanly; with SIGKILL after ``timeout_s``."""
        if self._child is not None:
            self._child.stop(timeout_s)
        self._forget()

    def kill(self) -> None:
        """SIGKILL, as a crash would; ``start`` on the same object or folder recovers."""
        if self._child is not None:
            self._child.kill()
        self._forget()

    def _forget(self) -> None:
        self._child = None
        self._lock.release()

    def log_note(self) -> str:
        """The end of a message about its failure: the last error in its log, and where that is."""
        return "" if self._child is None else self._child.log_note()

    @property
    def _storage(self) -> Path:
        return self.folder / "log"

    @property
    def _config_file(self) -> Path:
        return self.folder / "server.properties"

    def _write_config(self, storage: Path) -> None:
        copies = str(min(3, len(self._quorum)))
        voters = ",".join(f"{node}@{HOST}:{port}" for node, port in sorted(self._quorum.items()))
        alone = len(self._quorum) == 1
        config = {
            **SERVER_CONFIG,
            "broker.session.timeout.ms": str(
                SESSION_ALONE_MS if alone else SESSION_AMONG_OTHERS_MS
            ),
            "node.id": str(self.node_id),
            "controller.quorum.voters": voters,
            "listeners": f"PLAINTEXT://{HOST}:{self._port},"
            f"CONTROLLER://{HOST}:{self._quorum[self.node_id]}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{self._port}",
            "log.dirs": str(storage),
            "default.replication.factor": copies,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": str((int(copies) + 1) // 2),
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": "1",
        }
        lines = (f"{name}={_escaped(value)}\n" for name, value in config.items())
        self._config_file.write_text("".join(lines), "latin-1")

    def _format_once(self) -> None:
        if self._storage.is_dir():
            return
        fresh = self.folder / "log.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        self._write_config(fresh)
        tool = ["kafka.tools.StorageTool", "format", "-t", self._cluster_id]
        try:
            done = subprocess.run(
                [*self._command, *tool, "-c", str(self._config_file)],
                capture_output=True,
                text=True,
                timeout=FORMAT_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KafkaFailed(f"Kafka's storage could not be formatted: {error}") from error
        if done.returncode != 0:
            text = (done.stderr or done.stdout).strip()
            raise KafkaFailed(f"Kafka's storage could not be formatted:\n{text}")
        fresh.rename(self._storage)


class KafkaCluster:
    """Several nodes on this machine, each broker and controller; for tests of broker failures."""

    def __init__(self, folder: Path, size: int = 3, home: Path | None = None) -> None:
        quorum = {node_id: free_port(HOST) for node_id in range(1, size + 1)}
        cluster_id = new_cluster_id()
        self.nodes = [
            KafkaServer(
                folder / f"node-{node_id}",
                home=home,
                node_id=node_id,
                quorum=quorum,
                cluster_id=cluster_id,
            )
            for node_id in quorum
        ]

    @property
    def bootstrap(self) -> str:
        return ",".join(node.bootstrap for node in self.nodes)

    def start(self, timeout_s: float = 2 * START_TIMEOUT_S) -> None:
        """Start all nodes and wait for each."""
        try:
            for node in self.nodes:
                node.prepare()
                node.launch()
            for node in self.nodes:
                node.wait_ready(timeout_s)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End all nodes; at the same time, as the last ones lack a quorum to leave cleanly."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.stop()

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()


def new_cluster_id() -> str:
    """A random cluster id in Kafka's form: 22 characters that do not start with a dash."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):  # the format tool would take it for an option
            return text


def answers(host: str, port: int, node_id: int) -> bool:
    """Whether the broker at ``host:port`` answers a metadata request and lists ``node_id``."""
    request = MetadataRequest_v1([])
    body = request.build_request_header(1, "tallyport-probe").encode() + request.encode()
    try:
        with socket.create_connection((host, port), PROBE_TIMEOUT_S) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            stream = connection.makefile("rb")
            (size,) = struct.unpack(">i", stream.read(4))
            answer = BytesIO(stream.read(size))
    except (OSError, struct.error):
        return False
    request.parse_response_header(answer)
    brokers = MetadataResponse_v1.decode(answer).to_object()["brokers"]
    return any(broker["node_id"] == node_id for broker in brokers)


def _libs(home: Path | None) -> Path:
    if home is None:
        return kafka_jars()
    libs = home.absolute() / "libs"
    if not any(libs.glob("kafka_2.*.jar")):
        raise ConfigurationError(
            f"TALLYPORT_KAFKA_HOME: {home} is no unpacked Kafka (no kafka_2.*.jar in {libs})"
        )
    return libs


def _escaped(value: str) -> str:
    """A value as Java's property files want it."""
    text = value.replace("\\", "\\\\")
    return "".join(c if " " <= c <= "~" else _utf16_escapes(c) for c in text)


def _utf16_escapes(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
