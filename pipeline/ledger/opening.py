"""The opening of a new log, as the ledger knows it: cells, ids, and how far older logs were held.

Everything here is of entries of *older* epochs, also of those that no manifest covers yet: they
are in the ledger, so they are counted.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clickhouse_connect.driver.client import Client

from pipeline.core.cells import CellValue, Totals
from pipeline.core.totals import SHARDS

DAY_MS = 86_400_000

_EXTENT = """
SELECT count(), toUnixTimestamp64Milli(min(recorded_at)), toUnixTimestamp64Milli(max(recorded_at))
FROM ledger_entries FINAL WHERE epoch < {before_epoch:UInt32}
"""
_WATERMARKS = """
SELECT source_partition, toUnixTimestamp64Milli(max(recorded_at)) FROM ledger_entries
WHERE epoch IN {epochs:Array(UInt32)} AND source_topic = {topic:String}
GROUP BY source_partition
"""
_COVERAGE = """
SELECT epoch, topic, partition, max(next_offset) FROM sink_manifests
WHERE epoch < {before_epoch:UInt32}
GROUP BY epoch, topic, partition ORDER BY epoch, topic, partition
"""
# A shard of a journal is a hash class of scopes; in this order one after the other is complete.
_CELLS = f"""
SELECT
    scope,
    toInt32(toDate(occurred_at)) AS day,
    sum(requests),
    sum(total_tokens),
    sum(toInt128(ifNull(cost_nano, 0))),
    sumIf(toInt128(ifNull(cost_nano, 0)), billing_scope = 'org'),
    sum(unpriced_requests),
    sumIf(unpriced_requests, billing_scope = 'org')
FROM ledger_entries FINAL
ARRAY JOIN arrayConcat(
    ['all', concat('port:', port_id)],
    if(organization_id = '', [], [concat('org:', organization_id)]),
    if(group_id = '', [], [concat('group:', group_id)]),
    if(user_id = '', [], [concat('user:', user_id)])) AS scope
WHERE epoch < {{before_epoch:UInt32}} AND toDate(occurred_at) >= toDate({{oldest_day:Int32}})
GROUP BY scope, day
ORDER BY CRC32(scope) % {SHARDS}
"""
_AMOUNTS = (
    "requests",
    "total_tokens",
    "toInt128(ifNull(cost_nano, 0))",
    "if(billing_scope = 'org', toInt128(ifNull(cost_nano, 0)), 0)",
    "unpriced_requests",
    "if(billing_scope = 'org', unpriced_requests, 0)",
)
_KINDS = {
    "all": "1",
    "port": "1",
    "org": "organization_id != ''",
    "group": "group_id != ''",
    "user": "user_id != ''",
}
# By other means than the cells: the sums of each kind of scope, without a group.
_CONTROL = f"""
SELECT {", ".join(f"sumIf({a}, {condition})" for condition in _KINDS.values() for a in _AMOUNTS)}
FROM ledger_entries FINAL
WHERE epoch < {{before_epoch:UInt32}} AND toDate(occurred_at) >= toDate({{oldest_day:Int32}})
"""
# No FINAL: an id that is given twice is remembered once.
_IDS = """
SELECT port_id, event_id, correction_id, toUnixTimestamp64Milli(recorded_at) FROM ledger_entries
WHERE epoch < {before_epoch:UInt32}
AND recorded_at >= fromUnixTimestamp64Milli({from_ms:Int64}, 'UTC')
AND recorded_at < fromUnixTimestamp64Milli({until_ms:Int64}, 'UTC')
"""


class Extent(NamedTuple):
    """The entries of older epochs and the first and last Kafka timestamp of their records."""

    entries: int
    oldest_ms: int
    newest_ms: int


@dataclass(frozen=True)
class Coverage:
    """Up to where the ledger vouches for one partition of an older log."""

    epoch: int
    topic: str
    partition: int
    next_offset: int


def extent(client: Client, before_epoch: int) -> Extent:
    """How much there is to restore; times are 0 where there is nothing."""
    [row] = client.query(_EXTENT, parameters={"before_epoch": before_epoch}).result_rows
    entries, oldest_ms, newest_ms = (int(value) for value in row)
    return Extent(entries, oldest_ms, newest_ms) if entries else Extent(0, 0, 0)


def coverage(client: Client, before_epoch: int) -> list[Coverage]:
    """The last manifest's end of every partition of every older log."""
    rows = client.query(_COVERAGE, parameters={"before_epoch": before_epoch}).result_rows
    return [Coverage(int(e), str(t), int(p), int(offset)) for e, t, p, offset in rows]


def watermarks_ms(client: Client, topic: str, epochs: Sequence[int]) -> dict[int, int]:
    """By partition of ``topic``: the newest Kafka timestamp of an entry from one of ``epochs``."""
    parameters = {"topic": topic, "epochs": list(epochs)}
    rows = client.query(_WATERMARKS, parameters=parameters).result_rows
    return {int(partition): int(newest_ms) for partition, newest_ms in rows}


def opening_cells(
    client: Client, before_epoch: int, oldest_day: int
) -> Generator[Sequence[CellValue]]:
    """The day cells of every scope from ``oldest_day`` on, in batches, ordered by shard."""
    parameters = {"before_epoch": before_epoch, "oldest_day": oldest_day}
    with client.query_row_block_stream(_CELLS, parameters=parameters) as stream:
        for block in stream:
            yield [(scope, day, _totals(sums)) for scope, day, *sums in block]


def control_sums(client: Client, before_epoch: int, oldest_day: int) -> dict[str, Totals]:
    """What the cells of each kind of scope (``all``, ``port``, …) must add up to."""
    parameters = {"before_epoch": before_epoch, "oldest_day": oldest_day}
    [row] = client.query(_CONTROL, parameters=parameters).result_rows
    width = len(_AMOUNTS)
    return {kind: _totals(row[at * width : (at + 1) * width]) for at, kind in enumerate(_KINDS)}


def accepted_ids(
    client: Client, before_epoch: int, from_ms: int, until_ms: int
) -> Generator[Sequence[tuple[str, str, str, int]]]:
    """(port_id, event_id, correction_id, Kafka timestamp in ms) of what was accepted, in batches.

    An event has an empty correction_id. All have a timestamp of ``from_ms`` ≤ t < ``until_ms`` and
    come day after day; within a day in no order. The same id may come more than once.
    """
    for start_ms in range(from_ms, until_ms, DAY_MS):
        parameters = {
            "before_epoch": before_epoch,
            "from_ms": start_ms,
            "until_ms": min(start_ms + DAY_MS, until_ms),
        }
        with client.query_row_block_stream(_IDS, parameters=parameters) as stream:
            yield from stream


def _totals(sums: Sequence[int]) -> Totals:
    requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced = map(int, sums)
    return requests, tokens, cost_nano, org_cost_nano, unpriced, org_unpriced
