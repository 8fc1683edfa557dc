"""What an event costs: the rate by the contract's section 7, else the book, rounded once."""

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from pipeline.audit.recount import book
from pipeline.audit.recount.events import Reading
from pipeline.audit.recount.rates import BOOK_CURRENCY, Rate, RateRecord, used_rates
from pipeline.audit.recount.tariffs import MAX_NANO, NANO, Tariff, tariff, tariff_of

MAX_RULINGS = 50_000
MAX_VERSIONS = 16


class Priced(NamedTuple):
    """What an event costs and what priced it. ``by_book``: another book might say otherwise."""

    cost_nano: int | None
    status: str
    rate_id: str = ""
    estimated: bool = False
    by_book: bool = False


@dataclass(frozen=True, slots=True)
class _Ruling:
    """Who prices the events that share provider, model, tier and stretch of time.

    Without a ``tariff`` the library is asked through ``listing``; without both nothing is priced.
    """

    rate_id: str = ""
    tariff: Tariff | None = None
    listing: book.Listing | None = None
    factor: Fraction = Fraction(1)
    estimated: bool = False
    by_book: bool = False
    free: bool = False

    def price(self, event: Reading) -> Priced:
        if self.free:
            return Priced(0, "free", self.rate_id, by_book=True)
        cost_nano = self._cost_nano(event)
        if cost_nano is None:
            return Priced(None, "unpriced", by_book=self.by_book)
        return Priced(cost_nano, "priced", self.rate_id, self.estimated, self.by_book)

    def _cost_nano(self, event: Reading) -> int | None:
        if self.tariff is not None:
            return self.tariff.cost_nano(event.counts)
        if self.listing is None:
            return None
        return _asked(self.listing, event.counts, event.occurred_at_us, self.factor)


class Prices:
    """The prices of one version: the rates below an offset, and the installed book."""

    def __init__(self, rates: list[Rate], currency: str) -> None:
        self._currency = currency
        self._set = [r for r in rates if r.prices and not r.is_last_resort]
        self._last = [r for r in rates if r.prices and r.is_last_resort]
        self._multipliers = [r for r in rates if r.factor is not None and not r.fx]
        self._fx = [r for r in rates if r.fx]
        self._withdrawals: dict[str, list[int]] = {}
        for rate in rates:
            if rate.withdraws:
                self._withdrawals.setdefault(rate.withdraws, []).append(rate.effective_us)
        edges = {r.effective_us for r in rates} | set(book.by_length_edges_us())
        self._edges_us = sorted(edges)
        self._rulings: dict[tuple[object, ...], _Ruling] = {}
        self._named = {r.rate_id: r for r in rates}

    def price(self, event: Reading) -> Priced:
        """The exact price of ``event``."""
        if event.self_hosted:
            return Priced(0, "free", "self-hosted")
        if event.cache_hit:
            return Priced(0, "free", "cache-hit")
        tier = event.texts["service_tier"]
        listed = book.listing(event.provider, event.model, tier)
        key = (
            event.provider,
            event.model,
            tier,
            bisect_right(self._edges_us, event.occurred_at_us),
            () if listed is None else listed.season(event.occurred_at_us),
            0 if listed is None else listed.bracket(event.counts["input_tokens"]),
            bool(event.counts["input_tokens"] or event.counts["output_tokens"]),
        )
        ruling = self._rulings.get(key)
        if ruling is None:
            if len(self._rulings) >= MAX_RULINGS:
                self._rulings.clear()
            ruling = self._rulings[key] = self._rule(event, listed)
        return ruling.price(event)

    def named(self, rate_id: str, event: Reading) -> Priced | str:
        """The price by one rate, whenever it applies; or the reason there is none."""
        flags = {"self-hosted": event.self_hosted, "cache-hit": event.cache_hit}
        if rate_id in flags:
            return Priced(0, "free", rate_id) if flags[rate_id] else "unknown-rate"
        ruling = self._ruling_named(rate_id, event)
        if isinstance(ruling, _Ruling):
            for flag, is_set in flags.items():
                if is_set:
                    return Priced(0, "free", flag)
            return ruling.price(event)
        return ruling

    def _ruling_named(self, rate_id: str, event: Reading) -> _Ruling | str:
        name, star, modifier = rate_id.partition("*")
        factor = Fraction(1)
        if star:
            multiplier = self._named.get(modifier)
            if multiplier is None or multiplier.factor is None or multiplier.fx:
                return "unknown-rate"
            factor = multiplier.factor
        rate = self._named.get(name)
        if rate is not None and rate.prices:
            exchange = self._exchange(rate.currency or self._currency, event)
            if exchange is None:
                return "wrong-currency"
            charged = tariff_of(dict(rate.prices), book.CHARGED, factor * exchange)
            return _Ruling(rate_id, charged, estimated=rate.is_last_resort)
        return self._book_named(name, rate_id.removeprefix(name), factor, event)

    def _book_named(
        self, name: str, suffix: str, factor: Fraction, event: Reading
    ) -> _Ruling | str:
        if book.is_free_provider(event.provider):
            is_it = name == f"book:{event.provider}"
            return _Ruling(name, free=True, by_book=True) if is_it else "unknown-rate"
        without_tokens = event._replace(counts=dict.fromkeys(event.counts, 0))
        length = book.by_length(without_tokens)
        listed = book.listing(event.provider, event.model, event.texts["service_tier"])
        names = [length.rate_id] if length is not None else []
        names += [listed.rate_id(event.occurred_at_us)] if listed is not None else []
        if name not in names:
            return "unknown-rate"
        exchange = self._exchange(BOOK_CURRENCY, event)
        if exchange is None:
            return "wrong-currency"
        if length is not None and book.by_length(event) is not None:
            prices = {length.counter: length.price}
            charged = tariff_of(prices, book.CHARGED, factor * exchange)
            return _Ruling(length.rate_id + suffix, charged, by_book=True)
        if listed is None:
            return "unknown-rate"
        return _Ruling(
            listed.rate_id(event.occurred_at_us) + suffix,
            _book_tariff(listed, event, factor * exchange),
            listed,
            factor * exchange,
            by_book=True,
        )

    def _exchange(self, currency: str, event: Reading) -> Fraction | None:
        if currency == self._currency:
            return Fraction(1)
        rate = self._best([r for r in self._fx if r.fx == currency], event)
        return None if rate is None else rate.factor

    def _rule(self, event: Reading, listed: book.Listing | None) -> _Ruling:
        rate = self._best(self._set, event)
        if rate is not None:
            return self._by_rate(rate, event, by_book=False)
        if book.is_free_provider(event.provider):
            return _Ruling(f"book:{event.provider}", free=True)
        by_length = book.by_length(event)
        if by_length is not None:
            prices = {by_length.counter: by_length.price}
            return self._charged(by_length.rate_id, prices, BOOK_CURRENCY, event, by_book=True)
        if listed is not None:
            return self._by_book(listed, event)
        rate = self._best(self._last, event)
        return _Ruling(by_book=True) if rate is None else self._by_rate(rate, event, by_book=True)

    def _by_rate(self, rate: Rate, event: Reading, *, by_book: bool) -> _Ruling:
        currency = rate.currency or self._currency
        return self._charged(
            rate.rate_id,
            dict(rate.prices),
            currency,
            event,
            by_book=by_book,
            estimated=rate.is_last_resort,
        )

    def _charged(
        self,
        rate_id: str,
        prices: Mapping[str, Fraction],
        currency: str,
        event: Reading,
        *,
        by_book: bool,
        estimated: bool = False,
    ) -> _Ruling:
        factor, suffix = self._modifiers(currency, event)
        if factor is None:
            return _Ruling(by_book=by_book)
        return _Ruling(
            rate_id + suffix,
            tariff_of(prices, book.CHARGED, factor),
            estimated=estimated,
            by_book=by_book,
        )

    def _by_book(self, listed: book.Listing, event: Reading) -> _Ruling:
        factor, suffix = self._modifiers(BOOK_CURRENCY, event)
        if factor is None:
            return _Ruling(by_book=True)
        at_us = event.occurred_at_us
        return _Ruling(
            listed.rate_id(at_us) + suffix,
            _book_tariff(listed, event, factor),
            listed,
            factor,
            by_book=True,
        )

    def _modifiers(self, currency: str, event: Reading) -> tuple[Fraction | None, str]:
        """What to multiply by, None where the currency cannot be converted; the id's ending."""
        factor = Fraction(1)
        if currency != self._currency:
            rate = self._best([r for r in self._fx if r.fx == currency], event)
            if rate is None or rate.factor is None:
                return None, ""
            factor = rate.factor
        multiplier = self._best(self._multipliers, event)
        if multiplier is None or multiplier.factor is None:
            return factor, ""
        return factor * multiplier.factor, f"*{multiplier.rate_id}"

    def _best(self, rates: list[Rate], event: Reading) -> Rate | None:
        fitting = [r for r in rates if r.fits(event) and not self._is_withdrawn(r, event)]
        return max(fitting, key=lambda r: r.rank, default=None)

    def _is_withdrawn(self, rate: Rate, event: Reading) -> bool:
        ends_us = self._withdrawals.get(rate.rate_id, ())
        return any(end_us <= event.occurred_at_us for end_us in ends_us)


class RateHistory:
    """All records of the rates topic, from which each version is told anew."""

    def __init__(self, records: list[RateRecord]) -> None:
        self._records = sorted(records)
        self._versions: OrderedDict[tuple[int, str, int], Prices] = OrderedDict()

    def version(self, next_offset: int, currency: str, lead_s: int) -> Prices:
        """The prices by the records below ``next_offset``."""
        key = (next_offset, currency, lead_s)
        found = self._versions.get(key)
        if found is None:
            below = [r for r in self._records if r.offset < next_offset]
            found = Prices(used_rates(below, currency, lead_s), currency)
            self._versions[key] = found
            if len(self._versions) > MAX_VERSIONS:
                self._versions.popitem(last=False)
        return found


def _book_tariff(listed: book.Listing, event: Reading, factor: Fraction) -> Tariff | None:
    found = listed.linear(event.occurred_at_us, event.counts["input_tokens"])
    if found is None:
        return None
    return tariff(
        found.base, found.weights, found.priced, has_request=found.has_request, factor=factor
    )


def _asked(
    listed: book.Listing, counts: Mapping[str, int], at_us: int, factor: Fraction
) -> int | None:
    """The library's own answer for one event, in nanos, rounded once."""
    prices = listed.prices(at_us)
    present = [name for name, count in counts.items() if count]
    if present and not any(book.has_price(prices, name) for name in (*present, "request")):
        return None
    nano = round(listed.cost(counts, at_us) * factor * NANO)  # an exact half goes to the even one
    return None if nano > MAX_NANO else nano
