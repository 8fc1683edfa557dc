"""What an event costs: one version of all prices, and the choice among them.

A version is a position in the rates log, the built-in book and the deployment's currency. For
each provider, model and service tier it makes a plan once: who prices which stretch of time,
with an integer table. Pricing an event is then a look-up and a few multiplications.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, NamedTuple

import msgspec

from pipeline.core.book import CURRENCY as BOOK_CURRENCY
from pipeline.core.book import DAY_US, Book, Listing, Season
from pipeline.core.event_fields import COUNTERS
from pipeline.core.events import Event, PricedEvent
from pipeline.core.money import MAX_NANO
from pipeline.core.rates import FxRate, Multiplier, PriceRate, RateSet
from pipeline.core.selection import (
    NEVER_US,
    Span,
    first_at,
    matching,
    newest_first,
    rank,
    spans_of,
)
from pipeline.core.tariffs import Table, Tariff, nano_per_unit

Status = Literal["priced", "free", "unpriced"]

# Bounds the memory that made-up model names can take; a full cache starts afresh.
MAX_PLANS = 4096
_ALWAYS_US = -NEVER_US


class Price(msgspec.Struct, frozen=True, gc=False):
    """``cost_nano`` is None exactly when ``status`` is ``unpriced``; then ``rate_id`` is empty.

    ``estimated`` marks a price of last resort (a rate for every provider and model).
    """

    cost_nano: int | None
    rate_id: str
    status: Status
    estimated: bool = False


SELF_HOSTED = Price(0, "self-hosted", "free")
CACHE_HIT = Price(0, "cache-hit", "free")
UNPRICED = Price(None, "", "unpriced")
_BY_FLAG = {price.rate_id: price for price in (SELF_HOSTED, CACHE_HIT)}


@dataclass(frozen=True, slots=True)
class Ruling:
    """Who prices at one time: the rate and what modifies it.

    ``tariff`` is in ``currency``; None when nothing matches. ``factor`` holds the multiplier and
    the exchange rate; None when the currency cannot be converted. ``by_length`` is what prices
    an event without tokens instead, where the book has such a price.
    """

    rate_id: str = ""
    tariff: Tariff | None = None
    currency: str = BOOK_CURRENCY
    factor: Fraction | None = None
    rate: Span[PriceRate] | None = None
    listing: Listing | None = None
    multiplier: Span[Multiplier] | None = None
    fx: Span[FxRate] | None = None
    estimated: bool = False
    by_length: tuple[str, Tariff] | None = None

    @property
    def is_free(self) -> bool:
        return self.listing is not None and self.listing.is_free


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything that can rule for one provider, model and service tier, best first."""

    provider: str
    model: str
    service_tier: str
    rates: tuple[Span[PriceRate], ...]
    listing: Listing | None
    last_resort: tuple[Span[PriceRate], ...]
    multipliers: tuple[Span[Multiplier], ...]
    fx: dict[str, tuple[Span[FxRate], ...]]

    def edges_us(self) -> list[int]:
        """Every time at which the ruling can change, in order."""
        spans = [*self.rates, *self.last_resort, *self.multipliers]
        edges = {edge for span in spans for edge in span.edges()}
        edges.update(edge for fx in self.fx.values() for span in fx for edge in span.edges())
        edges.update(s.start_us for s in self._seasons() if s.start_us is not None)
        return sorted(edges - {NEVER_US})

    def day_edges_us(self) -> list[int]:
        """Every time of day at which the ruling can change, in order, midnight excluded."""
        windows = [s.window_us for s in self._seasons() if s.window_us is not None]
        return sorted({edge for window in windows for edge in window} - {0})

    def _seasons(self) -> Iterable[Season]:
        return self.listing.seasons(self.service_tier) if self.listing is not None else ()


class Quote:
    """A price to be had: a table and what its prices are called, or one ``fixed`` answer."""

    __slots__ = ("by_length", "estimated", "fixed", "rate_id", "table")

    def __init__(
        self,
        fixed: Price = UNPRICED,
        *,
        rate_id: str = "",
        table: Table | None = None,
        estimated: bool = False,
        by_length: "Quote | None" = None,
    ) -> None:
        self.fixed = fixed
        self.rate_id = rate_id
        self.table = table
        self.estimated = estimated
        self.by_length = by_length

    def price(self, event: Event) -> Price:
        """The price of an event that this quote is for."""
        quote = self
        if quote.by_length is not None and not event.input_tokens and not event.output_tokens:
            quote = quote.by_length
        table = quote.table
        if table is None:
            return quote.fixed
        cost_nano = table.cost_nano(event)
        if cost_nano is None:
            return UNPRICED
        return Price(cost_nano, quote.rate_id, "priced", quote.estimated)


_NO_QUOTE = Quote()


class Plan:
    """Quotes over time, each made when the first event asks for its stretch.

    Stretch ``i + 1`` begins at ``starts_us[i]``; ``make`` gives the quote for the stretch that
    begins at a time. A quote may itself be a plan, then over the microseconds of a UTC day.
    """

    __slots__ = ("_make", "_quotes", "_starts_us")

    def __init__(self, starts_us: list[int], make: "Callable[[int], Quote | Plan]") -> None:
        self._starts_us = starts_us
        self._make = make
        self._quotes: list[Quote | Plan | None] = [None] * (len(starts_us) + 1)

    def at(self, at_us: int) -> Quote:
        found, _, _ = self.stretch_at(at_us)
        return found if isinstance(found, Quote) else found.at(at_us % DAY_US)

    def stretch_at(self, at_us: int) -> "tuple[Quote | Plan, int, int]":
        """What applies at a time, from when on, and until when (exclusive)."""
        starts_us = self._starts_us
        index = bisect_right(starts_us, at_us)
        since_us = starts_us[index - 1] if index else _ALWAYS_US
        found = self._quotes[index]
        if found is None:
            found = self._quotes[index] = self._make(since_us)
        return found, since_us, starts_us[index] if index < len(starts_us) else NEVER_US


Usual = tuple[int, int, int, int, int, int, int, int, int, str, bool]
"""What prices an event of input, cached and output tokens only, from when on and until when
(microseconds, exclusive), if its input tokens are not above a bound; then what the request and one
token of each costs over a denominator, half of that, the name of the rate and whether that is one
of last resort."""


class PerCount(NamedTuple):
    """What prices events without flags and audio, from when on and until when (exclusive): see
    ``Table.per_count`` for what it is and for which of them; then the name of the rate and whether
    that is one of last resort."""

    since_us: int
    until_us: int
    most_input: int
    request: int
    per_count: tuple[int, ...]
    denominator: int
    rate_id: str
    estimated: bool


class Fixed(NamedTuple):
    """One price for every event without flags, from when on and until when (exclusive)."""

    since_us: int
    until_us: int
    price: Price


def _per_count(found: Quote | Plan, since_us: int, until_us: int) -> PerCount:
    """What prices a stretch of time; where that depends on more, what prices no event at all."""
    if isinstance(found, Quote) and found.table is not None and found.by_length is None:
        prices = found.table.per_count()
        if prices is not None:
            return PerCount(since_us, until_us, *prices, found.rate_id, found.estimated)
    return PerCount(since_us, until_us, -1, 0, (0,) * len(COUNTERS), 1, "", False)


_INPUT, _CACHED, _OUTPUT = map(
    COUNTERS.index, ("input_tokens", "cached_input_tokens", "output_tokens")
)


def _usual_row(found: Quote | Plan, since_us: int, until_us: int) -> Usual:
    """The same as a row of ``Usual``."""
    _, _, most, request, each, den, rate_id, estimated = _per_count(found, since_us, until_us)
    per_token = each[_INPUT], each[_CACHED], each[_OUTPUT]
    return since_us, until_us, most, request, *per_token, den, den // 2, rate_id, estimated


class PriceVersion:
    """All prices as of one position in the rates log; immutable but for its cache of plans.

    ``currency`` is the deployment's. ``key`` identifies the version.
    """

    def __init__(self, rates: RateSet, book: Book) -> None:
        self.rates = rates
        self.book = book
        self.currency = rates.currency
        self.key: tuple[int, str] = (rates.next_offset, book.digest)
        spans = spans_of(rates.used)
        self._rates = [span for span in spans.prices if not span.rate.is_last_resort]
        self._last_resort = [span for span in spans.prices if span.rate.is_last_resort]
        self._multipliers = spans.multipliers
        self._fx = spans.fx
        self._used = {entry.rate.rate_id: entry.rate for entry in rates.used}
        self._inconvertible = {
            record.rate_id for record in rates.ignored if record.reason == "wrong-currency"
        }
        self._plans: dict[tuple[str, str, str], Plan | Quote] = {}
        self._usual: dict[tuple[str, str, str], Usual] = {}
        self._quotes: dict[tuple[str, Fraction, bool], Quote] = {}
        self._candidates: dict[tuple[str, str, str], Candidates] = {}

    def price(self, event: Event) -> Price:
        """The price of ``event``, which must be valid (its parts within their wholes)."""
        if event.self_hosted:
            return SELF_HOSTED
        if event.cache_hit:
            return CACHE_HIT
        quote = self._plan((event.provider, event.model, event.service_tier))
        if isinstance(quote, Plan):
            quote = quote.at(event.occurred_at_us)
        return quote.price(event)

    def price_all(self, events: Iterable[PricedEvent]) -> int:
        """Puts into each event its price (see ``price``); returns how many are unpriced.

        Most events are tokens in, tokens cached and tokens out, at the price that the event before
        had; these are priced here, from a row of ``Usual``, as ``Table.cost_nano`` prices them.
        """
        rows, unpriced = self._usual, 0
        for event in events:
            row = rows.get((event.provider, event.model, event.service_tier))
            at_us = event.occurred_at_us
            if row is None or not row[0] <= at_us < row[1]:
                row = self._usual_at(event)
            _, _, most, request, per_input, per_cached, per_output, den, half, rate_id, guess = row
            inputs = event.input_tokens
            if (
                inputs > most
                or event.self_hosted
                or event.cache_hit
                # ``has_rare_counts``, whose call would take as long as all else here.
                or event.reasoning_tokens
                or event.cache_write_tokens
                or event.cache_write_1h_tokens
                or event.input_audio_tokens
                or event.input_image_tokens
                or event.output_audio_tokens
                or event.characters
                or event.images
                or event.web_searches
                or event.audio_nano
            ):
                unpriced += self._put_price(event)
                continue
            cost_nano = request + inputs * per_input + event.output_tokens * per_output
            cost_nano += event.cached_input_tokens * per_cached
            if den != 1:
                cost_nano, rest = divmod(cost_nano, den)
                if rest > half or (rest + rest == den and cost_nano & 1):
                    cost_nano += 1
            if cost_nano > MAX_NANO:
                unpriced += self._put_price(event)
                continue
            event.cost_nano = cost_nano
            event.rate_id = rate_id
            event.price_status = "priced"
            event.price_estimated = guess
        return unpriced

    def _put_price(self, event: PricedEvent) -> bool:
        """Puts its price into ``event``; whether it has none."""
        price = self.price(event)
        event.cost_nano = price.cost_nano
        event.rate_id = price.rate_id
        event.price_status = price.status
        event.price_estimated = price.estimated
        return price.cost_nano is None

    def _plan(self, key: tuple[str, str, str]) -> Plan | Quote:
        """What applies to a provider, model and service tier, kept from the first time on."""
        return self._plans.get(key) or self._new_plan(key)

    def price_at(self, key: tuple[str, str, str], at_us: int) -> PerCount | Fixed:
        """What prices events of a provider, model and service tier around ``at_us``.

        ``PerCount`` is for no event at all where each has to be looked at (see ``price``).
        """
        found, since_us, until_us = self._stretch_at(key, at_us)
        if isinstance(found, Quote) and found.table is None:
            return Fixed(since_us, until_us, found.fixed)
        return _per_count(found, since_us, until_us)

    def _stretch_at(self, key: tuple[str, str, str], at_us: int) -> tuple[Quote | Plan, int, int]:
        plan = self._plan(key)
        return plan.stretch_at(at_us) if isinstance(plan, Plan) else (plan, _ALWAYS_US, NEVER_US)

    def _usual_at(self, event: Event) -> Usual:
        """The row for events like ``event``, from now on."""
        key = (event.provider, event.model, event.service_tier)
        row = _usual_row(*self._stretch_at(key, event.occurred_at_us))
        if len(self._usual) >= MAX_PLANS:
            self._usual.clear()
        self._usual[key] = row
        return row

    def price_by(self, rate_id: str, event: Event) -> Price | Literal["unknown", "currency"]:
        """The price of ``event`` by one rate, RATE or RATE*MULTIPLIER, whenever they apply.

        A rate of the built-in book must be one of the event's own model. ``"unknown"``: no such
        rate is used; ``"currency"``: it cannot be converted at the time of the event.
        """
        if rate_id in _BY_FLAG:
            return _BY_FLAG[rate_id] if _flag_of(event) == rate_id else "unknown"
        ruling = self._ruling_named(rate_id, event)
        if ruling is None:
            foreign = rate_id.partition("*")[0] in self._inconvertible
            return "currency" if foreign else "unknown"
        if flag := _flag_of(event):
            return _BY_FLAG[flag]
        if ruling.factor is None and not ruling.is_free:
            return "currency"
        return self._quote(ruling).price(event)

    def later_rate(self, event: Event) -> str | None:
        """The set rate that prices ``event`` although it began to apply only afterwards.

        Of those that match equally well the first that began; None without one.
        """
        found = self._known_candidates(event)
        at_us = event.occurred_at_us
        later = [
            span
            for span in (*found.rates, *found.last_resort)
            if span.rate.effective_from_us > at_us and span.until_us > span.rate.effective_from_us
        ]
        if not later:
            return None
        best = max(later, key=lambda span: (*rank(span)[:4], -span.rate.effective_from_us))
        return best.rate.rate_id

    def _known_candidates(self, event: Event) -> Candidates:
        """The candidates for an event, found once."""
        key = (event.provider, event.model, event.service_tier)
        found = self._candidates.get(key)
        if found is None:
            if len(self._candidates) >= MAX_PLANS:
                self._candidates.clear()
            found = self._candidates[key] = self.candidates(*key)
        return found

    def _ruling_named(self, rate_id: str, event: Event) -> Ruling | None:
        name, star, multiplier_id = rate_id.partition("*")
        factor, suffix = Fraction(1), ""
        if star:
            multiplier = self._used.get(multiplier_id)
            if not isinstance(multiplier, Multiplier):
                return None
            factor, suffix = Fraction(multiplier.factor), f"*{multiplier_id}"
        rate = self._used.get(name)
        if isinstance(rate, PriceRate):
            currency = rate.currency or self.currency
            tariff, listing, by_length = tariff_of(rate), None, None
        elif (listing := self._known_candidates(event).listing) is not None:
            tier, currency, rate = event.service_tier, BOOK_CURRENCY, None
            book_id, tariff = listing.tariff_at(event.occurred_at_us, tier)
            by_length = listing.by_length_at(event.occurred_at_us)
            if name not in (book_id, by_length[0] if by_length else book_id):
                return None
            name = book_id
            by_length = by_length and (by_length[0] + suffix, by_length[1])
        else:
            return None
        if currency != self.currency:
            fx = first_at(newest_first(self._fx, currency), event.occurred_at_us)
            factor = None if fx is None else factor * Fraction(fx.rate.rate)
        return Ruling(
            name + suffix,
            tariff,
            currency,
            factor,
            listing=listing,
            estimated=rate is not None and rate.is_last_resort,
            by_length=by_length,
        )

    def candidates(self, provider: str, model: str, service_tier: str = "") -> Candidates:
        """What can rule for these references, whatever the time."""
        rates = matching(self._rates, provider, model)
        last_resort = matching(self._last_resort, provider, model)
        currencies = {span.rate.currency for span in (*rates, *last_resort)} - {None}
        fx = {
            currency: tuple(newest_first(self._fx, currency))
            for currency in (*currencies, BOOK_CURRENCY)
            if currency is not None and currency != self.currency
        }
        return Candidates(
            provider=provider,
            model=model,
            service_tier=service_tier,
            rates=tuple(rates),
            listing=self.book.find(provider, model),
            last_resort=tuple(last_resort),
            multipliers=tuple(matching(self._multipliers, provider, model)),
            fx=fx,
        )

    def ruling_at(self, found: Candidates, at_us: int, time_us: int | None = None) -> Ruling:
        """Which of the candidates prices an event of that time, and how.

        ``time_us`` replaces the time of day (microseconds, UTC) where the book asks for it.
        """
        rate = first_at(found.rates, at_us)
        if rate is None and found.listing is not None:
            book_us = at_us if time_us is None else at_us - at_us % DAY_US + time_us
            rate_id, tariff = found.listing.tariff_at(book_us, found.service_tier)
            by_length = found.listing.by_length_at(book_us)
            ruling = Ruling(rate_id, tariff, listing=found.listing, by_length=by_length)
            return ruling if ruling.is_free else self._modified(ruling, found, at_us)
        estimated = rate is None
        if rate is None:
            rate = first_at(found.last_resort, at_us)
        if rate is None:
            return Ruling()
        ruling = Ruling(
            rate.rate.rate_id,
            tariff_of(rate.rate),
            rate.rate.currency or self.currency,
            rate=rate,
            estimated=estimated,
        )
        return self._modified(ruling, found, at_us)

    def _modified(self, ruling: Ruling, found: Candidates, at_us: int) -> Ruling:
        """``ruling`` with the best multiplier and the exchange rate of the time."""
        factor = Fraction(1)
        rate_id, by_length = ruling.rate_id, ruling.by_length
        multiplier = first_at(found.multipliers, at_us)
        if multiplier is not None:
            factor *= Fraction(multiplier.rate.factor)
            suffix = f"*{multiplier.rate.rate_id}"
            rate_id += suffix
            by_length = None if by_length is None else (by_length[0] + suffix, by_length[1])
        fx = None
        if ruling.currency != self.currency:
            fx = first_at(found.fx.get(ruling.currency, ()), at_us)
        convertible = fx is not None or ruling.currency == self.currency
        if fx is not None:
            factor *= Fraction(fx.rate.rate)
        return Ruling(
            rate_id,
            ruling.tariff,
            ruling.currency,
            factor if convertible else None,
            ruling.rate,
            ruling.listing,
            multiplier,
            fx,
            ruling.estimated,
            by_length,
        )

    def _new_plan(self, key: tuple[str, str, str]) -> "Plan | Quote":
        found = self.candidates(*key)
        edges_us = found.edges_us()
        plan: Plan | Quote = (
            Plan(edges_us, lambda start_us: self._quotes_from(found, start_us))
            if edges_us or found.day_edges_us()
            else self._quote(self.ruling_at(found, _ALWAYS_US))
        )
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    def _quotes_from(self, found: Candidates, at_us: int) -> "Quote | Plan":
        """The quote from ``at_us`` on, by time of day where that matters."""
        times_us = found.day_edges_us()
        if not times_us:
            return self._quote(self.ruling_at(found, at_us))

        def at_time_of_day(time_us: int) -> Quote:
            # The book's dates begin at midnight UTC, so its part of the ruling depends on the
            # day and the time of day alone; the rest stays as it is at the stretch's start.
            return self._quote(self.ruling_at(found, at_us, max(time_us, 0)))

        return Plan(times_us, at_time_of_day)

    def _quote(self, ruling: Ruling) -> Quote:
        if ruling.is_free:
            return Quote(Price(0, ruling.rate_id, "free"))
        if ruling.tariff is None or ruling.factor is None:
            return _NO_QUOTE
        # A rate_id names one tariff in one version, so models that share a rate share a table.
        known = (ruling.rate_id, ruling.factor, ruling.by_length is not None)
        quote = self._quotes.get(known)
        if quote is None:
            quote = Quote(
                rate_id=ruling.rate_id,
                table=Table(ruling.tariff, ruling.factor),
                estimated=ruling.estimated,
            )
            if ruling.by_length is not None:
                name, tariff = ruling.by_length
                quote.by_length = Quote(rate_id=name, table=Table(tariff, ruling.factor))
            self._quotes[known] = quote
        return quote


def _flag_of(event: Event) -> str:
    """Which flag makes the cost of ``event`` 0, by the rate's name; empty without one."""
    if event.self_hosted:
        return SELF_HOSTED.rate_id
    return CACHE_HIT.rate_id if event.cache_hit else ""


def tariff_of(rate: PriceRate) -> Tariff:
    """What a set rate charges, in nanos of its currency."""
    prices = {name: nano_per_unit(str(amount), 1_000_000) for name, amount in rate.per_million}
    prices |= {name: nano_per_unit(str(amount), 1) for name, amount in rate.per_second}
    prices |= {name: nano_per_unit(str(amount), 1) for name, amount in rate.per_unit}
    return Tariff(prices)
