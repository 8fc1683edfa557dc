"""An embedded Kafka with a second listener that clients reach through a proxy only.

Clients that come in there are told the proxy's address; everybody else uses ``bootstrap``.
"""

from pathlib import Path

from pipeline.ops.kafka_server import HOST, KafkaServer
from pipeline.ops.loopback_ports import free_port


class ProxiedKafka(KafkaServer):
    """``proxy_port`` is what a proxy has to listen on, ``hidden_port`` where it passes on to."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.proxy_port = free_port()
        self.hidden_port = free_port()

    def _write_config(self, storage: Path) -> None:
        super()._write_config(storage)
        lines = self._config_file.read_text("latin-1").splitlines()
        added = {
            "listeners": f"PROXIED://{HOST}:{self.hidden_port}",
            "advertised.listeners": f"PROXIED://{HOST}:{self.proxy_port}",
            "listener.security.protocol.map": "PROXIED:PLAINTEXT",
        }
        lines = [
            f"{line},{added[line.partition('=')[0]]}" if line.partition("=")[0] in added else line
            for line in lines
        ]
        self._config_file.write_text("\n".join(lines) + "\n", "latin-1")
