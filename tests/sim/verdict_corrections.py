"""What must be true of corrections once all has settled: entries, refusals, and their one fate."""

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from pipeline.core.resolved import Resolved, decode_resolved
from tests.sim import oracle
from tests.sim.deployment import Deployment
from tests.sim.oracle_corrections import (
    COUNTERS,
    Corrected,
    CorrectionJudge,
    Entry,
    Place,
    Sent,
    Trace,
)
from tests.sim.worker import PRICE_LEAD_S, TOPICS

DAY_US = oracle.DAY_MS * 1000


def judge_corrections(deployment: Deployment, found: oracle.Judgement) -> Corrected:
    """What each correction of the run must come to."""
    rates = deployment.records(TOPICS.rates, history=True)
    sent = _sent(deployment)
    judge = CorrectionJudge(found, rates, PRICE_LEAD_S * 1000, sent, _traces(deployment))
    for record in deployment.records(TOPICS.corrections, history=True):
        judge.feed(record)
    return judge.corrected


def resolved_records(deployment: Deployment) -> list[tuple[int, Resolved]]:
    """What stands on the log of resolved corrections, each with its partition, in order."""
    return [
        (record.partition, decode_resolved(record.value))
        for record in deployment.records(TOPICS.resolved, history=True)
    ]


def _sent(deployment: Deployment) -> Sent:
    topics = deployment.world.log.topics

    def times_s(topic: str) -> dict[Place, float]:
        return {
            (entry.partition, entry.offset): entry.appended_s
            for partition in topics[topic].values()
            for entry in partition.record_history()
        }

    events_s = times_s(TOPICS.events)
    for record in deployment.records(TOPICS.events, history=True):
        origin = oracle.forwarded_from(record)
        if origin is not None:
            events_s[record.partition, record.offset] = events_s[origin[:2]]
    rates_s = {offset: at_s for (_, offset), at_s in times_s(TOPICS.rates).items()}
    return Sent(events_s, times_s(TOPICS.corrections), rates_s)


def _traces(deployment: Deployment) -> dict[Place, Trace]:
    traces: dict[Place, Trace] = {}
    for _, resolved in resolved_records(deployment):
        day = resolved.event.occurred_at_us // DAY_US
        traces[resolved.place] = Trace("accepted", day, resolved.rates_next_offset)
    for place, reason, _ in refusals(deployment):
        traces[place] = Trace(reason)
    return traces


def refusals(deployment: Deployment) -> list[tuple[Place, str, oracle.Record]]:
    """Every rejected correction: its place, the reason, and the record that says so."""
    found: list[tuple[Place, str, oracle.Record]] = []
    for record in deployment.records(TOPICS.rejected, history=True):
        headers = dict(record.headers)
        if headers["source-topic"] == TOPICS.corrections.encode():
            place = int(headers["source-partition"]), int(headers["source-offset"])
            found.append((place, headers["reason"].decode(), record))
    return found


def compare_corrections(deployment: Deployment, corrected: Corrected) -> list[str]:
    """Every difference, in sentences."""
    records = deployment.records(TOPICS.corrections, history=True)
    inputs = {(r.partition, r.offset): r for r in records}
    refused, resolved = refusals(deployment), resolved_records(deployment)
    seen = Counter([place for place, _, _ in refused] + [one.place for _, one in resolved])
    problems = [f"correction {place} ends {n} times" for place, n in seen.items() if n > 1]
    fates = {
        **dict.fromkeys(inputs, ""),
        **{place: reason for place, reason, _ in refused},
        **{one.place: "accepted" for _, one in resolved},
    }
    for place, expected in corrected.fates().items():
        if fates.pop(place, None) != expected:
            problems.append(f"correction {place} ended otherwise than as {expected or 'duplicate'}")
    problems += [f"the oracle knows no correction {place}" for place in fates]
    for place, _, record in refused:
        original = inputs.get(place)
        if original is None or (original.key, original.value) != (record.key, record.value):
            problems.append(f"the rejected correction {place} is not the original")
    return problems + _order(deployment, resolved) + _entries(deployment, corrected)


def _order(deployment: Deployment, resolved: Sequence[tuple[int, Resolved]]) -> list[str]:
    """They stand at the homes of their ports, and are numbered without a hole."""
    problems: list[str] = []
    numbers: Counter[int] = Counter()
    for partition, one in resolved:
        numbers[partition] += 1
        if one.number != numbers[partition]:
            problems.append(f"resolved correction {numbers[partition]} is called {one.number}")
        if partition != oracle.home_of(one.event.port_id, deployment.partitions):
            problems.append(f"correction {one.place} stands on partition {partition}")
    return problems


def _entries(deployment: Deployment, corrected: Corrected) -> list[str]:
    """The ledger's entries; each of a day, port, event and number stands once."""
    rows = [row for row in deployment.ledger.final("ledger_entries") if row["entry_no"] > 0]
    found = {(row["source_partition"], row["source_offset"]): _row(row) for row in rows}
    expected = {place: _expected(one) for place, one in corrected.entries.items()}
    problems = [
        f"entry of correction {place}: {found.get(place)}, expected {expected.get(place)}"
        for place in {**found, **expected}
        if found.get(place) != expected.get(place)
    ]
    if len(found) != len(rows):
        problems.append(f"{len(rows)} entries name {len(found)} corrections")
    return problems


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["source_topic"],
        row["port_id"],
        row["event_id"],
        row["user_id"],
        row["organization_id"],
        row["group_id"],
        row["billing_scope"],
        (row["occurred_at"] - oracle.EPOCH) // timedelta(microseconds=1),
        (row["recorded_at"] - oracle.EPOCH) // timedelta(milliseconds=1),
        row["correction_id"],
        row["correction_reason"],
        row["entry_no"],
        row["requests"],
        tuple(row[name] for name in COUNTERS),
        row["total_tokens"],
        row["cost_nano"],
        row["unpriced_requests"],
        row["price_status"],
        row["rate_id"],
        row["estimated"],
    )


def _expected(one: Entry) -> tuple[Any, ...]:
    event = one.event
    return (
        TOPICS.corrections,
        event.port_id,
        event.event_id,
        event.user_id,
        event.organization_id,
        event.group_id,
        event.billing_scope,
        event.occurred_at_us,
        one.recorded_at_ms,
        one.correction_id,
        one.reason,
        one.entry_no,
        one.requests,
        one.counts,
        one.tokens,
        one.cost_nano,
        one.unpriced,
        one.status,
        one.rate_id,
        one.is_estimated,
    )
