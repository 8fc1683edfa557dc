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
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.core.partials import CellValue
from pipeline.core.totals import SHARDS, SourceTotals, Totals, shard_of

JOURNAL_VERSION = 1
SHARD_FLOOR_BYTES = 2_048


_PackedCell = tuple[str, int, Sequence[int | str]]


class Position(msgspec.Struct, array_like=True, frozen=True):
    """Where a source partition's table stands; written with every delta.

    ``next_offset`` is the next input offset. The counts are since the epoch began. ``watermark_ms``
    is the highest Kafka timestamp taken. ``rules_digest`` stands for the last
    record written to the rules topic.
    ``oldest_day`` is the first day that still has cells; ``cells`` how many there are.
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


class _Delta(msgspec.Struct, array_like=True):
    version: int
    position: Position
    cells: list[_PackedCell]


class _Shard(msgspec.Struct, array_like=True):
    version: int
    epoch: int
    flush: int
    cells: list[_PackedCell]


_encoder = msgspec.msgpack.Encoder()
_delta_decoder = msgspec.msgpack.Decoder(_Delta)
_shard_decoder = msgspec.msgpack.Decoder(_Shard)
_WIDE = 1 << 63
_T = TypeVar("_T", _Delta, _Shard)


def _pack(cells: Iterable[CellValue]) -> list[_PackedCell]:
    return [(scope, day, _packed(totals)) for scope, day, totals in cells]


def _packed(totals: Totals) -> Sequence[int | str]:
    # MessagePack ends at 64 bits; a sum may not.
    return totals if max(totals) < _WIDE else [n if n < _WIDE else str(n) for n in totals]


def _unpack(numbers: Sequence[int | str]) -> Totals:
    return tuple(int(n) for n in numbers)  # type: ignore[return-value]


def delta_record(
    slot: int, position: Position, changed: Iterable[CellValue]
) -> tuple[bytes, bytes]:
    """The (key, value) of the delta of one flush."""
    return b"d|%d" % slot, _encoder.encode(_Delta(JOURNAL_VERSION, position, _pack(changed)))


def shard_record(
    shard: int, epoch: int, flush: int, cells: Iterable[CellValue]
) -> tuple[bytes, bytes]:
    """The (key, value) of a shard as of ``flush``; ``cells`` are all live ones of that class."""
    return b"s|%d" % shard, _encoder.encode(_Shard(JOURNAL_VERSION, epoch, flush, _pack(cells)))


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
            cells = ((c.scope, c.day, c.totals()) for c in totals.shard(shard))
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
    """Collects one partition's journal records and turns them into a table and a position."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._deltas: dict[int, _Delta] = {}
        self._shards: dict[int, _Shard] = {}

    def feed(self, key: bytes | None, value: bytes | None, offset: int) -> None:
        """Takes one record; raises ``CorruptRecord`` naming the topic, partition and offset."""
        where = f"{self._name} offset {offset}"
        try:
            kind, _, number = (key or b"").partition(b"|")
            index = int(number)
            if kind == b"d":
                self._deltas[index] = _checked(_delta_decoder.decode(value or b""), where)
            elif kind == b"s" and 0 <= index < SHARDS:
                self._shards[index] = _checked(_shard_decoder.decode(value or b""), where)
            else:
                raise CorruptRecord(f"{where}: unknown journal key {key!r}")
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptRecord(f"{where}: not a journal record: {error}") from error

    def restore(self, totals: SourceTotals, journal: Journal | None = None) -> Position:
        """Fills ``totals``, readies ``journal`` and returns the position.

        Raises ``CorruptRecord`` when flushes are missing between the shards and the last delta,
        or when the number of cells is not the one the last delta states.
        """
        if not self._deltas:
            if self._shards:
                raise CorruptRecord(f"{self._name}: shards without any delta")
            return Position()
        deltas = sorted(self._deltas.items(), key=lambda item: item[1].position.flush)
        shard_flush = [self._shards[s].flush if s in self._shards else 0 for s in range(SHARDS)]
        position = deltas[-1][1].position
        self._verify_ring([d.position.flush for _, d in deltas], min(shard_flush))
        for shard in self._shards.values():
            for scope, day, numbers in shard.cells:
                if day >= position.oldest_day:
                    totals.put(scope, day, _unpack(numbers))
        for _, delta in deltas:
            for scope, day, numbers in delta.cells:
                if (
                    day >= position.oldest_day
                    and delta.position.flush > shard_flush[shard_of(scope)]
                ):
                    totals.put(scope, day, _unpack(numbers))
        if len(totals) != position.cells:
            raise CorruptRecord(
                f"{self._name}: recovered {len(totals)} cells where flush {position.flush} "
                f"states {position.cells}"
            )
        if journal is not None:
            journal.restore_ring({s: d.position.flush for s, d in deltas}, shard_flush)
        return position

    def _verify_ring(self, flushes: list[int], covered: int) -> None:
        needed = [flush for flush in flushes if flush > covered]
        expected = covered + 1
        for flush in needed:
            if flush != expected:
                raise CorruptRecord(
                    f"{self._name}: flush {expected} is missing from the journal "
                    f"(shards cover up to {covered}, next found is {flush})"
                )
            expected += 1


def _checked(record: _T, where: str) -> _T:
    if record.version != JOURNAL_VERSION:
        raise CorruptRecord(
            f"{where}: journal record of version {record.version}; "
            f"this release reads {JOURNAL_VERSION}"
        )
    return record
