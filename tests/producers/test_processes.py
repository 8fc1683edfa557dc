"""What a meter keeps when its process is killed, forked, or its deployment goes away."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse, Response

from pipeline.ops.kafka_server import KafkaServer
from pipeline.ops.loopback_ports import free_port
from producers import Meter
from tests.producers.sides import WAIT_S, HttpSide, KafkaSide, Side, beat_all, counting, until
from tests.producers.states import record, state

MakeMeter = Callable[[Side], Meter]
USE = {"provider": "acme", "model": "m-1", "input_tokens": 3}
SERVICE = """
import os, signal, sys, time
from producers import Meter
meter = Meter.from_env()
use = {"provider": "acme", "model": "m-1", "input_tokens": 3}
"""


def service(environ: dict[str, str], code: str, timeout_s: float = 2 * WAIT_S) -> int:
    """Runs a service's ``code`` with a ``meter`` in another process; how it ended."""
    done = subprocess.run(
        [sys.executable, "-c", SERVICE + code],
        env={**os.environ, **environ},
        timeout=timeout_s,
        check=False,
    )
    return done.returncode


def ids(side: Side) -> list[str]:
    return [event["event_id"] for event in side.events()]


def test_recorded_is_recorded_whatever_kills_the_service(
    http_side: HttpSide, meter_of: MakeMeter
) -> None:
    """What ``record`` promises when it returns: the event outlives the process."""
    http_side.api.stop()
    code = (
        "for n in range(3000): meter.record(event_id=f'e{n}', port_id='p', **use)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert service(http_side.environ, code) == -signal.SIGKILL
    http_side.api.start()
    meter = meter_of(http_side)
    until(lambda: meter.stats.adopted == 3_000, "everything to be adopted")
    assert ids(http_side) == [f"e{n}" for n in range(3_000)]
    assert meter.stats.lost == {}


def test_killed_while_sending_nothing_is_lost(http_side: HttpSide, meter_of: MakeMeter) -> None:
    code = (
        "import threading, time\n"
        "n = 0\n"
        "def end():\n"
        "    while n < 50: time.sleep(0.01)\n"
        "    time.sleep(0.3)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=end).start()\n"
        "while True:\n"
        "    meter.record(event_id=f'e{n}', port_id='p', **use)\n"
        "    print(n, flush=True); n += 1; time.sleep(0.0003)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", SERVICE + code],
        env={**os.environ, **http_side.environ},
        timeout=2 * WAIT_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL
    recorded = {f"e{line}" for line in run.stdout.splitlines()}
    assert len(recorded) >= 50
    meter_of(http_side)
    until(lambda: recorded <= set(ids(http_side)), "everything to arrive")
    first = list(dict.fromkeys(ids(http_side)))  # once each, as the worker counts them
    assert first == sorted(first, key=lambda event_id: int(event_id[1:]))


def test_the_api_away_and_back(http_side: HttpSide, meter_of: MakeMeter) -> None:
    http_side.put(0, *record(state("port:a", hard=100), 1))
    with counting(http_side):
        meter = meter_of(http_side)
        assert meter.wait_ready(WAIT_S)
        http_side.api.stop()
        for number in range(500):
            meter.record(event_id=f"e{number}", port_id="p", **USE)
        assert not meter.flush(0.5)
        assert (meter.stats.waiting, meter.stats.lost) == (500, {})
        http_side.put(0, *record(state("port:a", used=100, hard=100), 2))
        http_side.api.start()
        assert meter.flush(WAIT_S)
        assert ids(http_side) == [f"e{n}" for n in range(500)]
        until(lambda: not meter.check(port_id="a").allowed, "the stream to go on")


def test_a_stream_that_ends_goes_on_where_it_was(http_side: HttpSide, meter_of: MakeMeter) -> None:
    api = http_side.api
    meter = meter_of(http_side)
    assert meter.wait_ready(WAIT_S)
    before = len(api.resumed_from)
    api.hang_up = True  # streams end, the API stays
    until(lambda: any(api.resumed_from[before:]), "a stream that goes on")


def test_a_reset_that_is_cut_off_is_asked_for_again(
    http_side: HttpSide, meter_of: MakeMeter
) -> None:
    """With the id from before it, all states that do not change again would stay unknown."""
    http_side.put(0, *record(state("port:a", used=100, hard=100), 1))
    with counting(http_side):
        api = http_side.api
        meter = meter_of(http_side)
        assert meter.wait_ready(WAIT_S)
        before = len(api.resumed_from)
        api.cut_resets, api.hang_up = 1, True  # streams end, the API stays
        until(lambda: api.cut_resets == 0, "a stream that would go on")
        api.hang_up = False
        until(lambda: "" in api.resumed_from[before:], "a stream from the beginning")
        until(lambda: not meter.check(port_id="a").allowed, "the state")


def test_the_broker_away_and_back(tmp_path: Path, topic_prefix: str, meter_of: MakeMeter) -> None:
    broker = KafkaServer(tmp_path / "kafka", free_port())
    broker.start()
    try:
        side = KafkaSide(broker.bootstrap, topic_prefix, tmp_path / "spool")
        side.put(0, *record(state("port:p", hard=10**6), 1))
        beat_all(side)
        meter = meter_of(side)
        assert meter.wait_ready(WAIT_S)
        meter.record(event_id="before", port_id="p", **USE)
        assert meter.flush(WAIT_S)
        broker.kill()
        for number in range(300):
            meter.record(event_id=f"e{number}", port_id="p", **USE)
        until(lambda: meter.check(port_id="p").freshness == "STALE", "states to be stale")
        assert (meter.stats.waiting, meter.stats.lost) == (300, {})
        broker.start()
        assert meter.flush(WAIT_S)
        with counting(side):
            until(lambda: meter.check(port_id="p").freshness == "LIVE", "states to be live again")
        found = list(dict.fromkeys(ids(side)))
        assert found == ["before", *(f"e{n}" for n in range(300))]
    finally:
        broker.kill()


class TestAnswers:
    """What the API may say, and what becomes of the events."""

    def test_later_is_tried_later(self, http_side: HttpSide, meter_of: MakeMeter) -> None:
        api = http_side.api
        told = iter([429, 503, 401, 500])

        def answer(_: list[Any]) -> Response | None:
            status = next(told, None)
            return None if status is None else JSONResponse({"detail": "later"}, status)

        api.answer = answer
        meter = meter_of(http_side)
        meter.record(event_id="e", port_id="p", **USE)
        assert meter.flush(WAIT_S)
        assert ids(http_side) == ["e"]
        assert meter.stats.rejected == {}

    def test_what_says_nothing_about_events_loses_none(
        self, http_side: HttpSide, meter_of: MakeMeter
    ) -> None:
        """Of a proxy, a sign-in page, another server: no verdict on an event."""
        elsewhere = {"Location": "http://127.0.0.1:9/"}
        told = iter(
            [
                Response("<p>Sign in</p>", media_type="text/html"),
                Response(status_code=302, headers=elsewhere),
                Response(status_code=411),
                JSONResponse({"title": "no such thing"}, 422),
            ]
        )
        http_side.api.answer = lambda _: next(told, None)
        meter = meter_of(http_side)
        meter.record(event_id="e", port_id="p", **USE)
        assert meter.flush(WAIT_S)
        assert (ids(http_side), meter.stats.rejected) == (["e"], {})
        assert next(told, None) is None

    def test_too_much_is_sent_in_parts(self, http_side: HttpSide, meter_of: MakeMeter) -> None:
        def answer(body: list[Any]) -> Response | None:
            return JSONResponse({"title": "too much"}, 413) if len(body) > 10 else None

        http_side.api.answer = answer
        meter = meter_of(http_side)
        for number in range(100):
            meter.record(event_id=f"e{number}", port_id="p", **USE)
        assert meter.flush(WAIT_S)
        assert ids(http_side) == [f"e{n}" for n in range(100)]

    def test_one_that_is_refused_stops_nothing(
        self, http_side: HttpSide, meter_of: MakeMeter
    ) -> None:
        def answer(body: list[Any]) -> Response | None:
            bad = any(event["event_id"] == "e7" for event in body)
            return JSONResponse({"title": "no"}, 400) if bad else None

        http_side.api.answer = answer
        meter = meter_of(http_side)
        for number in range(20):
            meter.record(event_id=f"e{number}", port_id="p", **USE)
        assert meter.flush(WAIT_S)
        assert sorted(ids(http_side)) == sorted(f"e{n}" for n in range(20) if n != 7)
        assert meter.stats.rejected == {"refused": 1}


class TestFork:
    def test_a_child_sends_and_decides_by_itself(self, side: Side) -> None:
        side.put(0, *record(state("port:a", used=0, hard=100), 1))
        code = (
            "assert meter.wait_ready(60)\n"
            "parent_call = meter.begin(port_id='a', estimated_tokens=80)\n"
            "while (asked := meter.check(port_id='a', estimated_tokens=30)).reason == 'stale':\n"
            "    time.sleep(0.05)\n"
            "assert not asked.allowed\n"
            "pid = os.fork()\n"
            "who = 'parent' if pid else 'child'\n"
            "if not pid:\n"
            "    assert meter.wait_ready(60)\n"
            "    assert meter.check(port_id='a', estimated_tokens=100).allowed\n"
            "    assert meter.stats.held == 0\n"
            "for n in range(50): meter.record(event_id=f'{who}{n}', port_id='p', **use)\n"
            "assert meter.flush(60), meter.stats\n"
            "assert meter.stats.sent == 50\n"
            "if pid: sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
        )
        with counting(side):
            assert service(side.environ, code) == 0
        assert sorted(ids(side)) == sorted(
            f"{who}{n}" for who in ("parent", "child") for n in range(50)
        )

    def test_gunicorn_with_the_service_loaded_before_the_fork(
        self, http_side: HttpSide, tmp_path: Path, meter_of: MakeMeter
    ) -> None:
        (tmp_path / "preloaded.py").write_text(
            "import os\nfrom producers import Meter\nmeter = Meter.from_env()\n"
            "def app(environ, start):\n"
            "    pid = str(os.getpid())\n"
            "    meter.record(port_id='p', provider='acme', model='m', session_id=pid)\n"
            "    start('200 OK', [])\n"
            "    return [pid.encode()]\n"
        )
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "gunicorn",
            "--preload",
            "-w",
            "2",
            "--chdir",
            str(tmp_path),
            "-b",
            f"127.0.0.1:{port}",
            "preloaded:app",
        ]
        environ = {**os.environ, **http_side.environ, "PYTHONPATH": str(Path.cwd())}
        process = subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL)
        try:
            seen: list[str] = []
            deadline = time.monotonic() + WAIT_S
            while (len(set(seen)) < 2 or len(seen) < 40) and time.monotonic() < deadline:
                body = _get(port)
                if body:
                    seen.append(body)
            assert len(set(seen)) == 2, "both workers answered"
            process.terminate()
            assert process.wait(WAIT_S) == 0
        finally:
            process.kill()
            process.wait(10)
        meter_of(http_side)  # sends what a worker could not before it ended
        until(lambda: len(set(ids(http_side))) >= len(seen), "everything to arrive")
        first = {event["event_id"]: event["session_id"] for event in http_side.events()}
        assert sorted(first.values()) == sorted(seen)


def _get(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        time.sleep(0.05)
        return ""
    finally:
        connection.close()
