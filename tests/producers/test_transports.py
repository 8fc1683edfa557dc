"""What both transports promise: the same tests on a real Kafka and over HTTP."""

import json
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.decision import Verdict
from pipeline.core.home import home_partition
from producers import Meter
from producers.prices import Prices
from producers.segment import Entry
from producers.settings import MeterSettings
from producers.transports import kafka as kafka_transport
from producers.transports.http import HttpTransport
from producers.transports.kafka import KafkaTransport
from producers.transports.transport import Follower, StateTaker, Unavailable
from tests.producers.sides import PARTITIONS, WAIT_S, KafkaSide, Side, counting, until
from tests.producers.states import record, state

MakeMeter = Callable[[Side], Meter]
USE = {"provider": "acme", "model": "m-1", "input_tokens": 30, "output_tokens": 10}
RATE = {
    "rate_id": "r1",
    "provider": "acme",
    "model": "m-1",
    "effective_from": "2020-01-01T00:00:00Z",
    "backdated": True,
    "per_million": {"input_tokens": "1", "output_tokens": "2000000"},
}


def live(meter: Meter, **asked: Any) -> Verdict:
    """The verdict once heartbeats come: they are late where a machine or Kafka stands still."""

    def fresh() -> Verdict | None:
        found = meter.check(**asked)
        return None if found.freshness == "STALE" else found

    return until(fresh, "heartbeats")


def verdict_of(meter: Meter, **asked: Any) -> tuple[bool, str, str]:
    found = live(meter, **asked)
    return found.allowed, found.reason, found.freshness


def test_events_arrive_in_order_and_once(side: Side, meter_of: MakeMeter) -> None:
    meter = meter_of(side)
    for number in range(2_500):
        meter.record(event_id=f"e{number}", port_id=f"p{number % 5}", **USE)
    assert meter.flush(WAIT_S)
    arrived = side.events()
    assert sorted(event["event_id"] for event in arrived) == sorted(f"e{n}" for n in range(2_500))
    for port in range(5):
        own = [int(e["event_id"][1:]) for e in arrived if e["port_id"] == f"p{port}"]
        assert own == sorted(own)
    stats = meter.stats
    assert (stats.recorded, stats.sent, stats.waiting) == (2_500, 2_500, 0)
    assert (stats.lost, stats.rejected, stats.transport) == ({}, {}, side.name)


def test_states_come_first_all_then_every_change(side: Side, meter_of: MakeMeter) -> None:
    side.put(0, *record(state("port:a", used=100), 1))
    side.put(1, *record(state("user:u", used=0, hard=50), 1))
    side.put(1, *record(state("user:gone", used=50, hard=50), 1))
    side.put(1, b"user:gone|tokens|month", None)
    with counting(side):
        meter = meter_of(side)
        assert meter.wait_ready(WAIT_S)
        assert verdict_of(meter, port_id="a") == (False, "hard-cap-exceeded", "LIVE")
        assert verdict_of(meter, user_id="u", estimated_tokens=50) == (True, "ok", "LIVE")
        assert verdict_of(meter, user_id="gone") == (True, "no-policy", "LIVE")
        side.put(1, *record(state("user:u", used=50, hard=50), 2))
        until(lambda: not meter.check(user_id="u").allowed, "a new state")
        side.put(1, *record(state("user:u", used=0, hard=50), 1))  # an older version
        side.put(0, b"port:a|tokens|month", None)
        until(lambda: meter.check(port_id="a").reason == "no-policy", "a tombstone")
        assert verdict_of(meter, user_id="u") == (False, "hard-cap-exceeded", "LIVE")


def test_a_call_is_held_until_its_record_is_contained(side: Side, meter_of: MakeMeter) -> None:
    side.put(0, *record(state("port:a", used=0, hard=100), 1))
    with counting(side) as said:
        meter = meter_of(side)
        assert meter.wait_ready(WAIT_S)
        with meter.guard(port_id="a", estimated_tokens=70) as call:
            assert verdict_of(meter, port_id="a", estimated_tokens=31)[:2] == (
                False,
                "estimated-exceeds-cap",
            )
            call.record(**USE)
        assert meter.flush(WAIT_S)
        assert meter.check(port_id="a").used == 40  # what it used, not what was estimated
        partition = sent_to(side)
        said.through = {partition: 0}
        side.put(0, *record(state("port:a", used=40, hard=100), 2))
        until(lambda: meter.check(port_id="a").used == 80, "the state beside the hold")
        said.through = {partition: 1}
        until(lambda: meter.check(port_id="a").used == 40, "the hold to be let go")
        until(lambda: meter.stats.held == 0, "all partitions to contain it")


def sent_to(side: Side) -> int:
    """The partition of ``usage.events`` that the only event is on."""
    return side.records()[0][0] if isinstance(side, KafkaSide) else 0


def test_prices_are_known_from_the_first_check(side: Side, meter_of: MakeMeter) -> None:
    side.put_rate(RATE)
    side.put(0, *record(state("port:a", used=0, hard=5 * 10**9, unit="cost")))
    with counting(side):
        meter = meter_of(side)
        assert meter.wait_ready(WAIT_S)
        asked = {"port_id": "a", "provider": "acme", "model": "m-1"}
        assert verdict_of(meter, **asked, estimated_tokens=2)[0]  # at 2 a token
        assert not verdict_of(meter, **asked, estimated_tokens=3)[0]
        assert verdict_of(meter, **asked, estimated_tokens=3, estimated_cost="5")[0]
        assert verdict_of(meter, port_id="a", provider="acme", model="?", estimated_tokens=9)[0]


def test_what_is_invalid_is_refused_here_and_counted(side: Side, meter_of: MakeMeter) -> None:
    meter = meter_of(side)
    meter.record(port_id="p", **USE | {"input_tokens": -1})
    meter.record(**USE)
    meter.record(port_id="p", event_id="good", **USE)
    assert meter.flush(WAIT_S)
    assert [event["event_id"] for event in side.events()] == ["good"]
    assert meter.stats.rejected == {"out-of-range": 1, "missing-field": 1}


class SendsOnly(KafkaTransport):
    """Follows nothing, so whatever connects is what sends."""

    def followers(self, gate: StateTaker, prices: Prices | None) -> Sequence[Follower]:
        return []


def test_a_meter_connects_before_there_is_something_to_send() -> None:
    with socket.create_server(("127.0.0.1", 0)) as broker:
        broker.settimeout(WAIT_S)
        address = f"127.0.0.1:{broker.getsockname()[1]}"
        transport = SendsOnly({"bootstrap.servers": address})
        with Meter(MeterSettings(keeps_on_disk=False), lambda: transport) as meter:
            connection, _ = broker.accept()
            with connection:
                assert connection.recv(1)
            assert meter.stats.recorded == 0


def test_what_cannot_be_opened_is_told_and_events_wait(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environ = {
        "TALLYPORT_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "TALLYPORT_KAFKA_SECURITY_PROTOCOL": "SSL",
        "TALLYPORT_KAFKA_SSL_CAFILE": str(tmp_path / "missing.pem"),
        "TALLYPORT_SPOOL_DIR": str(tmp_path / "spool"),
    }
    meter = Meter.from_env(environ)
    until(lambda: "events wait to be sent" in caplog.text, "a warning")
    meter.record(port_id="p", **USE)
    assert not meter.close(0.1)
    assert (meter.stats.lost, meter.stats.rejected) == ({}, {})


@pytest.mark.parametrize("listens", [False, True])
def test_the_end_does_not_wait_for_a_kafka_that_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listens: bool
) -> None:
    monkeypatch.setattr(kafka_transport, "METADATA_S", 10 * WAIT_S)
    before = {*threading.enumerate()}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if listens else 1
        environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": f"127.0.0.1:{port}",
            "TALLYPORT_SPOOL_DIR": str(tmp_path / "spool"),
        }
        meter = Meter.from_env(environ)
        meter.record(port_id="p", **USE)
        assert not meter.close(3.0)
    # None of its threads goes on for as long as an answer may take.
    until(lambda: {*threading.enumerate()} <= before, "its threads to end")


def test_events_go_to_their_ports_home_partition(
    kafka: str, topic_prefix: str, tmp_path: Any, meter_of: MakeMeter
) -> None:
    side = KafkaSide(kafka, topic_prefix, tmp_path)
    meter = meter_of(side)
    ports = ["a", "harbor-7", "ß|%:", "x" * 128, *map(str, range(40))]
    for port in ports:
        meter.record(port_id=port, **USE)
    assert meter.flush(WAIT_S)
    found = side.records()
    assert {key.decode() for _, key, _ in found} == set(ports)
    for partition, key, value in found:
        assert json.loads(value)["port_id"] == key.decode()
        assert partition == home_partition(key.decode(), PARTITIONS)


def test_closed_while_an_answer_is_awaited_nothing_is_opened_again() -> None:
    asked = threading.Event()
    connections = list[socket.socket]()

    def serve() -> None:
        said = b""
        while said != b"x":
            connection, _ = listener.accept()
            connections.append(connection)
            said = connection.recv(65_536)
            asked.set()

    def deliver() -> None:
        with pytest.raises(Unavailable):
            transport.deliver([Entry(b"p", b"{}", 2)], threading.Event())
        refused.append(True)

    refused = list[bool]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        transport = HttpTransport(f"http://127.0.0.1:{address[1]}")
        server, sender = threading.Thread(target=serve), threading.Thread(target=deliver)
        server.start()
        sender.start()
        assert asked.wait(WAIT_S)
        transport.close()
        sender.join(WAIT_S)
        deliver()
        with socket.create_connection(address) as last:
            last.sendall(b"x")
            server.join(WAIT_S)
    assert refused == [True, True]
    assert len(connections) == 2  # the first, and the last one of this test
    for connection in connections:
        connection.close()
