"""The SDK over the real API and straight to Kafka, with a real worker that counts."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment, child_environ
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers import BudgetExceeded, Meter
from tests.producers.capped_service import Report
from tests.producers.deployed import deployed, environ_of, events_of
from tests.producers.sides import until

ROOT = Path(__file__).parent.parent.parent
CAP, ESTIMATE = 1_000, 100
PROCESSES, IN_FLIGHT, SHARED_ESTIMATE, SHARED_CAP = 3, 4, 50, 40_000
WAIT_S = 120.0
CAPPED = ("hard-cap-exceeded", "estimated-exceeds-cap")
"""Why calls end; a worker that is kept from counting for seconds makes states stale, and those
calls are refused here (``on_stale``) until it goes on."""


@pytest.fixture(scope="module")
def deployment(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(kafka, tmp_path_factory.mktemp("deployment")) as running:
        yield running


@pytest.fixture(params=["http", "kafka"])
def environ(request: pytest.FixtureRequest, deployment: Deployment, tmp_path: Path) -> Any:
    """The settings of a service."""
    return environ_of(deployment, request.param, tmp_path)


def set_budget(deployment: Deployment, scope: str, hard_cap: int, **changes: Any) -> None:
    policy = {
        "scope": scope, "unit": "tokens", "period": "month", "hard_cap": hard_cap,
        "on_stale": "deny",
    }  # fmt: skip
    settings = deployment.settings
    asyncio.run(
        write_policies(
            client_kwargs(settings),
            Topics(settings.topic_prefix),
            "test",
            [policy_from_object({**policy, **changes})],
        )
    )


def calls_until_refused(meter: Meter, port_id: str) -> int:
    calls = 0
    asked: dict[str, Any] = {"port_id": port_id, "provider": "acme", "model": "m"}
    while True:
        held = meter.stats.held
        try:
            with meter.guard(**asked, estimated_tokens=ESTIMATE) as call:
                call.record(input_tokens=ESTIMATE)
                calls += 1
        except BudgetExceeded as refused:
            # What is held may be in the states as well, and is counted twice until a heartbeat.
            if refused.reason in CAPPED and not held:
                return calls
            time.sleep(0.02)


def test_capped_over_http_and_seen_over_kafka(deployment: Deployment, tmp_path: Path) -> None:
    set_budget(deployment, "port:*", CAP)
    with (
        Meter.from_env(environ_of(deployment, "http", tmp_path)) as one,
        Meter.from_env(environ_of(deployment, "kafka", tmp_path)) as other,
    ):
        assert one.wait_ready(WAIT_S)
        assert other.wait_ready(WAIT_S)
        until(lambda: one.check(port_id="a").reason == "ok", "the policy over HTTP")
        until(lambda: other.check(port_id="a").reason == "ok", "the policy over Kafka")
        # One process with upper bounds goes over nothing.
        assert calls_until_refused(one, "a") == CAP // ESTIMATE
        assert one.flush(WAIT_S)
        until(lambda: other.check(port_id="a").used == CAP, "the other process to see it")
        until(lambda: other.check(port_id="a").reason == "hard-cap-exceeded", "the verdict")
        until(lambda: one.stats.held == 0, "heartbeats to contain every call")
        assert one.check(port_id="a").used == CAP


def test_one_process_with_upper_bounds_never_goes_over(
    deployment: Deployment, environ: dict[str, str]
) -> None:
    """Eight threads, uses below the estimates, real heartbeats: not one token over the cap, and
    none left that an estimate fits into once all calls are contained."""
    port_id = f"single-{uuid.uuid4().hex[:8]}"
    set_budget(deployment, f"port:{port_id}", CAP * 10)

    def work() -> None:
        asked: dict[str, Any] = {"port_id": port_id, "provider": "acme", "model": "m"}
        while True:
            try:
                with meter.guard(**asked, estimated_tokens=ESTIMATE) as call:
                    time.sleep(random.uniform(0, 0.01))
                    call.record(input_tokens=random.randint(1, ESTIMATE))
            except BudgetExceeded:
                held = meter.stats.held
                verdict = meter.check(port_id=port_id, estimated_tokens=ESTIMATE)
                if not held and verdict.reason in CAPPED:
                    return
                time.sleep(0.02)  # refused too early, perhaps: until a heartbeat has passed

    with Meter.from_env(environ) as meter:
        assert meter.wait_ready(WAIT_S)
        until(lambda: meter.check(port_id=port_id).hard_cap == CAP * 10, "the policy")
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert meter.flush(WAIT_S)
        assert not any(thread.is_alive() for thread in threads)
    used = sum(event["input_tokens"] for event in events_of(deployment, port_id))
    assert CAP * 10 - ESTIMATE < used <= CAP * 10


def test_processes_overshoot_within_the_formula(deployment: Deployment, tmp_path: Path) -> None:
    """overshoot ≤ (P - 1) · k · e + r · L + u, with what r and L really were; u is 0, as every
    call uses its estimate. Nothing that fits is left once all calls are contained."""
    port_id = "shared"
    set_budget(deployment, f"port:{port_id}", SHARED_CAP)
    environ = environ_of(deployment, "kafka", tmp_path)
    reports = asyncio.run(run_services(deployment.settings, environ, port_id))
    written = [event["event_id"] for event in events_of(deployment, port_id)]
    calls = {call[0]: call for report in reports for call in report.calls}
    assert sorted(written) == sorted(calls), "every call was recorded, and none twice"
    recorded_s = [calls[event_id][2] for event_id in written]
    of_others = 0
    for report in reports:
        assert report.calls
        assert len(report.refused) == IN_FLIGHT
        assert set(report.refused) <= set(CAPPED)
        own = {call[0] for call in report.calls}
        others = [calls[event_id][2] for event_id in written if event_id not in own]
        most = most_within(sorted(others), longest_lag_s(report, recorded_s))
        of_others = max(of_others, most * SHARED_ESTIMATE)
    used = len(written) * SHARED_ESTIMATE
    in_flight = (PROCESSES - 1) * IN_FLIGHT * SHARED_ESTIMATE
    assert SHARED_CAP - SHARED_ESTIMATE < used <= SHARED_CAP + in_flight + of_others


async def run_services(settings: Settings, environ: dict[str, str], port_id: str) -> list[Report]:
    """Several services that start their calls together, to their ends."""
    whole = {**child_environ(settings, os.environ), **environ, "PYTHONPATH": str(ROOT)}
    arguments = (port_id, str(SHARED_CAP), str(IN_FLIGHT), str(SHARED_ESTIMATE))
    services = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.producers.capped_service", *arguments),
            env=whole,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=2**26,
        )
        for _ in range(PROCESSES)
    ]
    try:
        async with asyncio.timeout(WAIT_S):
            for service in services:
                assert service.stdout is not None
                assert await service.stdout.readline() == b"ready\n"
            told = await asyncio.gather(*(service.communicate(b"\n") for service in services))
    finally:
        for service in services:
            if service.returncode is None:
                service.kill()
            await service.wait()
    return [Report(**json.loads(out)) for out, _ in told]


def longest_lag_s(report: Report, recorded_s: list[float]) -> float:
    """The greatest age that a record reached before this process's states contained it.

    ``recorded_s`` are all records' times in the order of the log: the port has one partition, so
    what states say was used is a beginning of it.
    """
    longest_s = 0.0
    for at_s, used in report.seen:
        unseen = recorded_s[used // SHARED_ESTIMATE :]
        longest_s = max([longest_s, *(at_s - since_s for since_s in unseen)])
    return longest_s


def most_within(times_s: list[float], span_s: float) -> int:
    """The most of these sorted times that any ``span_s`` seconds hold."""
    most = first = 0
    for last, at_s in enumerate(times_s):
        while times_s[first] < at_s - span_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def get(url: str) -> int:
    """The status of the answer, 0 while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_the_example_is_capped_while_it_runs(
    deployment: Deployment, environ: dict[str, str]
) -> None:
    """Ten calls of 100 tokens fit, the next is refused, and with a higher cap they go on."""
    port_id = f"example-{uuid.uuid4().hex[:8]}"
    set_budget(deployment, f"port:{port_id}", 0)
    port = free_port()
    command = ["-m", "uvicorn", "examples.service:app", "--port", str(port)]
    whole = {**child_environ(deployment.settings, os.environ), **environ, "PYTHONPATH": str(ROOT)}
    with (deployment.settings.data_dir / "example.log").open("ab") as log:
        service = subprocess.Popen([sys.executable, *command], env=whole, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/summary/{port_id}?text=hello"
    try:
        until(lambda: get(url.replace(port_id, "other")) == 200, "the service to run")
        # Until the service knows its budget it lets calls through.
        first: list[int] = []
        until(lambda: first.append(get(url)) or first[-1] == 402, "the budget to be known")
        used = first.count(200) * ESTIMATE
        for cap in (used + CAP, used + 2 * CAP):
            set_budget(deployment, f"port:{port_id}", cap)
            for number in range(10):
                until(lambda: get(url) == 200, f"call {number} to fit into {cap}")
            assert [get(url) for _ in range(5)] == [402] * 5
        # What a call used is on disk when it returns, and sent when Kafka takes it.
        until(lambda: used_of(deployment, port_id) >= cap, "the events to arrive")
    finally:
        service.terminate()
        assert service.wait(WAIT_S) in (0, -signal.SIGTERM)
    assert used_of(deployment, port_id) == cap


def used_of(deployment: Deployment, port_id: str) -> int:
    """The tokens of a port's events in Kafka."""
    return sum(
        event["input_tokens"] + event["output_tokens"] for event in events_of(deployment, port_id)
    )


def ask(deployment: Deployment, **asked: Any) -> dict[str, Any]:
    """What ``POST /v1/check`` answers."""
    request = urllib.request.Request(
        f"{deployment.api_url}/v1/check",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_a_worker_that_stands_still_makes_states_stale_everywhere(
    deployment: Deployment, tmp_path: Path
) -> None:
    """Of three budgets one denies and one allows when stale, and one is used up; both transports
    and ``/v1/check`` answer alike, first live and then stale, and again when counting goes on."""
    for scope, on_stale in (("user:denied", "deny"), ("user:allowed", "allow")):
        set_budget(deployment, scope, CAP, on_stale=on_stale)
    set_budget(deployment, "user:used-up", 0, on_stale="allow")
    users = ("denied", "allowed", "used-up")
    worker = deployment.children["worker"]
    with (
        Meter.from_env(environ_of(deployment, "http", tmp_path)) as one,
        Meter.from_env(environ_of(deployment, "kafka", tmp_path)) as other,
    ):

        def answers() -> list[list[tuple[bool, str, str]]]:
            found = [[meter.check(user_id=user) for user in users] for meter in (one, other)]
            asked = [ask(deployment, user_id=user) for user in users]
            return [
                *([(v.allowed, v.reason, v.freshness) for v in verdicts] for verdicts in found),
                [(v["allowed"], v["reason"], v["freshness"]) for v in asked],
            ]

        assert one.wait_ready(WAIT_S)
        assert other.wait_ready(WAIT_S)
        live = [(True, "ok", "LIVE"), (True, "ok", "LIVE"), (False, "hard-cap-exceeded", "LIVE")]
        stale = [(False, "stale", "STALE"), (True, "stale", "STALE"), (True, "stale", "STALE")]
        until(lambda: answers() == [live] * 3, "all to be live")
        worker.send(signal.SIGSTOP)
        try:
            until(lambda: answers() == [stale] * 3, "all to be stale")
        finally:
            worker.send(signal.SIGCONT)
        until(lambda: answers() == [live] * 3, "all to be live again")
