"""Which rows of a price list say what the rates on Kafka say already."""

from collections.abc import Mapping, Sequence

from pipeline.core.rates import FxRate, Rate, RateSet, Withdrawal, rate_record

_MADE_ID = "import:"
_OF_THE_RECORD = ("rate_id", "effective_from", "published_at", "backdated")


def standing_rates(rows: Sequence[Rate], there: RateSet) -> list[Rate | None]:
    """For each of ``rows`` the rate that makes it needless, None where it has to be written.

    That is the rate with its id, and for a row whose id was made up the one that would apply where
    the row begins, if it has the same prices and nobody withdraws it.
    """
    used = {item.rate.rate_id: item.rate for item in there.used}
    withdrawn: dict[str, int] = {}
    for rate in used.values():
        if isinstance(rate, Withdrawal):
            until_us = withdrawn.get(rate.withdraws, rate.effective_from_us)
            withdrawn[rate.withdraws] = min(until_us, rate.effective_from_us)
    new = [row for row in rows if row.rate_id not in used]
    candidates: dict[tuple[object, ...], list[Rate]] = {}
    for rate in (*used.values(), *new):  # in the order of the log, as if all were written
        candidates.setdefault(_what(rate), []).append(rate)

    def standing(row: Rate) -> Rate | None:
        same_id = used.get(row.rate_id)
        if same_id is not None or not row.rate_id.startswith(_MADE_ID):
            return same_id
        before = [
            rate
            for rate in candidates[_what(row)]
            if rate is not row and rate.effective_from_us <= row.effective_from_us
            if withdrawn.get(rate.rate_id, row.effective_from_us + 1) > row.effective_from_us
        ]
        # Of two that begin together the later record applies: sorting keeps their order.
        before.sort(key=lambda rate: rate.effective_from_us)
        last = before[-1] if before else None
        if last is None or last.rate_id not in used or last.rate_id in withdrawn:
            return None
        return last if _prices(last, there.currency) == _prices(row, there.currency) else None

    return [standing(row) for row in rows]


def _what(rate: Rate) -> tuple[object, ...]:
    """What a rate is for; only rates for the same replace each other."""
    if isinstance(rate, Withdrawal):
        return Withdrawal, rate.rate_id  # it replaces none
    if isinstance(rate, FxRate):
        return FxRate, rate.fx
    return type(rate), rate.provider, rate.model


def _prices(rate: Rate, currency: str) -> Mapping[str, object]:
    record = {"currency": currency, **rate_record(rate)}
    return {name: value for name, value in record.items() if name not in _OF_THE_RECORD}
