"""What resolved corrections do to a source table: deltas into its cells, each correction once.

That a correction was taken is remembered like an event's id. The position of the table alone tells
what was taken; the memory is for a log that is read again after a restore from the ledger, where
some of it may stand already.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.core.blocks import Mark
from pipeline.core.dedupe import DedupeWindow, correction_key
from pipeline.core.errors import CorruptRecord
from pipeline.core.resolved import decode_resolved
from pipeline.core.totals import SourceTotals


class ResolvedRecord(Protocol):
    """A record of ``tallyport.resolved`` as the consumer hands it over."""

    offset: int
    value: bytes | None


@dataclass(slots=True)
class Corrected:
    """What became of the records of one flush: ledger rows with marks, or offsets of repeats.

    ``offsets`` are those of the rows. ``last_number`` is of the last record, None without any.
    """

    offsets: list[int] = field(default_factory=list[int])
    rows: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    marks: list[Mark] = field(default_factory=list[Mark])
    repeats: list[int] = field(default_factory=list[int])
    keys: list[bytes] = field(default_factory=list[bytes])
    times_ms: list[int] = field(default_factory=list[int])
    last_number: int | None = None


def take_resolved(
    records: Sequence[ResolvedRecord], after: int, totals: SourceTotals, dedupe: DedupeWindow
) -> Corrected:
    """Adds the deltas of ``records``, which follow number ``after``, to the cells.

    ``after`` 0 lets any number come first. Raises ``CorruptRecord`` when one is missing or cannot
    be read; the message names its offset.
    """
    corrected = Corrected()
    for record in records:
        try:
            resolved = decode_resolved(record.value)
        except CorruptRecord as error:
            raise CorruptRecord(f"offset {record.offset}: {error}") from error
        if after and resolved.number != after + 1:
            raise CorruptRecord(
                f"offset {record.offset}: number {resolved.number} comes after {after}: resolved "
                "corrections were deleted, or came twice"
            )
        after = corrected.last_number = resolved.number
        event, entry = resolved.event, resolved.entry
        key = correction_key(event.port_id, resolved.correction_id)
        if not dedupe.admit([key], [resolved.recorded_at_ms])[0]:
            corrected.repeats.append(record.offset)
            continue
        totals.adjust(event, entry.requests, entry.cost_nano or 0, entry.unpriced_requests)
        corrected.offsets.append(record.offset)
        corrected.rows.append(resolved.row)
        corrected.marks.append(resolved.mark)
        corrected.keys.append(key)
        corrected.times_ms.append(resolved.recorded_at_ms)
    return corrected
