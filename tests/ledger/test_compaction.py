"""Merged manifests cover the same offsets with the same counts, whatever dies in between."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from pipeline.ledger import compaction
from pipeline.ledger.client import LedgerAddress
from pipeline.ledger.compaction import LEAST_RUNS, MOST_OFFSETS, Compactor, compact
from pipeline.ledger.manifests import Manifest, last_position, write_manifests
from tests.stream.conftest import url_of

TOPIC = "usage.events"
OLD = datetime.now(UTC) - timedelta(hours=2)
COVERED = "SELECT partition, first_offset, next_offset FROM sink_manifests FINAL ORDER BY 1, 2, 3"
COMPACT = """
import sys
from pipeline.ledger.client import connect, parse_address
from pipeline.ledger.compaction import compact
compact(connect(parse_address(sys.argv[1])))
"""


def runs(count: int, start: int = 0, partition: int = 0) -> list[Manifest]:
    """Runs that join end to end."""
    rng = random.Random(f"{count}/{start}")
    found: list[Manifest] = []
    for number in range(count):
        rows, rejected, duplicates, forwarded = (rng.randrange(20) for _ in range(4))
        end = start + rows + rejected + duplicates + forwarded + 1
        days = (date(2026, 11, 1 + number * 20 // count), date(2026, 11, 30))
        found.append(
            Manifest(
                1, TOPIC, partition, start, end, rows, rejected, duplicates, forwarded, days,
                partition, number + 1,
            )
        )  # fmt: skip
        start = end
    return found


def write(client: Client, manifests: Sequence[Manifest], at: datetime = OLD) -> None:
    for start in range(0, len(manifests), 50):
        write_manifests(client, manifests[start : start + 50], at)


def covered(client: Client) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in client.query(COVERED).result_rows]


def sums(client: Client) -> dict[int, tuple[Any, ...]]:
    """What the manifests of each partition add up to, runs inside of others left out."""
    rows = client.query(
        "SELECT partition, sum(rows), sum(rejected), sum(duplicates), sum(forwarded), "
        "min(first_offset), max(next_offset), arraySort(groupUniqArrayArray(days)) "
        "FROM sink_manifests FINAL GROUP BY partition"
    ).result_rows
    return {partition: tuple(map(str, values)) for partition, *values in rows}


def test_a_chain_becomes_one_run_and_the_newest_stays(client: Client) -> None:
    first, second = runs(300), runs(250, partition=1)
    write(client, [*first, *second])
    before, newest = sums(client), last_position(client, TOPIC, 0)
    assert compact(client) == 299 + 249
    assert covered(client) == [
        (0, 0, first[-1].first_offset),
        (0, first[-1].first_offset, first[-1].next_offset),
        (1, 0, second[-1].first_offset),
        (1, second[-1].first_offset, second[-1].next_offset),
    ]
    assert sums(client) == before
    assert last_position(client, TOPIC, 0) == newest
    assert compact(client) == 0
    more = runs(200, first[-1].next_offset)
    write(client, more)
    before = sums(client)
    assert compact(client) == 201
    assert covered(client)[0] == (0, 0, more[-1].first_offset)
    assert sums(client) == before


def test_gaps_overlaps_young_and_few_runs_are_left_as_they_are(client: Client) -> None:
    chain = runs(400)
    gap = [*chain[:150], *chain[151:300]]
    write(client, gap)
    start, end = chain[40].first_offset + 1, chain[41].first_offset + 1
    overlapping = Manifest(1, TOPIC, 0, start, end, 1, 0, 0, 0, (), 0, 1)
    write(client, [overlapping])
    write(client, runs(LEAST_RUNS - 1, partition=1))
    write(client, runs(300, partition=2), datetime.now(UTC))
    before = covered(client)
    compact(client)
    after = covered(client)
    missing = (chain[150].first_offset, chain[150].next_offset)
    assert not any(p == 0 and f <= missing[0] and missing[1] <= n for p, f, n in after)
    assert (0, start, end) in after
    assert [row for row in after if row[0]] == [row for row in before if row[0]]
    assert len(after) < len(before)


def test_a_merged_run_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "MOST_OFFSETS", 5_000)
    assert MOST_OFFSETS < 2**32, "its counts fit the columns"
    write(client, runs(400))
    before = sums(client)
    assert compact(client) > 300
    assert max(n - f for _, f, n in covered(client)) <= 5_000
    assert sums(client) == before


@pytest.mark.parametrize("point", ["before-insert", "after-insert", "after-delete"])
def test_a_kill_between_the_steps_changes_nothing_that_is_covered(
    client: Client, address: LedgerAddress, point: str
) -> None:
    chain = runs(250)
    write(client, chain)
    before = sums(client)
    killed = subprocess.run(
        [sys.executable, "-c", COMPACT, url_of(address)],
        env={**os.environ, "FAULT_POINT": f"compact-{point}:1"},
        timeout=120,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    there = covered(client)
    reached = 0
    for _, first, end in there:
        assert first <= reached, "a gap"
        reached = max(reached, end)
    assert reached == chain[-1].next_offset
    compact(client)
    assert len(covered(client)) == 2
    assert sums(client) == before


def test_it_is_done_from_time_to_time(client: Client) -> None:
    now_s = [0.0]
    compactor = Compactor(lambda: now_s[0])
    write(client, runs(200))
    assert compactor.turn(client) == 199
    write(client, runs(200, partition=1))
    assert compactor.turn(client) == 0
    now_s[0] = compaction.EVERY_S
    assert compactor.turn(client) == 199
