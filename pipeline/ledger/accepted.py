"""Which events the ledger has already, by their identity."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from clickhouse_connect.driver.client import Client

_IDS_PER_QUERY: Final = 100
"""So many of the longest ids still fit into a statement that a server reads."""
_ACCEPTED: Final = """
SELECT DISTINCT port_id, event_id FROM usage_ledger
WHERE entry_no = 0 AND recorded_at >= %(since)s AND occurred_at >= %(first)s
  AND (port_id, event_id) IN %(ids)s
"""


def accepted_events(
    client: Client, ids: Sequence[tuple[str, str]], since: datetime, max_age_days: int
) -> set[tuple[str, str]]:
    """Those of the ``(port_id, event_id)`` that were accepted at ``since`` or later.

    ``max_age_days`` bounds how long before that they can have occurred.
    """
    first = since - timedelta(days=max_age_days + 1)
    found: set[tuple[str, str]] = set()
    for part in _parts(ids):
        parameters = {"since": _literal(since), "first": _literal(first), "ids": part}
        found |= {(row[0], row[1]) for row in client.query(_ACCEPTED, parameters).result_rows}
    return found


def _literal(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _parts(ids: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    unique = tuple(dict.fromkeys(ids))
    for start in range(0, len(unique), _IDS_PER_QUERY):
        yield unique[start : start + _IDS_PER_QUERY]
