"""Why a price is what it is: the rate that applies, what lost against it and for what reason."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipeline.core.money import NANO_PER_UNIT, format_scaled, round_half_even
from pipeline.core.prices import Candidates, PriceVersion, Ruling, Status
from pipeline.core.rates import (
    PER_MILLION,
    IgnoredRecord,
    Multiplier,
    PriceRate,
    format_instant,
)
from pipeline.core.selection import Span, is_glob, matches
from pipeline.core.tariffs import COUNTERS, REQUEST, Prices, Tariff, own_price

Source = Literal["set rate", "book", "last resort", "none"]

# Exact amounts end within these; only an exchange rate or an hourly price can go on for ever.
SHOWN_DECIMALS = 15


@dataclass(frozen=True, slots=True)
class UnitPrice:
    """What ``per`` units of a counter cost, in the deployment's currency.

    ``like`` names the counter whose price is taken where it has none of its own. ``above`` is
    the number of input tokens from beyond which it applies. ``amount`` is a decimal string,
    rounded half to even to ``SHOWN_DECIMALS`` where it does not end earlier.
    """

    counter: str
    amount: str
    per: int
    like: str
    above: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """A rate that could have applied, and why it does not."""

    rate_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which price applies to a model at a time, and why; ``by_length`` prices events without
    tokens, where the book knows such a price."""

    provider: str
    model: str
    service_tier: str
    at: str
    status: Status
    source: Source
    rate_id: str
    why: str
    estimated: bool
    currency: str
    multiplier: str | None
    fx: str | None
    prices: tuple[UnitPrice, ...]
    by_length: tuple[UnitPrice, ...]
    lost: tuple[Lost, ...]
    rates_next_offset: int
    book_digest: str


def explain(
    version: PriceVersion, provider: str, model: str, at_us: int, service_tier: str = ""
) -> Explanation:
    """Explains the price of a call of ``model`` at ``at_us`` (microseconds since 1970)."""
    found = version.candidates(provider, model, service_tier)
    ruling = version.ruling_at(found, at_us)
    source, why = _reason(version, ruling)
    by_length = ruling.by_length[1] if ruling.by_length is not None else None
    is_usable = ruling.is_free or ruling.factor is not None
    return Explanation(
        provider=provider,
        model=model,
        service_tier=service_tier,
        at=format_instant(at_us),
        status="free" if ruling.is_free else "priced" if is_usable else "unpriced",
        source=source,
        rate_id=ruling.rate_id if is_usable else "",
        why=why,
        estimated=ruling.estimated,
        currency=version.currency,
        multiplier=ruling.multiplier.rate.rate_id if ruling.multiplier is not None else None,
        fx=ruling.fx.rate.rate_id if ruling.fx is not None else None,
        prices=_unit_prices(ruling.tariff, ruling.factor),
        by_length=_unit_prices(by_length, ruling.factor),
        lost=tuple(_lost(version, found, ruling, at_us)),
        rates_next_offset=version.key[0],
        book_digest=version.key[1],
    )


def dearest_token_nano(
    version: PriceVersion, provider: str, model: str, at_us: int, service_tier: str = ""
) -> Fraction:
    """The dearest price of one token at that time, in nanos; 0 where nothing prices tokens."""
    ruling = version.ruling_at(version.candidates(provider, model, service_tier), at_us)
    if ruling.tariff is None or ruling.factor is None:
        return Fraction(0)
    tables = (ruling.tariff.prices, *(prices for _, prices in ruling.tariff.brackets))
    prices = [
        price for table in tables for name, price in table.items() if name.endswith("_tokens")
    ]
    return max(prices, default=Fraction(0)) * ruling.factor


def _reason(version: PriceVersion, ruling: Ruling) -> tuple[Source, str]:
    if ruling.is_free:
        return "book", "the built-in book lists this provider as free"
    source: Source = "last resort" if ruling.estimated else "set rate"
    if ruling.listing is not None:
        source = "book"
        why = f"no set rate matches; the built-in book lists {ruling.listing.name}"
    elif ruling.rate is None:
        return "none", "no set rate matches, and the built-in book does not list this model"
    elif ruling.estimated:
        why = "nothing else matches; the rate for every provider and model is the last resort"
    else:
        why = f"set rate for {_names(ruling.rate.rate)}"
    if ruling.factor is None:
        why += f"; but no fx rate converts {ruling.currency} to {version.currency} at this time"
    return source, why


def _lost(version: PriceVersion, found: Candidates, ruling: Ruling, at_us: int) -> Iterator[Lost]:
    chosen = None if ruling.estimated else ruling.rate
    yield from _lost_spans(found.rates, chosen, at_us)
    if found.listing is not None and chosen is not None:
        book_id, _ = found.listing.tariff_at(at_us, found.service_tier)
        yield Lost(book_id, "a set rate beats the built-in book")
    if ruling.estimated:
        yield from _lost_spans(found.last_resort, ruling.rate, at_us)
    else:
        last = "a rate for every provider and model applies only where nothing else does"
        for span in found.last_resort:
            yield Lost(span.rate.rate_id, _inactive(span, at_us) or last)
    if ruling.is_free:
        for span in found.multipliers:
            yield Lost(span.rate.rate_id, "what is free is not multiplied")
    else:
        yield from _lost_spans(found.multipliers, ruling.multiplier, at_us)
    for record in version.rates.ignored:
        if _concerns(record, found.provider, found.model):
            yield Lost(record.rate_id, f"not used ({record.reason}): {record.detail}")


def _lost_spans(
    spans: tuple[Span[PriceRate], ...] | tuple[Span[Multiplier], ...],
    chosen: Span[PriceRate] | Span[Multiplier] | None,
    at_us: int,
) -> Iterator[Lost]:
    for span in spans:
        if span is chosen:
            continue
        reason = _inactive(span, at_us)
        if reason is None and chosen is not None:
            reason = _beaten(chosen, span)
        yield Lost(span.rate.rate_id, reason or "nothing to apply it to")


def _inactive(span: Span[PriceRate] | Span[Multiplier], at_us: int) -> str | None:
    if at_us < span.rate.effective_from_us:
        return f"begins later, at {format_instant(span.rate.effective_from_us)}"
    if at_us >= span.until_us:
        return f"withdrawn by {span.withdrawn_by} from {format_instant(span.until_us)}"
    return None


def _beaten(
    winner: Span[PriceRate] | Span[Multiplier], loser: Span[PriceRate] | Span[Multiplier]
) -> str:
    """The first rule of the order of preference by which ``winner`` goes before ``loser``."""
    for field in ("model", "provider"):
        won, lost = getattr(winner.rate, field), getattr(loser.rate, field)
        if is_glob(lost) and not is_glob(won):
            return f"{winner.rate.rate_id} names the {field} exactly, this one by a glob"
        if is_glob(lost) and len(won) > len(lost):
            return f"{winner.rate.rate_id} has the longer glob for the {field}"
    if winner.rate.effective_from_us > loser.rate.effective_from_us:
        return f"{winner.rate.rate_id} is effective from a later time"
    return f"{winner.rate.rate_id} is the later record"


def _concerns(record: IgnoredRecord, provider: str, model: str) -> bool:
    rate = record.rate
    return (
        isinstance(rate, PriceRate | Multiplier)
        and matches(rate.provider, provider)
        and matches(rate.model, model)
    )


def _unit_prices(tariff: Tariff | None, factor: Fraction | None) -> tuple[UnitPrice, ...]:
    if tariff is None or factor is None:
        return ()
    found = list(_bracket_prices(tariff.prices, factor, 0))
    for start, prices in tariff.brackets:
        base = _own_prices(tariff.prices)
        changed = {name for name, price in _own_prices(prices).items() if base.get(name) != price}
        found += [p for p in _bracket_prices(prices, factor, start) if p.counter in changed]
    return tuple(found)


def _own_prices(prices: Prices) -> dict[str, Fraction]:
    """Nanos per unit of every counter that has a price, of its own or of its whole."""
    found = {name: own_price(prices, name) for name in (*COUNTERS, REQUEST)}
    return {name: price[1] for name, price in found.items() if price is not None}


def _bracket_prices(prices: Prices, factor: Fraction, above: int) -> Iterator[UnitPrice]:
    for counter in (*COUNTERS, REQUEST):
        found = own_price(prices, counter)
        if found is not None:
            per = 1_000_000 if counter in PER_MILLION else 1
            amount = found[1] * factor * per / NANO_PER_UNIT
            yield UnitPrice(counter, _shown(amount), per, found[0], above)


def _shown(amount: Fraction) -> str:
    digits = round_half_even(amount.numerator * 10**SHOWN_DECIMALS, amount.denominator)
    return format_scaled(digits, SHOWN_DECIMALS)


def _names(rate: PriceRate) -> str:
    return f"provider {rate.provider}, model {rate.model}"
