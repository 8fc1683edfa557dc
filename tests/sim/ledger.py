"""A ClickHouse in memory: tables of plain rows, and the statements that the sink sends.

An insert is carried out whole or not at all. Rows are kept as they came, as parts are; ``final``
reads them as a ReplacingMergeTree with FINAL does: of rows with equal keys the last one counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

from clickhouse_connect.driver.exceptions import OperationalError

from pipeline.ledger import manifests, pseudonyms
from tests.sim.world import World

Row = dict[str, Any]
SORTING_KEYS = {
    "ledger_entries": lambda row: (
        row["occurred_at"].date(),
        row["port_id"],
        row["event_id"],
        row["entry_no"],
    ),
    "sink_manifests": lambda row: tuple(
        row[name] for name in ("topic", "partition", "epoch", "next_offset", "first_offset")
    ),
    "log_epochs": lambda row: (row["epoch"], row["id"]),
}


@dataclass
class SimulatedLedger:
    """The server. ``down`` while it does not answer.

    ``lost_answers`` says of the next inserts, by table, whether they are carried out before they
    fail.
    """

    world: World
    down: bool = False
    lost_answers: dict[str, list[bool]] = field(default_factory=dict[str, list[bool]])
    tables: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])

    def insert(self, table: str, rows: Iterable[Row]) -> None:
        """One insert, in one part."""
        self.check_up()
        lost = self.lost_answers.get(table)
        is_carried_out = not lost or lost[0]
        if is_carried_out:
            self.tables.setdefault(table, []).extend(rows)
        if lost:
            how = "executed" if lost.pop(0) else "not-executed"
            self.world.hit(f"lost-insert-{how}:{table}")
            raise OperationalError("simulated: the answer was lost")

    def final(self, table: str) -> list[Row]:
        """What ``SELECT … FINAL`` sees."""
        key = SORTING_KEYS[table]
        return list({key(row): row for row in self.tables.get(table, [])}.values())

    def check_up(self) -> None:
        if self.down:
            raise OperationalError("simulated: ClickHouse does not answer")


class SimulatedClient:
    """``clickhouse_connect``'s client on a ``SimulatedLedger``."""

    def __init__(self, ledger: SimulatedLedger) -> None:
        self._ledger = ledger

    def close(self) -> None:
        """Nothing is held."""

    def insert_arrow(self, table: str, arrow_table: Any, settings: Any = None) -> None:
        self._ledger.insert(table, arrow_table.to_pylist())

    def insert(
        self,
        table: str,
        data: Sequence[Sequence[Any]],
        column_names: Sequence[str],
        settings: Any = None,
    ) -> None:
        self._ledger.insert(table, [dict(zip(column_names, row, strict=True)) for row in data])

    def query(self, sql: str, parameters: Mapping[str, Any] | None = None) -> Any:
        given = dict(parameters or {})
        for text, answer in _QUERIES:
            if sql == text:
                return self._answer(partial(answer, given=given))
        raise NotImplementedError(f"simulated: no answer is known to {sql!r}")

    def _answer(self, question: Callable[[SimulatedLedger], list[Any]]) -> Any:
        self._ledger.check_up()
        rows = question(self._ledger)
        return SimpleNamespace(result_rows=rows, first_row=rows[0] if rows else None)


def _last(ledger: SimulatedLedger, given: dict[str, Any]) -> list[tuple[int, ...]]:
    rows = [
        (row["epoch"], row["next_offset"], row["priced_next_offset"])
        for row in ledger.tables.get("sink_manifests", [])
        if (row["topic"], row["partition"]) == (given["topic"], given["partition"])
    ]
    return sorted(rows, reverse=True)[:1]


def _rows_above(ledger: SimulatedLedger, given: dict[str, Any]) -> list[tuple[int]]:
    found = {
        row["source_offset"]
        for row in ledger.tables.get("ledger_entries", [])
        if row["epoch"] == given["epoch"]
        and row["source_topic"] == given["topic"]
        and row["source_partition"] == given["partition"]
        and row["source_offset"] >= given["next_offset"]
    }
    return [(offset,) for offset in sorted(found)]


def _epochs(ledger: SimulatedLedger, given: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("epoch", "id", "created_at", "cluster_id", "topic_ids")
    rows = [tuple(row[name] for name in names) for row in ledger.final("log_epochs")]
    return sorted(rows, key=lambda row: row[0])


_EPOCHS = "SELECT epoch, id, created_at, cluster_id, topic_ids FROM log_epochs FINAL ORDER BY epoch"
_QUERIES = (
    (manifests._LAST, _last),
    (manifests._ROWS_ABOVE, _rows_above),
    (_EPOCHS, _epochs),
    (pseudonyms.COUNT, lambda ledger, given: [(0,)]),
)
