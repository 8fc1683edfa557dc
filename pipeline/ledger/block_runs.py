"""Blocks that join end to end, and the manifests that will vouch for them."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.blocks import PricedBlock
from pipeline.ledger.columns import days_of
from pipeline.ledger.manifests import Manifest


@dataclass(frozen=True)
class Run:
    """Consecutive blocks of one priced partition.

    ``unwritten`` are the same blocks without the rows that the ledger has already.
    """

    priced_partition: int
    priced_next_offset: int
    blocks: Sequence[PricedBlock]
    unwritten: Sequence[PricedBlock]

    @property
    def has_known_rows(self) -> bool:
        """Whether the ledger has some of the rows already."""
        pairs = zip(self.blocks, self.unwritten, strict=True)
        return any(len(block.rows) != len(rest.rows) for block, rest in pairs)


def manifests_of(
    blocks: Sequence[PricedBlock], priced_partition: int, priced_next_offset: int
) -> list[Manifest]:
    """One manifest for each source log in ``blocks``, which must join end to end."""
    runs: dict[tuple[str, int, int], list[PricedBlock]] = {}
    for block in blocks:
        runs.setdefault((block.topic, block.partition, block.epoch), []).append(block)
    return [
        Manifest(
            epoch=epoch,
            topic=topic,
            partition=partition,
            first_offset=run[0].first_offset,
            next_offset=run[-1].next_offset,
            rows=sum(len(block.rows) for block in run),
            rejected=sum(len(block.rejected) for block in run),
            duplicates=sum(len(block.duplicates) for block in run),
            forwarded=sum(len(block.forwarded) for block in run),
            days=days_of(run),
            priced_partition=priced_partition,
            priced_next_offset=priced_next_offset,
        )
        for (topic, partition, epoch), run in runs.items()
    ]
