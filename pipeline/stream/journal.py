"""The journal of a table: a ring of deltas and a set of shards on one compacted partition.

Each flush writes one *delta*: the cells that changed, as cumulative values, and the table's
position. Deltas alone would grow for ever, so every flush also pays for its own bytes by
rewriting some *shards* (each holds all live cells of a hash class). Once every shard has been
rewritten after a delta, that delta's slot in the ring is free and its key is used again; Kafka's
compaction then removes the old record. The live journal therefore stays within about three times
the table's size, however long it runs.

Record keys: ``d|SLOT`` and ``s|SHARD``. Recovery applies the shards, then, in the order of their
flush number, the deltas that are younger than the shard of the cell.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec

from pipeline.core.cells import CellValue, Totals
from pipeline.core.errors import CorruptRecord
from pipeline.core.record_version import UNREADABLE, unreadable, wrong_version
from pipeline.core.totals import SHARDS, SourceTotals, shard_of

JOURNAL_VERSION = 1
SHARD_FLOOR_BYTES = 2_048


_PackedCell = tuple[str, int, Sequence[int | str]]


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Where a source partition's table stands; written with every delta.

    ``next_offset`` is the next input offset. The counts are since the epoch began. ``watermark_ms``
    is the highest Kafka timestamp taken. ``rules_digest`` stands for the last
    record written to the rules topic.
    ``oldest_day`` is the first day that still has cells; ``cells`` how many there are. ``ids`` is
    how many ids have been written to the journal of ids. ``resolved_offset`` is where
    ``tallyport.resolved`` goes on, ``corrected`` the number of the last record taken from there.
    """

    epoch: int = 0
    flush: int = 0
    next_offset: int = 0
    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0
    forwarded: int = 0
    unpriced: int = 0
    watermark_ms: int = 0
    oldest_day: int = 0
    cells: int = 0
    rules_digest: bytes = b""
    ids: int = 0
    resolved_offset: int = 0
    corrected: int = 0


class _Delta(msgspec.Struct, array_like=True):
    version: int
    position: Position
    cells: msgspec.Raw


class _Shard(msgspec.Struct, array_like=True):
    version: int
    epoch: int
    flush: int
    cells: msgspec.Raw


_GROWING = (
    "next_offset", "accepted", "rejected", "duplicates", "forwarded", "unpriced", "watermark_ms",
    "oldest_day", "ids", "resolved_offset", "corrected",
)  # fmt: skip
"""What never falls from one flush of a table to the next."""

_encoder = msgspec.msgpack.Encoder()
_delta_decoder = msgspec.msgpack.Decoder(_Delta)
_shard_decoder = msgspec.msgpack.Decoder(_Shard)
_cells_decoder = msgspec.msgpack.Decoder(list[CellValue])
_wide_cells_decoder = msgspec.msgpack.Decoder(list[_PackedCell])
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_T = TypeVar("_T", _Delta, _Shard)


def _encoded(cells: Sequence[CellValue], *head: object) -> bytes:
    """The values of ``head`` and the cells; numbers that MessagePack does not have are text."""
    try:
        return _encoder.encode((*head, cells))
    except OverflowError:
        wide = [(scope, day, _packed(totals)) for scope, day, totals in cells]
        return _encoder.encode((*head, wide))


def _packed(totals: Totals) -> Sequence[int | str]:
    return [n if _LEAST <= n <= _MOST else str(n) for n in totals]


def _unpacked(cells: msgspec.Raw) -> list[CellValue]:
    try:
        return _cells_decoder.decode(cells)
    except msgspec.ValidationError:  # amounts beyond 64 bits came as text
        found = _wide_cells_decoder.decode(cells)
        return [(s, d, tuple(int(n) for n in ns)) for s, d, ns in found]  # type: ignore[misc]


def delta_record(
    slot: int, position: Position, changed: Sequence[CellValue]
) -> tuple[bytes, bytes]:
    """The (key, value) of the delta of one flush."""
    return b"d|%d" % slot, _encoded(changed, JOURNAL_VERSION, position)


def shard_record(
    shard: int, epoch: int, flush: int, cells: Sequence[CellValue]
) -> tuple[bytes, bytes]:
    """The (key, value) of a shard as of ``flush``; ``cells`` are all live ones of that class."""
    return b"s|%d" % shard, _encoded(cells, JOURNAL_VERSION, epoch, flush)


class Journal:
    """Writes one table's journal: which records a flush must send. Holds no cells itself."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._slots = 0
        self._live: deque[tuple[int, int]] = deque()
        self._shard_flush = [0] * SHARDS
        self._next_shard = 0
        self._credit_bytes = 0

    def records(
        self, position: Position, changed: list[CellValue], totals: SourceTotals
    ) -> list[tuple[bytes, bytes]]:
        """The (key, value) records of one flush: its delta and the shards it pays for."""
        slot = heapq.heappop(self._free) if self._free else self._new_slot()
        key, value = delta_record(slot, position, changed)
        self._live.append((position.flush, slot))
        self._credit_bytes += len(value)
        return [(key, value), *self._shards(position, totals)]

    def _new_slot(self) -> int:
        self._slots += 1
        return self._slots - 1

    def _shards(self, position: Position, totals: SourceTotals) -> list[tuple[bytes, bytes]]:
        written: list[tuple[bytes, bytes]] = []
        expected_bytes = max(SHARD_FLOOR_BYTES, 64 * position.cells // SHARDS)
        while self._credit_bytes >= expected_bytes and len(written) < SHARDS:
            shard = self._next_shard
            cells = totals.shard(shard)
            key, value = shard_record(shard, position.epoch, position.flush, cells)
            written.append((key, value))
            self._shard_flush[shard] = position.flush
            self._next_shard = (shard + 1) % SHARDS
            self._credit_bytes -= max(expected_bytes, len(value))
        if written:
            self._release_slots()
        return written

    def _release_slots(self) -> None:
        covered = min(self._shard_flush)
        while self._live and self._live[0][0] <= covered:
            heapq.heappush(self._free, self._live.popleft()[1])

    def restore_ring(self, deltas: dict[int, int], shard_flush: list[int]) -> None:
        """Takes over the ring as recovery found it: ``deltas`` maps slot to flush number."""
        self._slots = max(deltas, default=-1) + 1
        self._free = [slot for slot in range(self._slots) if slot not in deltas]
        heapq.heapify(self._free)
        self._live = deque(sorted((flush, slot) for slot, flush in deltas.items()))
        self._shard_flush = list(shard_flush)
        # Else shards late in the order would never be written where restarts are frequent.
        self._next_shard = shard_flush.index(min(shard_flush))
        self._release_slots()


class JournalReader:
    """Collects one partition's journal records and turns them into a table and a position.

    Of each key only the newest record is kept, as it came; ``restore`` decodes them one by one.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._deltas: dict[int, _Found] = {}
        self._shards: dict[int, _Found] = {}

    def feed(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        """Takes one record; raises ``CorruptRecord`` naming the topic, partition and offset."""
        kind, _, number = (key or b"").partition(b"|")
        index = int(number) if number.isdigit() else SHARDS
        if kind == b"d" and number.isdigit():
            records = self._deltas
        elif kind == b"s" and index < SHARDS:
            records = self._shards
        else:
            raise CorruptRecord(f"{self._name} offset {offset}: unknown journal key {key!r}")
        if value is None:
            raise CorruptRecord(f"{self._name} offset {offset}: a journal record without a value")
        records[index] = _Found(offset, value)

    def restore(self, totals: SourceTotals, journal: Journal | None = None) -> Position:
        """Fills ``totals``, readies ``journal`` and returns the position.

        Raises ``CorruptRecord`` naming the topic, partition and offset: when a record cannot be
        read or contradicts another one, when flushes are missing between the shards and the last
        delta, or when the number of cells is not the one the last delta states.
        """
        shards = {n: self._decoded(found, _shard_decoder) for n, found in self._shards.items()}
        deltas = [(n, f.offset, self._decoded(f, _delta_decoder)) for n, f in self._deltas.items()]
        if not deltas:
            if shards:
                first = min(found.offset for found in self._shards.values())
                raise CorruptRecord(f"{self._name} offset {first}: shards without any delta")
            return Position()
        deltas.sort(key=lambda entry: entry[2].position.flush)
        shard_flush = [shards[n].flush if n in shards else 0 for n in range(SHARDS)]
        position = deltas[-1][2].position
        self._verify_ring([(o, d.position) for _, o, d in deltas], min(shard_flush))
        for number, shard in shards.items():
            offset = self._shards[number].offset
            self._verify_shard(shard, position, offset)
            self._fill(totals, shard.cells, offset, position.oldest_day)
        for _, offset, delta in deltas:
            if delta.position.flush > min(shard_flush):
                covered = (delta.position.flush, shard_flush)
                self._fill(totals, delta.cells, offset, position.oldest_day, covered)
        if len(totals) != position.cells:
            raise CorruptRecord(
                f"{self._name} offset {deltas[-1][1]}: recovered {len(totals)} cells where flush "
                f"{position.flush} states {position.cells}"
            )
        if journal is not None:
            journal.restore_ring({n: d.position.flush for n, _, d in deltas}, shard_flush)
        return position

    def _decoded(self, found: "_Found", decoder: "msgspec.msgpack.Decoder[_T]") -> _T:
        where = f"{self._name} offset {found.offset}"
        try:
            record = decoder.decode(found.value)
        except UNREADABLE as error:
            why = unreadable(found.value, "journal record", JOURNAL_VERSION, error)
            raise CorruptRecord(f"{where}: {why}") from error
        if record.version != JOURNAL_VERSION:
            why = wrong_version("journal record", record.version, JOURNAL_VERSION)
            raise CorruptRecord(f"{where}: {why}")
        return record

    def _fill(
        self,
        totals: SourceTotals,
        cells: msgspec.Raw,
        offset: int,
        oldest_day: int,
        covered: tuple[int, list[int]] | None = None,
    ) -> None:
        """Puts the cells of one record. ``covered``, of a delta: its flush, and the flush up to
        which each shard holds everything."""
        try:
            values = _unpacked(cells)
        except UNREADABLE as error:
            raise CorruptRecord(
                f"{self._name} offset {offset}: not a journal record: {error}"
            ) from error
        if covered is not None:
            flush, shard_flush = covered
            values = [value for value in values if flush > shard_flush[shard_of(value[0])]]
        put = totals.put
        for scope, day, amounts in values:
            if day >= oldest_day:
                put(scope, day, amounts)

    def _verify_shard(self, shard: _Shard, position: Position, offset: int) -> None:
        if shard.epoch != position.epoch or shard.flush > position.flush:
            raise CorruptRecord(
                f"{self._name} offset {offset}: a shard of epoch {shard.epoch} flush "
                f"{shard.flush}, but the last delta is of epoch {position.epoch} flush "
                f"{position.flush}; the journal has lost its end"
            )

    def _verify_ring(self, positions: list[tuple[int, Position]], covered: int) -> None:
        """Every flush after ``covered`` is there once, and no position falls behind its former."""
        expected, former = covered + 1, Position()
        for offset, position in positions:
            if position.flush > covered:
                if position.flush != expected:
                    raise CorruptRecord(
                        f"{self._name} offset {offset}: flush {expected} is missing from the "
                        f"journal (shards cover up to {covered}, next found is {position.flush})"
                    )
                expected += 1
            fallen = [n for n in _GROWING if getattr(position, n) < getattr(former, n)]
            if fallen or (former.epoch and position.epoch != former.epoch):
                name = fallen[0] if fallen else "epoch"
                raise CorruptRecord(
                    f"{self._name} offset {offset}: flush {position.flush} has {name} "
                    f"{getattr(position, name)} after {getattr(former, name)} in flush "
                    f"{former.flush}"
                )
            former = position


class _Found(NamedTuple):
    offset: int
    value: bytes
