"""The ledger's memory of months that were exported and dropped: they are not lost."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from clickhouse_connect.driver.client import Client

from pipeline.ledger.export import Content
from pipeline.ledger.manifests import INSERT_SETTINGS
from pipeline.ledger.months import Month, month_of_number

LEAVING, KEPT, DROPPED = "leaving", "kept", "dropped"

_COLUMNS = (
    "month", "epoch", "source_topic", "source_partition", "state", "entries", "unpriced_requests",
    "cost_nano", "last_offset", "file", "digest", "number", "written_at",
)  # fmt: skip
_SOURCES = """
SELECT epoch, source_topic, source_partition, count(), sum(unpriced_requests),
    sum(toInt128(ifNull(cost_nano, 0))), max(source_offset)
FROM ledger_entries FINAL WHERE toYYYYMM(occurred_at) = {month:UInt32}
GROUP BY epoch, source_topic, source_partition
"""
_REGISTERED = """
SELECT month, state, file, digest, sum(entries), sum(cost_nano), max(written_at)
FROM dropped_months FINAL GROUP BY month, state, file, digest ORDER BY month
"""


@dataclass(frozen=True)
class Source:
    """The entries of one month that came from one partition of one log."""

    epoch: int
    topic: str
    partition: int
    entries: int
    unpriced_requests: int
    cost_nano: int
    last_offset: int


@dataclass(frozen=True)
class RegisteredMonth:
    """A month that left, or was about to; ``file`` is where it went."""

    month: Month
    state: str
    file: str
    digest: str
    entries: int
    cost_nano: int
    written_at: datetime


def sources_of(client: Client, month: Month) -> list[Source]:
    """Where the month's entries came from, and how many from each place."""
    rows = client.query(_SOURCES, parameters={"month": month.number}).result_rows
    return [
        Source(int(epoch), str(topic), *(int(number) for number in numbers))
        for epoch, topic, *numbers in rows
    ]


def register(
    client: Client, month: Month, state: str, sources: list[Source], file: str, content: Content
) -> None:
    """Writes what state the month is in, in one insert."""
    number, written_at = time.time_ns(), datetime.now(UTC)
    rows = [
        [
            month.number, s.epoch, s.topic, s.partition, state, s.entries, s.unpriced_requests,
            s.cost_nano, s.last_offset, file, content.digest, number, written_at,
        ]
        for s in sources
    ]  # fmt: skip
    client.insert("dropped_months", rows, column_names=_COLUMNS, settings=INSERT_SETTINGS)


def registered_months(client: Client) -> Iterator[RegisteredMonth]:
    """Every month that was ever to leave, oldest first."""
    for number, state, file, digest, entries, cost_nano, at in client.query(
        _REGISTERED
    ).result_rows:
        yield RegisteredMonth(
            month_of_number(int(number)), str(state), str(file), str(digest), int(entries),
            int(cost_nano), at,
        )  # fmt: skip


def registered(client: Client, month: Month) -> RegisteredMonth | None:
    """What is known of one month."""
    return next((one for one in registered_months(client) if one.month == month), None)
