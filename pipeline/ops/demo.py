"""``tallyport demo``: the main job from end to end on this machine, audited at the end."""

import asyncio
import contextlib
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.audit.recount.events import read_event
from pipeline.audit.recount.prices import Prices
from pipeline.audit.report import AuditReport
from pipeline.audit.run import run_audit
from pipeline.core.budgets import OK
from pipeline.core.money import format_nano, parse_nano
from pipeline.core.policies import Policy, policy_from_object
from pipeline.core.scopes import record_key
from pipeline.kafka import client_kwargs
from pipeline.ledger.client import ledger_reader
from pipeline.ledger.filters import UsageFilters
from pipeline.ledger.usage import unpriced_models, usage_report
from pipeline.ops.demo_screen import Screen
from pipeline.ops.deployment import Deployment
from pipeline.ops.state_watcher import Sighting, StateWatcher
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers.kafka import Publisher
from producers.simulator import (
    BURST_LABEL,
    CAPPED_PORT,
    COST_CAPPED_PORT,
    DEFAULT_EVENTS,
    DEFAULT_SEED,
    Expectations,
    Sent,
    expectations,
    simulate,
)

COUNTED_TIMEOUT_S = 60.0
STATE_TIMEOUT_S = 60.0
BURST_PAUSE_S = 0.02
TOKENS_KEY = record_key(f"port:{CAPPED_PORT}", "tokens", "month")
COST_KEY = record_key(f"port:{COST_CAPPED_PORT}", "cost", "month")
COST_ROOM = Decimal(3)
"""What the cost-capped port may still use when the burst begins; the burst costs more."""
SHOWN_ROWS = 12


@dataclass
class Traffic:
    """Where and when the records went: the offset after the last one of each partition."""

    next_offsets: dict[int, int] = field(default_factory=dict[int, int])
    sent_s: dict[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    """By budget and what it had used after an event: when that event was sent."""

    def note(self, partition: int, offset: int) -> None:
        """Takes the place of one acknowledged record."""
        self.next_offsets[partition] = max(self.next_offsets.get(partition, 0), offset + 1)


@dataclass
class DemoResult:
    """What the demo found; ``ok`` is its exit status as a truth."""

    seconds: float
    expected: Expectations
    transitions: list[tuple[Sighting, float | None]]
    latencies_ms: list[float]
    audit: AuditReport

    @property
    def ok(self) -> bool:
        """The audit agrees, the budgets were warned and blocked, and the counts are as expected."""
        return self.audit.ok and not self.problems

    @property
    def problems(self) -> list[str]:
        """What differs from what the simulator was to cause, in words."""
        found: list[str] = []
        for key in (TOKENS_KEY, COST_KEY):
            statuses = [seen.status for seen, _ in self.transitions if seen.key == key]
            if statuses[-1:] != ["hard-cap-exceeded"] or "soft-cap-exceeded" not in statuses:
                found.append(f"{key} went through {statuses}, not over both of its caps")
        fates = self.audit.fates
        if self.audit.rejected_by_reason != self.expected.rejected:
            found.append(f"rejected: {self.expected.rejected} expected")
        for name, number in (
            ("accepted", self.expected.accepted),
            ("rejected", sum(self.expected.rejected.values())),
            ("duplicates", self.expected.duplicates),
            ("forwarded", self.expected.forwarded),
        ):
            if fates.get(name) != number:
                found.append(f"{name}: {number} expected, {fates.get(name)} found")
        return found

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {
            "ok": self.ok,
            "seconds": round(self.seconds, 1),
            "problems": self.problems,
            "transitions": [
                {"budget": seen.key, "status": seen.status, "used": seen.used, "ms": ms}
                for seen, ms in self.transitions
            ],
            "state_latency_ms": {
                "p50": _percentile(self.latencies_ms, 50),
                "p99": _percentile(self.latencies_ms, 99),
            },
            "audit": self.audit.to_json(),
        }


def run_demo(
    settings: Settings,
    stay: bool = False,
    *,
    events: int = DEFAULT_EVENTS,
    seed: int = DEFAULT_SEED,
    json_wanted: bool = False,
) -> int:
    """Runs the demo on free ports in a data folder of its own; the exit status.

    0 only if the audit agrees and everything that the simulator provokes has happened. With
    ``stay`` it goes on running until Ctrl-C. Raises ``TallyportError`` when a part fails;
    nothing is left behind then either.
    """
    folder = Path(tempfile.mkdtemp(prefix="tallyport-demo-"))
    try:
        own = settings.on_its_own(folder).replaced(partitions=None, replication=None)
        return asyncio.run(_run(own, stay, events, seed, json_wanted))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(settings: Settings, stay: bool, events: int, seed: int, json_wanted: bool) -> int:
    task = asyncio.current_task()
    if task is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    screen = Screen(quiet=json_wanted)
    screen.step("starting Kafka, ClickHouse, worker, sink and API on free ports")
    async with Deployment(settings) as deployment:
        screen.step(deployment.ready_line)
        showing = asyncio.create_task(_show(deployment.settings, screen, events, seed))
        guard = asyncio.create_task(deployment.wait())
        try:
            await asyncio.wait([showing, guard], return_when=asyncio.FIRST_COMPLETED)
            if guard.done():
                await guard
            result = await showing
            if json_wanted:
                print(json.dumps(result.to_json()), flush=True)
            if stay:
                screen.step(f"running until Ctrl-C; the page: {deployment.api_url}/")
                with contextlib.suppress(asyncio.CancelledError):
                    await guard
        finally:
            for child in (showing, guard):
                child.cancel()
            await asyncio.wait([showing, guard])
    screen.step("everything stopped and removed")
    return 0 if result.ok else 1


async def _show(settings: Settings, screen: Screen, events: int, seed: int) -> DemoResult:
    client = client_kwargs(settings)
    topics = Topics(settings.topic_prefix)
    end = datetime.now(UTC)
    sent = simulate(seed, events, end, partitions=settings.partition_count)
    expected = expectations(sent, end)
    policies = _policies(expected)
    traffic = Traffic()
    async with StateWatcher(client, topics.state) as watcher:
        await write_policies(client, topics, "demo", policies)
        await watcher.until(
            "the policies",
            lambda: all(policy.key in watcher.states for policy in policies),
            STATE_TIMEOUT_S,
        )
        screen.step(f"{len(policies)} budgets set; a day of usage, {len(sent):,} records")
        async with Publisher(client, topics.events) as publisher:
            day = [record for record in sent if record.label != BURST_LABEL]
            await _send_day(publisher, day, traffic)
            await watcher.until(
                "the day's events", lambda: watcher.contains(traffic.next_offsets),
                COUNTED_TIMEOUT_S,
            )  # fmt: skip
            screen.step(f"counted {len(day):,} records; {len(watcher.states):,} budget states")
            await write_policies(client, topics, "demo", [_cost_policy(watcher)])
            await watcher.until("the changed policy", lambda: _is_capped(watcher), STATE_TIMEOUT_S)
            screen.step(f"a burst on {CAPPED_PORT} and {COST_CAPPED_PORT}")
            burst = [record for record in sent if record.label == BURST_LABEL]
            await _send_burst(publisher, burst, traffic, watcher, settings.currency)
        await watcher.until(
            "the burst", lambda: watcher.contains(traffic.next_offsets), STATE_TIMEOUT_S
        )
        transitions, latencies_ms = _arrivals(watcher, traffic)
    _show_states(screen, transitions, latencies_ms)
    screen.step("auditing: a second count by code that shares nothing with the worker's")
    audit = await run_audit(settings)
    await asyncio.to_thread(_show_ledger, settings, screen)
    _show_fates(screen, audit)
    for line in audit.lines():
        screen.line(f"  {line}")
    result = DemoResult(screen.elapsed_s, expected, transitions, latencies_ms, audit)
    for problem in result.problems:
        screen.line(f"  problem: {problem}")
    screen.step("the audit agrees to the last nano" if result.ok else "the demo FAILED")
    return result


# -- budgets ---------------------------------------------------------------------------------------


def _policies(expected: Expectations) -> list[Policy]:
    bodies: list[dict[str, Any]] = [
        {
            "scope": f"port:{CAPPED_PORT}",
            "unit": "tokens",
            "period": "month",
            "soft_cap": expected.soft_cap,
            "hard_cap": expected.hard_cap,
        },
        {"scope": f"port:{COST_CAPPED_PORT}", "unit": "cost", "period": "month"},
        {"scope": "port:*", "unit": "tokens", "period": "rolling-30d", "hard_cap": 100_000_000},
        {"scope": "port:quay|north:2", "unit": "tokens", "period": "day", "soft_cap": 1_000},
        {"scope": "user:*", "unit": "cost", "period": "day", "hard_cap": "25"},
        {"scope": "org:*", "unit": "tokens", "period": "week", "soft_cap": 20_000_000},
        {"scope": "group:team-lab", "unit": "cost", "period": "rolling-30d", "enabled": False},
        {"scope": "all", "unit": "cost", "period": "month", "hard_cap": "5000"},
    ]
    return [policy_from_object(body) for body in bodies]


def _cost_policy(watcher: StateWatcher) -> Policy:
    """Caps just above what the port has used, which depends on the hour of the day."""
    used = Decimal(watcher.states[COST_KEY]["used"])
    body = {
        "scope": f"port:{COST_CAPPED_PORT}",
        "unit": "cost",
        "period": "month",
        "soft_cap": f"{used + COST_ROOM / 2:f}",
        "hard_cap": f"{used + COST_ROOM:f}",
    }
    return policy_from_object(body)


def _is_capped(watcher: StateWatcher) -> bool:
    return watcher.states[COST_KEY]["hard_cap"] is not None


# -- traffic ---------------------------------------------------------------------------------------


async def _send_day(publisher: Publisher, day: Sequence[Sent], traffic: Traffic) -> None:
    """As fast as it goes, in order."""
    futures = [
        await publisher.send(record.value, record.key, record.headers, record.partition)
        for record in day
    ]
    for placed in await asyncio.gather(*futures):
        traffic.note(placed.partition, placed.offset)


async def _send_burst(
    publisher: Publisher,
    burst: Sequence[Sent],
    traffic: Traffic,
    watcher: StateWatcher,
    currency: str,
) -> None:
    """One event after the other, as a service in trouble sends them."""
    prices = Prices([], currency)
    tokens = int(watcher.states[TOKENS_KEY]["used"])
    cost_nano = parse_nano(watcher.states[COST_KEY]["used"])
    futures: list[asyncio.Future[Any]] = []
    for record in burst:
        event = read_event(record.value)
        if event.port_id == CAPPED_PORT:
            tokens += event.counts["input_tokens"] + event.counts["output_tokens"]
            place = TOKENS_KEY, str(tokens)
        else:
            cost_nano += prices.price(event).cost_nano or 0
            place = COST_KEY, format_nano(cost_nano)
        traffic.sent_s[place] = time.monotonic()
        futures.append(await publisher.send(record.value, record.key))
        await _until_warned(watcher, *place)
        await asyncio.sleep(BURST_PAUSE_S)
    for placed in await asyncio.gather(*futures):
        traffic.note(placed.partition, placed.offset)


async def _until_warned(watcher: StateWatcher, key: str, used: str) -> None:
    """Whoever goes over the soft line waits until that is seen: a worker that is kept from working
    meanwhile would publish a single state, beyond both lines."""
    if Decimal(used) > Decimal(str(watcher.states[key]["soft_cap"])):
        await watcher.until(
            "the soft line", lambda: watcher.states[key]["status"] != OK, STATE_TIMEOUT_S
        )


def _arrivals(
    watcher: StateWatcher, traffic: Traffic
) -> tuple[list[tuple[Sighting, float | None]], list[float]]:
    """Changes of status, and how long each state of the two capped ports took, in ms.

    A state is matched to the event that brought ``used`` to its value.
    """
    transitions: list[tuple[Sighting, float | None]] = []
    latencies_ms: list[float] = []
    for seen in watcher.sightings:
        sent_s = traffic.sent_s.get((seen.key, seen.used))
        took_ms = None if sent_s is None else (seen.seen_s - sent_s) * 1000
        if took_ms is not None:
            latencies_ms.append(took_ms)
        if seen.former_status and seen.status != seen.former_status:
            transitions.append((seen, took_ms))
    return transitions, latencies_ms


# -- results ---------------------------------------------------------------------------------------


def _show_states(
    screen: Screen, transitions: Sequence[tuple[Sighting, float | None]], latencies_ms: list[float]
) -> None:
    rows = [
        (seen.key, seen.former_status, seen.status, seen.used, "" if ms is None else f"{ms:.0f}")
        for seen, ms in transitions
    ]
    columns = ("budget", "was", "is", "used", "ms after its event was sent")
    screen.table("Changes of status on budget.state", columns, rows)
    if latencies_ms:
        screen.line(
            f"event sent -> state at a subscriber: p50 {_percentile(latencies_ms, 50):.0f} ms, "
            f"p99 {_percentile(latencies_ms, 99):.0f} ms over {len(latencies_ms)} states"
        )


def _show_ledger(settings: Settings, screen: Screen) -> None:
    with ledger_reader(settings) as client:
        for dimension in ("port", "user", "model"):
            rows = usage_report(client, UsageFilters(), [dimension])
            columns = (dimension, "requests", "total_tokens", "cost", "unpriced_requests")
            title = f"Usage by {dimension}" + (
                f" (the first {SHOWN_ROWS} of {len(rows)})" if len(rows) > SHOWN_ROWS else ""
            )
            screen.table(title, columns, [[r[c] for c in columns] for r in rows[:SHOWN_ROWS]])
        lacking = unpriced_models(client, UsageFilters())
        columns = ("provider", "model", "unpriced_requests")
        screen.table("Models without a price", columns, [[r[c] for c in columns] for r in lacking])


def _show_fates(screen: Screen, audit: AuditReport) -> None:
    fates = audit.fates
    rows = [
        (name, fates.get(name, 0)) for name in ("accepted", "rejected", "duplicates", "forwarded")
    ]
    screen.table("Where the records ended", ("fate", "records"), rows)
    reasons = sorted(audit.rejected_by_reason.items())
    screen.table("Rejected, by reason", ("reason", "records"), reasons)


def _percentile(values: Sequence[float], percent: int) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)
