"""What must be true once input has stopped: tables, states, ledger and fates against the oracle."""

from collections import Counter, defaultdict
from datetime import timedelta
from typing import Any

from pipeline.stream.tables import TableView, read_tables
from tests.sim import oracle
from tests.sim.deployment import Deployment
from tests.sim.oracle_corrections import Corrected
from tests.sim.verdict_corrections import compare_corrections
from tests.sim.worker import TOPICS

SHOWN = 4


def compare(
    deployment: Deployment,
    found: oracle.Judgement,
    corrected: Corrected,
    tables: dict[int, TableView],
) -> list[str]:
    """Every difference, in sentences; empty when all of them agree."""
    problems = list(found.undecided)
    newest_ms: dict[int, int] = defaultdict(int)
    for record in deployment.records(TOPICS.events, history=True):
        newest_ms[record.partition] = max(newest_ms[record.partition], record.timestamp_ms)
    problems += compare_tables(found, corrected, tables, newest_ms)
    cells = oracle.cells_of([*found.accepted.values(), *corrected.entries.values()])
    problems += compare_states(deployment, cells)
    problems += compare_ledger(deployment, found, corrected)
    problems += compare_fates(deployment, found)
    problems += compare_corrections(deployment, corrected)
    return problems


async def read_all_tables(deployment: Deployment) -> dict[int, TableView]:
    """The cells of every source partition, as recovery would read them."""
    client = {"simulation": deployment.world}
    return await read_tables(client, TOPICS, list(range(deployment.partitions)))


def compare_tables(
    found: oracle.Judgement,
    corrected: Corrected,
    tables: dict[int, TableView],
    newest_ms: dict[int, int],
) -> list[str]:
    """(a) The cells of each partition, and what its position counts.

    ``newest_ms`` is the latest time of a record by partition: no table may have dropped a day that
    some budget's period still needs then.
    """
    problems: list[str] = []
    for number, table in tables.items():
        accepted = [one for one in found.accepted.values() if one.partition == number]
        entries = [one for one in corrected.entries.values() if one.event.partition == number]
        oldest = table.position.oldest_day
        cells = oracle.cells_of([*accepted, *entries])
        expected = {place: cell for place, cell in cells.items() if place[1] >= oldest}
        problems += _differences(f"table {number}", dict(table.cells), expected)
        counted = {
            "accepted": table.position.accepted,
            "rejected": table.position.rejected,
            "duplicate": table.position.duplicates,
            "forwarded": table.position.forwarded,
            "unpriced": table.position.unpriced,
        }
        fates = Counter(fate for place, fate in found.fates().items() if place[0] == number)
        fates["unpriced"] = sum(one.cost_nano is None for one in accepted)
        problems += _differences(f"position {number}", counted, {n: fates[n] for n in counted})
        if oldest > newest_ms[number] // oracle.DAY_MS - 29 and accepted:
            problems.append(f"table {number} has dropped all days before {oldest}")
    return problems


def compare_states(deployment: Deployment, cells: oracle.Cells) -> list[str]:
    """(b) The last record under each key of ``budget.state``, on one partition only."""
    last: dict[tuple[int, str], bytes | None] = {}
    for record in deployment.records(TOPICS.state):
        if not (record.key or b"").startswith(b"!heartbeat|"):
            last[record.partition, (record.key or b"").decode()] = record.value
    live = {place: value for place, value in last.items() if value is not None}
    twice = [key for key, count in Counter(key for _, key in live).items() if count > 1]
    states = {key: oracle.read_state(value) for (_, key), value in live.items()}
    shown = {
        key: {name: value for name, value in state.items() if name not in ("version", "as_of")}
        for key, state in states.items()
    }
    policies = oracle.read_policies(deployment.records(TOPICS.policies, history=True))
    now_ms = deployment.world.broker_ms()
    problems = [f"state {key} stands on several partitions" for key in twice]
    return problems + _differences("state", shown, oracle.expected_states(policies, cells, now_ms))


def compare_ledger(
    deployment: Deployment, found: oracle.Judgement, corrected: Corrected
) -> list[str]:
    """(c) The first entries of the ledger, and what each day adds up to with the further ones."""
    rows = deployment.ledger.final("ledger_entries")
    firsts = [row for row in rows if row["entry_no"] == 0]
    shown = {(row["source_partition"], row["source_offset"]): _row(row) for row in firsts}
    expected = {place: _expected_row(one) for place, one in found.accepted.items()}
    problems = _differences("ledger row", shown, expected)
    if len(shown) != len(firsts):
        problems.append(f"{len(firsts)} ledger rows name {len(shown)} records")
    daily, wanted = Counter[Any](), Counter[Any]()
    for row in rows:
        day = (row["occurred_at"] - oracle.EPOCH).days
        daily[day, row["port_id"], "requests"] += row["requests"]
        daily[day, row["port_id"], "cost"] += row["cost_nano"] or 0
        daily[day, row["port_id"], "unpriced"] += row["unpriced_requests"]
    for one in found.accepted.values():
        wanted[one.day, one.port_id, "requests"] += 1
        wanted[one.day, one.port_id, "cost"] += one.cost_nano or 0
        wanted[one.day, one.port_id, "unpriced"] += one.cost_nano is None
    for entry in corrected.entries.values():
        wanted[entry.day, entry.event.port_id, "requests"] += entry.requests
        wanted[entry.day, entry.event.port_id, "cost"] += entry.cost_nano or 0
        wanted[entry.day, entry.event.port_id, "unpriced"] += entry.unpriced
    return problems + _differences("daily sum", dict(daily), dict(wanted))


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (
        row["event_id"],
        row["port_id"],
        row["user_id"],
        row["organization_id"],
        row["group_id"],
        (row["occurred_at"] - oracle.EPOCH) // timedelta(microseconds=1),
        (row["recorded_at"] - oracle.EPOCH) // timedelta(milliseconds=1),
        row["billing_scope"],
        row["total_tokens"],
        row["cost_nano"],
        row["price_status"],
        row["rate_id"],
        row["estimated"],
        row["requests"],
        row["unpriced_requests"],
    )


def _expected_row(one: oracle.Accepted) -> tuple[Any, ...]:
    return (
        one.event_id,
        one.port_id,
        one.user_id,
        one.organization_id,
        one.group_id,
        one.occurred_at_us,
        one.recorded_at_ms,
        one.billing_scope,
        one.tokens,
        one.cost_nano,
        one.status,
        one.rate_id,
        one.is_estimated,
        1,
        int(one.cost_nano is None),
    )


def compare_fates(deployment: Deployment, found: oracle.Judgement) -> list[str]:
    """(d) Each input record ends in exactly one of ledger, rejected, duplicate, forwarded."""
    inputs = {(r.partition, r.offset): r for r in deployment.records(TOPICS.events, history=True)}
    problems: list[str] = []
    if found.fates().keys() != inputs.keys():
        problems.append("the oracle has not judged every record")
    seen: Counter[tuple[int, int]] = Counter(
        (row["source_partition"], row["source_offset"])
        for row in deployment.ledger.final("ledger_entries")
        if row["entry_no"] == 0
    )
    reasons: dict[tuple[int, int], str] = {}
    for record in deployment.records(TOPICS.rejected, history=True):
        headers = dict(record.headers)
        if headers["source-topic"] != TOPICS.events.encode():
            continue
        place = int(headers["source-partition"]), int(headers["source-offset"])
        seen[place] += 1
        reasons[place] = headers["reason"].decode()
        original = inputs.get(place)
        if original is None or (original.key, original.value) != (record.key, record.value):
            problems.append(f"the rejected record of {place} is not the original")
    problems += _differences("rejected", reasons, found.rejected)
    homes: dict[tuple[int, int], int] = {}
    for place, record in inputs.items():
        origin = oracle.forwarded_from(record)
        if origin is not None:
            seen[origin[:2]] += 1
            homes[origin[:2]] = place[0]
            original = inputs.get(origin[:2])
            if original is None or (original.key, original.value) != (record.key, record.value):
                problems.append(f"the record forwarded from {origin} is not the original")
    problems += _differences("forwarded", homes, found.forwarded)
    seen.update(found.duplicates)
    problems += [f"{place} ends {count} times" for place, count in seen.items() if count != 1]
    problems += [f"{place} ends nowhere" for place in inputs if place not in seen]
    held = Counter[str]()
    for row in deployment.ledger.final("sink_manifests"):
        held["duplicate"] += row["duplicates"]
    if held["duplicate"] != len(found.duplicates) and not deployment.world.hits["frozen-sink"]:
        problems.append(
            f"manifests count {held['duplicate']}, not {len(found.duplicates)} duplicates"
        )
    return problems


def _differences(what: str, found: dict[Any, Any], expected: dict[Any, Any]) -> list[str]:
    places = [p for p in {**found, **expected} if found.get(p) != expected.get(p)]
    problems = [
        f"{what} {place}: {found.get(place)}, expected {expected.get(place)}"
        for place in places[:SHOWN]
    ]
    if len(places) > SHOWN:
        problems.append(f"{what}: {len(places) - SHOWN} more")
    return problems
