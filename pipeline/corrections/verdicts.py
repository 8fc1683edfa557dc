"""The verdict on each correction of a batch, in order: an entry, a refusal, or a repeat."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka.structs import ConsumerRecord

from pipeline.core.corrections import Correction, Entry, Standing, decode_correction, resolve
from pipeline.core.prices import PriceVersion
from pipeline.core.rejections import UNKNOWN_EVENT, UNKNOWN_RATE, WRONG_CURRENCY, Rejection
from pipeline.corrections.entries import EventKey

_OF_RATES = {UNKNOWN_RATE, WRONG_CURRENCY}


@dataclass(slots=True)
class Verdicts:
    """What becomes of the records of a batch."""

    accepted: list[tuple[ConsumerRecord, Correction, Entry]] = field(
        default_factory=list[tuple[ConsumerRecord, Correction, Entry]]
    )
    rejected: list[tuple[ConsumerRecord, Rejection]] = field(
        default_factory=list[tuple[ConsumerRecord, Rejection]]
    )
    repeats: int = 0

    @property
    def doubt_rates(self) -> bool:
        """Whether a rate that has just been published could change one of them."""
        return any(rejection.reason in _OF_RATES for _, rejection in self.rejected)


_Decoded = tuple[ConsumerRecord, Correction | Rejection]


def batches_of(records: Iterable[ConsumerRecord]) -> "Iterator[Batch]":
    """The records in runs that name each event with one day only.

    An id that came again after the dedupe horizon is another event of another day. Each run looks
    up one of them, and what was resolved in the run before counts.
    """
    run: list[_Decoded] = []
    days: dict[EventKey, str] = {}
    for record in records:
        correction = decode_correction(record.value)
        if isinstance(correction, Correction):
            key = (correction.port_id, correction.event_id)
            if days.setdefault(key, correction.day) != correction.day:
                yield Batch(run)
                run, days = [], {key: correction.day}
        run.append((record, correction))
    if run:
        yield Batch(run)


class Batch:
    """Records that are resolved together. ``keys`` are the events they name, with their days."""

    def __init__(self, decoded: Sequence[_Decoded]) -> None:
        self._decoded = decoded

    @property
    def records(self) -> list[ConsumerRecord]:
        """As they came."""
        return [record for record, _ in self._decoded]

    @property
    def keys(self) -> dict[EventKey, str]:
        """Event → the day its sender says it occurred on, or an empty string."""
        return {(c.port_id, c.event_id): c.day for c in self._corrections()}

    @property
    def ids(self) -> set[str]:
        """The ids of the corrections."""
        return {correction.correction_id for correction in self._corrections()}

    def judge(
        self,
        known_ids: set[str],
        standings: Mapping[EventKey, Standing],
        prices: PriceVersion,
    ) -> Verdicts:
        """Each correction after those before it; changes nothing that it was given."""
        verdicts = Verdicts()
        taken, now = set(known_ids), dict(standings)
        for record, correction in self._decoded:
            if isinstance(correction, Rejection):
                verdicts.rejected.append((record, correction))
                continue
            if correction.correction_id in taken:
                verdicts.repeats += 1
                continue
            key = (correction.port_id, correction.event_id)
            found = self._resolved(correction, now.get(key), prices)
            if isinstance(found, Rejection):
                verdicts.rejected.append((record, found))
                continue
            entry, now[key] = found
            taken.add(correction.correction_id)
            verdicts.accepted.append((record, correction, entry))
        return verdicts

    def _corrections(self) -> list[Correction]:
        return [found for _, found in self._decoded if isinstance(found, Correction)]

    @staticmethod
    def _resolved(
        correction: Correction, standing: Standing | None, prices: PriceVersion
    ) -> tuple[Entry, Standing] | Rejection:
        if standing is None:
            detail = f"event_id: port {correction.port_id} has no such event in the ledger"
            return Rejection(UNKNOWN_EVENT, detail)
        return resolve(correction, standing, prices)
