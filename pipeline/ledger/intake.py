"""What the sink takes from one partition of ``usage.priced``: blocks that join end to end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from pipeline.core.blocks import ROW_COLUMNS, PricedBlock
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.ledger.manifests import Position

_SOURCE_OFFSET = ROW_COLUMNS.index("source_offset")


class Verdict(Enum):
    """What to do with a block."""

    TAKE = "take"
    KNOWN = "known"
    """The ledger holds it already."""
    GAP = "gap"
    """Something before it is missing: read again from ``Intake.priced_next_offset``."""


@dataclass
class Intake:
    """The chain of one priced partition; ``taken`` is what waits for the next insert.

    ``positions`` are the ledger's ends by source topic. ``known`` are source offsets, by topic,
    whose rows are in the ledger although no manifest covers them. ``lost_before`` is the first
    offset Kafka still has, when that lies above what the ledger asked for.
    """

    priced_topic: str
    partition: int
    priced_next_offset: int
    positions: dict[str, Position]
    known: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    lost_before: int | None = None
    taken: list[PricedBlock] = field(default_factory=list[PricedBlock])
    taken_rows: int = 0
    taken_bytes: int = 0
    _jump: tuple[str, int, int] | None = None

    def offer(self, block: PricedBlock, priced_offset: int, size_bytes: int) -> Verdict:
        """Judges a block and takes it when it is the next one.

        Raises ``CorruptRecord`` for a block that contradicts itself, ``Refused`` for one of an
        older log and for a gap that shows a second time.
        """
        if priced_offset < self.priced_next_offset:
            return Verdict.KNOWN
        self._check(block, priced_offset)
        position = self.positions.get(block.topic)
        verdict = self._judge(block, position, priced_offset)
        if verdict is Verdict.GAP:
            return verdict
        self.priced_next_offset = priced_offset + 1
        if verdict is Verdict.TAKE:
            self._jump = None
            self.positions[block.topic] = Position(
                block.epoch, block.next_offset, self.priced_next_offset
            )
            self.taken.append(block)
            self.taken_rows += len(block.rows)
            self.taken_bytes += size_bytes
        return verdict

    def take_all(self) -> list[PricedBlock]:
        """Hands over what waits, and forgets it."""
        blocks, self.taken, self.taken_rows, self.taken_bytes = self.taken, [], 0, 0
        return blocks

    def without_known_rows(self, block: PricedBlock) -> PricedBlock:
        """The block without the rows that the ledger has."""
        known = self.known.get(block.topic)
        if (
            not known or block.marks
        ):  # rows of corrections name another log; they replace themselves
            return block
        rows = [row for row in block.rows if row[_SOURCE_OFFSET] not in known]
        return PricedBlock(
            block.version,
            block.epoch,
            block.topic,
            block.partition,
            block.first_offset,
            block.next_offset,
            rows,
            block.rejected,
            block.duplicates,
            block.forwarded,
        )

    def _judge(self, block: PricedBlock, position: Position | None, priced_offset: int) -> Verdict:
        if position is None or block.epoch > position.epoch:
            joined = any(p.epoch == block.epoch for p in self.positions.values())
            if self.lost_before is not None and not joined:
                raise self._lost(block, 0, priced_offset)
            return Verdict.TAKE
        if block.epoch < position.epoch:
            raise Refused(
                f"{self._at(priced_offset)} is of log epoch {block.epoch}, but the ledger has "
                f"{block.topic} partition {block.partition} of epoch {position.epoch} already; "
                "this is an older Kafka than the ledger was written from"
            )
        if block.next_offset <= position.next_offset:
            return Verdict.KNOWN
        if block.first_offset == position.next_offset:
            return Verdict.TAKE
        if block.first_offset < position.next_offset:
            raise CorruptRecord(
                f"{self._at(priced_offset)} covers {block.topic} offsets {block.first_offset} to "
                f"{block.next_offset}, which overlaps what the ledger holds up to "
                f"{position.next_offset}"
            )
        return self._gap(block, position, priced_offset)

    def _gap(self, block: PricedBlock, position: Position, priced_offset: int) -> Verdict:
        jump = (block.topic, position.next_offset, block.first_offset)
        if jump != self._jump:
            self._jump = jump
            return Verdict.GAP
        raise self._lost(block, position.next_offset, priced_offset)

    def _lost(self, block: PricedBlock, have_up_to: int, priced_offset: int) -> Refused:
        why = "the blocks between are missing"
        if self.lost_before is not None:
            why = (
                f"{self.priced_topic} now starts at offset {self.lost_before}: blocks before it "
                "were deleted before the ledger had them"
            )
        return Refused(
            f"{self._at(priced_offset)} starts at {block.topic} partition {block.partition} "
            f"offset {block.first_offset}, but the ledger holds that partition up to offset "
            f"{have_up_to} only; {why}"
        )

    def _check(self, block: PricedBlock, priced_offset: int) -> None:
        records = (
            len(block.rows) + len(block.rejected) + len(block.duplicates) + len(block.forwarded)
        )
        if block.partition != self.partition:
            problem = f"is of source partition {block.partition}"
        elif not 0 <= block.first_offset <= block.next_offset:
            problem = f"covers offsets {block.first_offset} to {block.next_offset}"
        elif records > block.next_offset - block.first_offset:
            problem = f"has {records} records for {block.next_offset - block.first_offset} offsets"
        else:
            return
        raise CorruptRecord(f"{self._at(priced_offset)} {problem}")

    def _at(self, priced_offset: int) -> str:
        return f"the block at {self.priced_topic} partition {self.partition} offset {priced_offset}"


def first_offset_to_read(
    priced: str, positions: Mapping[str, Position], epoch: int | None, first: int, end: int
) -> tuple[int, int | None]:
    """Where reading a priced partition (called ``priced`` in messages) begins.

    ``epoch`` is the log's, if known; ``first`` and ``end`` are what Kafka has. Positions of an
    older log do not count. The second value is ``first`` if the ledger wanted an earlier offset,
    which is harmless when only transaction markers were deleted. Raises ``Refused`` when Kafka
    ends before what the ledger holds already.
    """
    newest = max((p.epoch for p in positions.values()), default=0) if epoch is None else epoch
    current = [p.priced_next_offset for p in positions.values() if p.epoch == newest]
    wanted = max(current, default=0)
    if wanted > end:
        raise Refused(
            f"{priced} ends at offset {end}, but the ledger holds its blocks up to offset "
            f"{wanted}; this Kafka has lost data or is another one"
        )
    return max(wanted, first), (first if first > wanted else None)
