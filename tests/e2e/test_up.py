"""`tallyport up` as a user runs it: one line when ready, one error when not, no process left."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipeline.endpoints import read_endpoints
from pipeline.processor import processor_to_stay_on

READY = re.compile(
    r"ready kafka=(127\.0\.0\.1:\d+) clickhouse=(http://127\.0\.0\.1:\d+) api=(http://\S+:\d+)"
)
START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 120.0


@dataclass
class Up:
    """A running ``tallyport up`` and the folder it works in."""

    process: subprocess.Popen[str]
    folder: Path
    printed: list[str] = field(default_factory=list[str])

    def first_line(self) -> str:
        """The first line on standard output; empty when it ends without one."""
        assert self.process.stdout is not None
        timer = threading.Timer(START_TIMEOUT_S, self.process.kill)
        timer.start()
        try:
            return self.process.stdout.readline().rstrip()
        finally:
            timer.cancel()

    def children(self) -> set[int]:
        """The pids of everything below it, found by the data folder in their environment."""
        return {pid for pid in _pids_naming(self.folder) if pid != self.process.pid}


def _start(folder: Path, **settings: str) -> Up:
    folder.mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if "TALLYPORT" not in name}
    ours = {
        "TALLYPORT_DATA_DIR": str(folder),
        "TALLYPORT_KAFKA_PORT": "0",
        "TALLYPORT_LEDGER_PORT": "0",
        "TALLYPORT_API_PORT": "0",
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "up"],
        env={**plain, **ours, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Up(process, folder)


@contextlib.contextmanager
def _running(folder: Path) -> Iterator[Up]:
    up = _start(folder)
    try:
        line = up.first_line()
        assert READY.fullmatch(line), line or up.process.communicate(timeout=STOP_TIMEOUT_S)[1]
        yield up
    finally:
        up.process.kill()
        up.process.communicate()
        _wait_until_gone(folder)


def test_ready_work_and_a_clean_stop(tmp_path: Path) -> None:
    with _running(tmp_path / "data") as up:
        running = read_endpoints(up.folder)
        assert running.kafka is not None
        assert running.clickhouse_url is not None
        assert running.api_url is not None
        assert (up.folder / "endpoints.json").stat().st_mode & 0o777 == 0o600
        with urlopen(f"{running.api_url}/health/live", timeout=60) as answer:
            assert answer.status == 200

        second = _start(up.folder)
        _, errors = second.process.communicate(timeout=STOP_TIMEOUT_S)
        assert second.process.returncode == 1
        assert f"already running on {up.folder}" in errors
        assert "Traceback" not in errors

        assert len(up.children()) == 5
        parts = {_command_line(pid).split()[-1]: pid for pid in up.children()}
        stays_on = processor_to_stay_on()
        if stays_on is not None:
            assert os.sched_getaffinity(parts["worker"]) == {stays_on}
        assert os.sched_getaffinity(parts["sink"]) == os.sched_getaffinity(0)
        up.process.send_signal(signal.SIGTERM)
        rest, errors = up.process.communicate(timeout=STOP_TIMEOUT_S)
        assert up.process.returncode == 0, errors
        assert rest == ""
        assert errors == ""
        assert up.children() == set()
        assert not (up.folder / "endpoints.json").exists()


def test_nothing_outlives_a_killed_up_and_the_folder_starts_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with _running(folder) as up:
        assert len(up.children()) == 5
        up.process.send_signal(signal.SIGKILL)
        up.process.communicate()
        _wait_until_gone(folder)
        assert read_endpoints(folder).kafka is None
    with _running(folder) as up:
        assert len(up.children()) == 5


def test_parts_that_die_are_started_again_and_too_often_ends_everything(tmp_path: Path) -> None:
    with _running(tmp_path / "data") as up:
        for part in ("api", "sink", "worker", "worker", "worker"):
            _kill(up, part)
        _wait_for(lambda: len(up.children()) == 5)
        _kill(up, "worker")
        _, errors = up.process.communicate(timeout=STOP_TIMEOUT_S)
        assert up.process.returncode == 1
        assert errors.count("ended by signal 9") == 6
        assert "api ended by signal 9" in errors
        assert "started again (5 of 5)" in errors
        assert "Traceback" not in errors
        assert up.children() == set()


def _kill(up: Up, part: str) -> None:
    """SIGKILL to a part once it runs; returns when that process has gone."""
    _wait_for(lambda: _pid_of(up, part) is not None)
    pid = _pid_of(up, part)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    _wait_for(lambda: _pid_of(up, part) != pid)


def _pid_of(up: Up, part: str) -> int | None:
    found = [pid for pid in up.children() if f"pipeline {part}" in _command_line(pid)]
    return found[0] if found else None


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("part", ["kafka.Kafka", "ledger-server"])
def test_a_server_that_dies_ends_everything_with_its_log(tmp_path: Path, part: str) -> None:
    with _running(tmp_path / "data") as up:
        [pid] = [pid for pid in up.children() if part in _command_line(pid)]
        os.kill(pid, signal.SIGKILL)
        _, errors = up.process.communicate(timeout=STOP_TIMEOUT_S)
        assert up.process.returncode == 1
        assert f"{'kafka' if part == 'kafka.Kafka' else part} ended by signal 9" in errors
        assert "Traceback" not in errors
        assert up.children() == set()


def _refusal(up: Up) -> str:
    """What one that must refuse its settings says."""
    try:
        _, errors = up.process.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        up.process.kill()
        up.process.communicate()
    assert up.process.returncode == 2
    return errors


@pytest.mark.parametrize("variable", ["KAFKA_PORT", "LEDGER_PORT", "API_PORT"])
def test_a_port_in_use_is_named(tmp_path: Path, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = str(taken.getsockname()[1])
        up = _start(tmp_path / "data", **{f"TALLYPORT_{variable}": port})
        errors = _refusal(up)
        assert f"port {port} " in errors
        assert f"TALLYPORT_{variable}" in errors
        _wait_until_gone(up.folder)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("TALLYPORT_API_HOST", "0.0.0.0", "must be a loopback address"),
        ("TALLYPORT_API_KEYS_FILE", "/nope", "no file at /nope"),
    ],
)
def test_what_the_api_would_refuse_is_told_before_anything_starts(
    tmp_path: Path, variable: str, value: str, told: str
) -> None:
    up = _start(tmp_path / "data", **{variable: value})
    errors = _refusal(up)
    assert errors.startswith(f"tallyport: {variable} {told}")
    assert list(up.folder.iterdir()) == []


def test_an_interrupt_while_starting_leaves_nothing(tmp_path: Path) -> None:
    up = _start(tmp_path / "data")
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not up.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        up.process.send_signal(signal.SIGINT)
        printed, errors = up.process.communicate(timeout=STOP_TIMEOUT_S)
    finally:
        up.process.kill()
        up.process.communicate()
    assert up.process.returncode == 0, errors
    assert READY.sub("", printed, count=1).strip() == ""  # it may have been ready by then
    _wait_until_gone(up.folder)


def _wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while left := _pids_naming(folder):
        assert time.monotonic() < deadline, {pid: _command_line(pid) for pid in left}
        time.sleep(0.05)


def _pids_naming(folder: Path) -> set[int]:
    """Processes other than this one that work in or on ``folder``."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            if str(folder).encode() in told:
                found.add(int(entry.name))
    return found


def _command_line(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
