"""Where every record ended: priced blocks, rejected records and forwarded copies."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pipeline.audit.differences import Findings, Kind
from pipeline.audit.recount.count import PartitionCount, Recount, record_digest
from pipeline.audit.recount.envelopes import Headers
from pipeline.audit.recount.events import REASONS

ADDED_HEADERS = ("reason", "detail", "source-topic", "source-partition", "source-offset")
"""What the worker adds to a rejected record, behind the headers it came with."""


class Block(NamedTuple):
    """A run of source offsets ``[first_offset, next_offset)`` and the fates in it, by offset."""

    partition: int
    first_offset: int
    next_offset: int
    accepted: Sequence[int]
    rejected: Sequence[int]
    duplicates: Sequence[int]
    forwarded: Sequence[int]


class BlockChain:
    """The priced blocks of one partition, which must join end to end and tell the same fates.

    ``reached`` is the end of the last block that was fed, ``priced_next_offset`` where reading goes
    on. Where the first blocks are gone, the chain begins with the first there is.
    """

    def __init__(self, count: PartitionCount, partition: int, starts_at: int | None) -> None:
        self._count = count
        self._partition = partition
        self.began_at = self.reached = starts_at
        self.priced_next_offset = 0

    def feed(self, findings: Findings, block: Block, priced_offset: int) -> None:
        """Compares the next block; the recount must have come further."""
        self.priced_next_offset = priced_offset + 1
        if self.reached is None:
            self.began_at = self.reached = block.first_offset
        if block.first_offset != self.reached:
            findings.add(
                Kind.BLOCK_GAP,
                "blocks",
                "offset after a block",
                self.reached,
                block.first_offset,
                partition=self._partition,
                offset=self.reached,
            )
        self.reached = max(self.reached, block.next_offset)
        if self._count.counts_from <= block.first_offset:
            _compare_block(findings, self._count, block)


def _compare_block(findings: Findings, count: PartitionCount, block: Block) -> None:
    findings.compared["priced blocks"] += 1
    told = {
        "accepted": (count.accepted.offsets, block.accepted),
        "rejected": (count.rejected.offsets, block.rejected),
        "duplicates": (count.duplicates, block.duplicates),
        "forwarded": (count.forwarded.offsets, block.forwarded),
    }
    for fate, (offsets, found) in told.items():
        start = bisect_left(offsets, block.first_offset)
        wanted = offsets[start : bisect_left(offsets, block.next_offset)]
        if wanted == array("q", found):
            continue
        for offset in sorted(set(wanted) ^ set(found)):
            findings.add(
                Kind.BLOCK_FATE,
                "blocks",
                f"fate {fate}",
                count.fate_of(offset),
                fate if offset in set(found) else "another",
                partition=block.partition,
                offset=offset,
                amounts={fate: 1 if offset in set(found) else -1},
            )


# -- rejected records ------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """A record of ``usage.rejected``: where in ``usage.events`` it stood, why, and its digest."""

    partition: int
    offset: int
    reason: str
    digest: bytes


def refusal_digest(key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    """The digest of a refusal without what the worker added; it covers the reason."""
    added = headers[-len(ADDED_HEADERS) :]
    reason = ""
    if tuple(name for name, _ in added) == ADDED_HEADERS:
        headers, reason = headers[: -len(added)], (added[0][1] or b"").decode(errors="replace")
    return record_digest(key, value, headers, reason)


def compare_refusals(
    findings: Findings, recount: Recount, refusals: Iterable[Refusal], cuts: Mapping[int, int]
) -> None:
    """``usage.rejected`` against what the recount rejects: the same bytes, headers and reason.

    A record may stand there twice after a crash, but then both times as it was sent.
    """
    for count in recount.counts.values():
        count.rejected.forget_seen()
    for refusal in refusals:
        count = recount.counts.get(refusal.partition)
        if count is not None and count.counts_from <= refusal.offset < cuts[refusal.partition]:
            _compare_refusal(findings, count, refusal)
    for partition, count in recount.counts.items():
        end = count.rejected.below(cuts.get(partition, 0))
        findings.compared["rejected"] += end
        for at in count.rejected.unseen(0, end):
            findings.add(
                Kind.REFUSAL_MISSING,
                "rejected",
                "record",
                REASONS[count.rejected.note(at)],
                "none",
                partition=partition,
                offset=count.rejected.offsets[at],
                amounts={"rejected": -1},
            )


def _compare_refusal(findings: Findings, count: PartitionCount, refusal: Refusal) -> None:
    partition, offset = refusal.partition, refusal.offset
    at = count.rejected.find(refusal.offset)
    if at is None:
        fate = count.fate_of(refusal.offset)
        findings.add(
            Kind.REFUSAL_UNEXPECTED, "rejected", "record", fate, refusal.reason,
            amounts={"rejected": 1}, partition=partition, offset=offset,
        )  # fmt: skip
        return
    count.rejected.see(at)
    reason = REASONS[count.rejected.note(at)]
    if refusal.reason != reason:
        findings.add(
            Kind.REFUSAL_CHANGED, "rejected", "reason", reason, refusal.reason,
            amounts={}, partition=partition, offset=offset,
        )  # fmt: skip
    elif refusal.digest != count.rejected.digest(at):
        what = "key, value and headers"
        findings.add(
            Kind.REFUSAL_CHANGED,
            "rejected",
            what,
            "as sent",
            "changed",
            amounts={},
            partition=partition,
            offset=offset,
        )


# -- forwarded records -----------------------------------------------------------------------------


def missing_copies(recount: Recount, cuts: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Partition, offset and home of forwarded records that have not arrived as they were sent."""
    missing: list[tuple[int, int, int]] = []
    for partition, count in recount.counts.items():
        for at in range(count.forwarded.below(cuts.get(partition, 0))):
            home = count.forwarded.note(at)
            digest = int.from_bytes(count.forwarded.digest(at))
            if not recount.counts[home].arrived.has_near(digest, 0, 0):
                missing.append((partition, count.forwarded.offsets[at], home))
    return missing


def compare_copies(findings: Findings, recount: Recount, cuts: Mapping[int, int]) -> None:
    """Every forwarded record must have arrived at home with the bytes and time it had."""
    for partition, count in recount.counts.items():
        findings.compared["forwarded"] += count.forwarded.below(cuts.get(partition, 0))
    for partition, offset, home in missing_copies(recount, cuts):
        findings.add(
            Kind.COPY_MISSING,
            "forwarded",
            "copy with the same key, value, headers and time",
            f"on partition {home}",
            "none",
            partition=partition,
            offset=offset,
            amounts={"forwarded": -1},
        )
    arrived = sum(len(count.arrived) for count in recount.counts.values())
    forwarded = sum(len(count.forwarded) for count in recount.counts.values())
    if arrived > forwarded and not any(c.is_cut_off for c in recount.counts.values()):
        findings.notes.append(
            f"{arrived - forwarded} records carry a header forwarded-from that no worker wrote; "
            "their age was judged by it"
        )
