"""Writing blocks to the ledger: first the rows, then the manifests that vouch for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from clickhouse_connect.driver.client import Client

from pipeline import faults, metrics
from pipeline.core.blocks import ROW_COLUMNS, PricedBlock
from pipeline.core.errors import ConfigurationError, CorruptRecord, Refused
from pipeline.ledger.block_runs import Run, manifests_of
from pipeline.ledger.client import (
    LedgerAddress,
    LedgerUnreachable,
    connect,
    ledger_address,
    ledger_errors,
)
from pipeline.ledger.columns import by_month, entries_table
from pipeline.ledger.currency import settle_currency
from pipeline.ledger.day_marks import DayMarks
from pipeline.ledger.manifests import (
    INSERT_SETTINGS,
    LogEpoch,
    Position,
    join_epoch,
    last_position,
    rows_above,
    write_manifests,
)
from pipeline.ledger.migrate import pending
from pipeline.ledger.pseudonyms import Pseudonyms, load_pseudonyms, refreshed, rename_entries
from pipeline.settings import Settings

_USER = ROW_COLUMNS.index("user_id")


@dataclass(frozen=True)
class Holding:
    """What the ledger holds of one partition, by source topic: its end, and rows above it."""

    positions: dict[str, Position]
    known: dict[str, frozenset[int]]


class LedgerWriter:
    """The sink's side of ClickHouse. Its methods block and raise ``LedgerError``.

    Connects when first used and again after ``close``, so that a ledger that came back at another
    address is found.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = ledger_address(settings, write=True)
        self._client: Client | None = None
        self._marks = DayMarks()
        self._pseudonyms = Pseudonyms()

    def holdings(self, topics: Iterable[str], partitions: Iterable[int]) -> dict[int, Holding]:
        """What the ledger holds of each partition of ``topics``."""
        client = self._connected()
        with ledger_errors(self._address):
            return {p: self._holding(client, topics, p) for p in partitions}

    def join(self, log: LogEpoch) -> None:
        """Records which log the rows come from; raises ``Refused`` when it is not the ledger's."""
        client = self._connected()
        with ledger_errors(self._address):
            join_epoch(client, log)

    def write(self, runs: Sequence[Run], entries: pa.Table | None) -> int:
        """Steps 2 to 4 of the sink's protocol, with what ``entries_of`` has made of ``runs``.

        Returns how many rows were inserted.
        """
        client = self._connected()
        if entries is not None:
            # Asked again each time: whoever was forgotten before this round is not seen once more.
            with ledger_errors(self._address):
                self._pseudonyms = refreshed(client, self._pseudonyms)
            entries = self._pseudonyms.applied(entries)
        manifests = [
            manifest
            for run in runs
            for manifest in manifests_of(run.blocks, run.priced_partition, run.priced_next_offset)
        ]
        # Also of rows that the ledger has already: who wrote them may have died before its mark.
        days = {day for manifest in manifests for day in manifest.days}
        with ledger_errors(self._address):
            faults.point("sink-before-mark")
            self._marks.before_change(client, days)
            faults.point("sink-after-mark")
            if entries is not None:
                faults.point("sink-before-insert")
                for month in by_month(entries):
                    with metrics.SINK_INSERT_SECONDS.time():
                        client.insert_arrow("ledger_entries", month, settings=INSERT_SETTINGS)
                    faults.point("sink-after-insert")
            self._rename_forgotten(client, runs)
            self._marks.after_change(client, days)
            faults.point("sink-before-manifest")
            write_manifests(client, manifests, datetime.now(UTC))
            faults.point("sink-after-manifest")
        return 0 if entries is None else entries.num_rows

    def _rename_forgotten(self, client: Client, runs: Sequence[Run]) -> None:
        """Gives pseudonyms to who was forgotten while these rows were on their way.

        Whoever forgets a user registers it first and changes the rows that are there then, so each
        row is reached by one of the two. Rows that the ledger had already may be of a round that
        was cut short before it came here.
        """
        before, self._pseudonyms = self._pseudonyms, refreshed(client, self._pseudonyms)
        if not self._pseudonyms.forgotten:
            return
        found = [run for run in runs if run.has_known_rows or before != self._pseudonyms]
        users = {row[_USER] for run in found for block in run.blocks for row in block.rows}
        rename_entries(client, self._pseudonyms.renamed(users))

    def entries_of(self, runs: Sequence[Run]) -> pa.Table | None:
        """The rows to insert, from any thread; raises ``CorruptRecord`` that names the block."""
        blocks = [block for run in runs for block in run.unwritten if block.rows]
        try:
            return entries_table(blocks, self._settings.currency) if blocks else None
        except CorruptRecord:
            for block in blocks:
                _check_rows(block, self._settings.currency)
            raise

    def close(self) -> None:
        """Lets go of the connection."""
        self._marks.forget()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connected(self) -> Client:
        if self._client is None:
            entries_table([], self._settings.currency)  # its first call loads libraries, for 1 s
            self._address = self._current_address()
            client = connect(self._address)
            with ledger_errors(self._address):
                if missing := pending(client):
                    raise Refused(
                        f"the ledger lacks {len(missing)} migrations (first {missing[0]}); "
                        "run `tallyport migrate`"
                    )
                settle_currency(client, self._settings.currency)
                self._pseudonyms = load_pseudonyms(client)
            self._client = client
        return self._client

    def _current_address(self) -> LedgerAddress:
        try:
            return ledger_address(self._settings, write=True)
        except ConfigurationError as error:  # there was one at the start: it may come back
            raise LedgerUnreachable(str(error)) from error

    @staticmethod
    def _holding(client: Client, topics: Iterable[str], partition: int) -> Holding:
        found = {topic: last_position(client, topic, partition) for topic in topics}
        positions = {topic: position for topic, position in found.items() if position is not None}
        known = {
            topic: rows_above(client, topic, partition, position)
            for topic, position in positions.items()
        }
        return Holding(positions, known)


def _check_rows(block: PricedBlock, currency: str) -> None:
    try:
        entries_table([block], currency)
    except CorruptRecord as error:
        raise CorruptRecord(
            f"the priced block of {block.topic} partition {block.partition} offsets "
            f"{block.first_offset} to {block.next_offset}: {error}"
        ) from error
