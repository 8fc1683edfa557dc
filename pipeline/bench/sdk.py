"""``tallyport bench sdk``: what the SDK costs a service, and how soon a budget stops it.

``import``, ``check`` and ``record`` are measured in this process; the way round (SDK → Kafka →
worker → Kafka → gate) between two processes, while a third one sends the load.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from pipeline.bench.gate import PROBE_CAP
from pipeline.bench.load import LoadProcess, Sending
from pipeline.bench.times import Times
from pipeline.core.budgets import (
    Heartbeat,
    State,
    heartbeat_json,
    heartbeat_key,
    state_json,
    state_of,
)
from pipeline.core.errors import TallyportError
from pipeline.core.policies import Policy, policy_from_object
from pipeline.core.windows import window
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment, child_environ
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers import Meter
from producers.gate import Gate
from producers.settings import MeterSettings
from producers.testing import FakeDeployment

IDS = 2_500
CHECKS = 100_000
RECORDS = 20_000
UPDATES_EVERY = 50
PROBE_EVERY_S = 0.1
WARM_UP_S = 5.0
LOAD_INTERVAL_MS = 5
SETTLE_S = 20.0
IMPORTS = 7
Say = Callable[[str], None]


async def run(settings: Settings, rate: int, seconds: int, say: Say) -> dict[str, object]:
    """All figures; raises ``TallyportError`` when the deployment fails."""
    say("import")
    found: dict[str, object] = {"import_ms": import_ms()}
    say("check, with 10,000 policies mirrored")
    for name, is_changing in (("check", False), ("check_while_states_change", True)):
        first, later = checks(is_changing=is_changing)
        found["first_check_of_ids"] = first.to_json("us", 1e6)
        found[name] = later.to_json("us", 1e6)
    say("record")
    found["record"] = records().to_json("us", 1e6)
    say(f"record to refusal in another process, at {rate} events/s")
    async with Deployment(settings, parts=("worker",)) as deployment:
        found["refusal"] = (await refusals(deployment, rate, seconds)).to_json("ms", 1e3)
    return found


def import_ms() -> float:
    """The median time that a fresh interpreter takes to import a meter."""
    code = (
        "import time; t = time.perf_counter()\nfrom producers import Meter\n"
        "print(time.perf_counter() - t)"
    )
    taken: list[float] = []
    for _ in range(IMPORTS):
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        taken.append(float(run.stdout))
    return round(sorted(taken)[len(taken) // 2] * 1000, 1)


def checks(*, is_changing: bool) -> tuple[Times, Times]:
    """Asks 4 policies of 10,000 mirrored ones: of each id for the first time, then again and again;
    with ``is_changing`` one of them changed shortly before every ``UPDATES_EVERY`` checks."""
    gate = Gate()
    now_ms = time.time_ns() // 1_000_000
    states = [
        _state(scope, now_ms)
        for number in range(IDS)
        for scope in (f"port:p{number}", f"user:u{number}", f"org:o{number}", f"group:g{number}")
    ]
    gate.begin(4)
    for number, state in enumerate(states):
        gate.take(number % 4, state.key, state_json(state, 1, now_ms))
    gate.caught_up()
    taken: list[float] = []
    clock = time.perf_counter
    for turn in range(IDS + CHECKS):
        number = turn * 7919 % IDS
        ids = (f"p{number}", f"u{number}", f"o{number}", f"g{number}")
        if turn % 10_000 == 0:
            _beat(gate, now_ms + turn)
        if is_changing and turn >= IDS and turn % UPDATES_EVERY == 0:
            state = states[number * 4 + turn % 4]
            gate.take((number * 4 + turn) % 4, state.key, state_json(state, turn + 2, now_ms))
        start_s = clock()
        gate.check(ids, 100, 5_000)
        taken.append(clock() - start_s)
    return Times(sorted(taken[:IDS])), Times(sorted(taken[IDS:]))


def records() -> Times:
    """What ``Meter.record`` takes of the caller's time, the spool on disk included."""
    deployment = FakeDeployment()
    taken: list[float] = []
    clock = time.perf_counter
    with Meter(MeterSettings(), lambda: deployment) as meter:
        for number in range(RECORDS):
            start_s = clock()
            meter.record(
                port_id=f"p{number % 200}",
                user_id=f"u{number % 5_000}",
                feature="ocr",
                provider="openai",
                model="gpt-5",
                input_tokens=1_200,
                output_tokens=85,
            )
            taken.append(clock() - start_s)
            if number % 100 == 0:
                time.sleep(0.002)  # a service does something else, too
    return Times(sorted(taken))


async def refusals(deployment: Deployment, rate: int, seconds: int) -> Times:
    """From ``record`` in this process to the first refusal of its port in another one."""
    settings = deployment.settings
    policy = {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": PROBE_CAP}
    client, topics = client_kwargs(settings), Topics(settings.topic_prefix)
    await write_policies(client, topics, "bench", [policy_from_object(policy)])
    environ = child_environ(settings, os.environ)
    first = time.time_ns() % 10**9
    probes = int((seconds - WARM_UP_S) / PROBE_EVERY_S)
    gate = await _gate(environ, first, probes, seconds + SETTLE_S)
    sending = Sending(rate, seconds, interval_ms=LOAD_INTERVAL_MS)
    load = await LoadProcess.start(settings, sending)
    try:
        sent_s = await _probe(settings, gate, first, probes)
        out, _ = await asyncio.wait_for(gate.communicate(), seconds + SETTLE_S + 30)
    finally:
        if gate.returncode is None:
            gate.kill()
        await gate.wait()
        await load.stop()
    if gate.returncode:
        raise TallyportError("the process that asks has failed")
    refused = {int(number): at_s for number, at_s in json.loads(out.splitlines()[-1]).items()}
    if len(refused) < probes:
        raise TallyportError(f"{probes - len(refused)} of {probes} probes were never refused")
    return Times(sorted(refused[number] - sent_s[number] for number in sent_s))


async def _probe(
    settings: Settings, gate: asyncio.subprocess.Process, first: int, probes: int
) -> dict[int, float]:
    """Records one probe after the other; when (seconds since 1970) each was."""
    environ = {
        "TALLYPORT_KAFKA_BOOTSTRAP": settings.kafka_bootstrap or "",
        "TALLYPORT_TOPIC_PREFIX": settings.topic_prefix,
    }
    sent_s: dict[int, float] = {}
    with Meter.from_env(environ) as meter:
        if gate.stdout is None or not await asyncio.wait_for(gate.stdout.readline(), 60):
            raise TallyportError("the process that asks did not become ready")
        await asyncio.sleep(WARM_UP_S)
        for number in range(first, first + probes):
            sent_s[number] = time.time()
            meter.record(
                port_id=f"probe-{number}", provider="openai", model="gpt-5", input_tokens=PROBE_CAP
            )
            await asyncio.sleep(PROBE_EVERY_S)
    return sent_s


async def _gate(environ: dict[str, str], *arguments: float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pipeline.bench.gate",
        *(str(argument) for argument in arguments),
        env=environ,
        stdout=asyncio.subprocess.PIPE,
    )


def _state(scope: str, now_ms: int) -> State:
    policy = Policy(scope, "tokens", "month", hard_cap=10**9)
    return state_of(policy, scope, window("month", now_ms), 5, 0, now_ms)


def _beat(gate: Gate, as_of_ms: int) -> None:
    for partition in range(4):
        beat = heartbeat_json(Heartbeat(partition, as_of_ms, {}))
        gate.take(partition, heartbeat_key(partition), beat)
