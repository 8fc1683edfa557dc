"""The audit's own prices: rates by the contract's section 7, the book by asking its library.

Exact rationals throughout; one rounding at the end, half to even, to a nano.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider, StartDateConstraint, Usage

from pipeline.audit.reading import COUNTERS, Reading, Unreadable, parse_time

NANO = 1_000_000_000
DAY_US = 86_400_000_000
MAX_NANO = 2**63 - 1
BOOK_CURRENCY = "USD"

TOKENS = COUNTERS[:9]
# A part without its own price costs what its whole costs.
WHOLE = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "cache_write_1h_tokens": "cache_write_tokens",
    "input_audio_tokens": "input_tokens",
    "input_image_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
    "output_audio_tokens": "output_tokens",
}
_BOOK_KEYS = {
    "input_tokens": "input_mtok",
    "cached_input_tokens": "cache_read_mtok",
    "cache_write_tokens": "cache_write_mtok",
    "cache_write_1h_tokens": "cache_write_1h_mtok",
    "input_audio_tokens": "input_audio_mtok",
    "input_image_tokens": "input_image_mtok",
    "output_tokens": "output_mtok",
    "reasoning_tokens": "output_reasoning_mtok",
    "output_audio_tokens": "output_audio_mtok",
    "characters": "input_mchars",
    "web_searches": "web_searches_kcount",
    "audio_nano": "audio_hours",
    "request": "requests_kcount",
}
_BASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "per_million": (1_000_000, (*TOKENS, "characters")),
    "per_second": (1, ("audio_seconds",)),
    "per_unit": (1, ("request", "images", "web_searches")),
}
_PLAIN = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", re.ASCII)


class Priced(NamedTuple):
    """What an event costs. ``set_rate`` is the rate id where a set rate decided, else ``""``."""

    cost_nano: int | None
    status: str
    estimated: bool = False
    set_rate: str = ""


UNPRICED = Priced(None, "unpriced")


class RateRecord(NamedTuple):
    """A record of ``pricing.rates`` as it came."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Rate:
    """A record that counts. ``prices`` are whole currency per unit, by counter."""

    offset: int
    rate_id: str
    effective_us: int
    provider: str = ""
    model: str = ""
    currency: str | None = None
    prices: tuple[tuple[str, Fraction], ...] = ()
    factor: Fraction | None = None
    withdraws: str = ""
    fx: str = ""
    content: str = ""

    def fits(self, event: Reading) -> bool:
        """Whether provider, model and time match."""
        return (
            self.effective_us <= event.occurred_at_us
            and _matches(self.provider, event.provider)
            and _matches(self.model, event.model)
        )

    @property
    def rank(self) -> tuple[object, ...]:
        """The higher of two that fit applies: the contract's order, model before provider."""
        return (*_closeness(self.model), *_closeness(self.provider), self.effective_us, self.offset)

    @property
    def is_last_resort(self) -> bool:
        return self.provider == self.model == "*"


class Prices:
    """The prices of one version: the rates below an offset, and the installed book."""

    def __init__(self, rates: list[Rate], currency: str) -> None:
        self._currency = currency
        self._set = [r for r in rates if r.prices and not r.is_last_resort]
        self._last = [r for r in rates if r.prices and r.is_last_resort]
        self._multipliers = [r for r in rates if r.factor is not None and not r.fx]
        self._fx = [r for r in rates if r.fx]
        self._withdrawn = {r.rate_id: r for r in rates if r.withdraws}
        self._known: dict[tuple[object, ...], Priced] = {}

    def price(self, event: Reading) -> Priced:
        """The exact price of ``event``."""
        if event.free_by:
            return Priced(0, "free")
        key = (
            event.provider,
            event.model,
            event.texts["service_tier"],
            *event.counts.values(),
            self._time_key(event),
        )
        found = self._known.get(key)
        if found is None:
            if len(self._known) > 200_000:
                self._known.clear()
            found = self._known[key] = self._price(event)
        return found

    def _time_key(self, event: Reading) -> int:
        """What of the event's time can matter to its price; events that share it share a price."""
        if self._set or self._last or self._multipliers or self._fx:
            return event.occurred_at_us
        unit_us = _book_time_unit_us(event.provider, event.model)
        return event.occurred_at_us // unit_us

    def _price(self, event: Reading) -> Priced:
        rate = self._best(self._set, event)
        if rate is not None:
            return self._by_rate(rate, event)
        if event.provider in _extra().free:
            return Priced(0, "free")
        listed = _book_cost(event)
        if listed is not None:
            return self._final(listed.cost, BOOK_CURRENCY, event)
        rate = self._best(self._last, event)
        return UNPRICED if rate is None else self._by_rate(rate, event)._replace(estimated=True)

    def _by_rate(self, rate: Rate, event: Reading) -> Priced:
        cost = _rate_cost(dict(rate.prices), event)
        priced = self._final(cost, rate.currency or self._currency, event, rate.rate_id)
        return priced._replace(estimated=rate.is_last_resort)

    def _final(
        self, cost: Fraction | None, currency: str, event: Reading, rate_id: str = ""
    ) -> Priced:
        """In the deployment's currency, times the multiplier, rounded once."""
        if cost is None:
            return UNPRICED
        if currency != self._currency:
            rates = [r for r in self._fx if r.fx == currency]
            rate = self._best(rates, event)
            if rate is None or rate.factor is None:
                return UNPRICED
            cost *= rate.factor
        multiplier = self._best(self._multipliers, event)
        if multiplier is not None and multiplier.factor is not None:
            cost *= multiplier.factor
            rate_id = f"{rate_id}*{multiplier.rate_id}" if rate_id else ""
        nano = round(cost * NANO)  # Python rounds an exact half to the even neighbour
        return UNPRICED if nano > MAX_NANO else Priced(nano, "priced", set_rate=rate_id)

    def _best(self, rates: list[Rate], event: Reading) -> Rate | None:
        fitting = [r for r in rates if r.fits(event) and not self._is_withdrawn(r, event)]
        return max(fitting, key=lambda r: r.rank, default=None)

    def _is_withdrawn(self, rate: Rate, event: Reading) -> bool:
        return any(
            w.withdraws == rate.rate_id and w.effective_us <= event.occurred_at_us
            for w in self._withdrawn.values()
        )


class RateHistory:
    """All records of the rates topic, from which each version is told anew."""

    def __init__(self, records: list[RateRecord]) -> None:
        self._records = sorted(records)
        self._versions: dict[tuple[int, str, int], Prices] = {}

    def version(self, next_offset: int, currency: str, lead_s: int) -> Prices:
        """The prices by the records below ``next_offset``."""
        key = (next_offset, currency, lead_s)
        if key not in self._versions:
            used = used_rates(
                [r for r in self._records if r.offset < next_offset], currency, lead_s
            )
            self._versions[key] = Prices(used, currency)
        return self._versions[key]


def used_rates(records: list[RateRecord], currency: str, lead_s: int) -> list[Rate]:
    """The records that count: valid, in time, not contradicting an earlier one of the same id."""
    used: dict[str, Rate] = {}
    convertible = {currency, BOOK_CURRENCY}
    for record in records:
        rate = _read_rate(record, lead_s)
        if rate is None or rate.rate_id in used:
            continue
        if rate.withdraws and (rate.withdraws not in used or used[rate.withdraws].withdraws):
            continue
        if rate.fx == currency or (rate.currency or currency) not in convertible:
            continue
        used[rate.rate_id] = rate
        if rate.fx:
            convertible.add(rate.fx)
    return list(used.values())


# -- reading rates -------------------------------------------------------------------------------


def _read_rate(record: RateRecord, lead_s: int) -> Rate | None:
    try:
        if not record.value or len(record.value) > 65_536:
            return None
        body = json.loads(record.value.decode())
        rate = _rate(record.offset, {k: v for k, v in body.items() if v is not None})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Unreadable):
        return None
    earliest_us = (record.timestamp_ms + lead_s * 1000) * 1000
    in_time = rate.effective_us >= earliest_us or body.get("backdated") is True
    return rate if in_time and record.key == rate.rate_id.encode() else None


def _rate(offset: int, body: Mapping[str, Any]) -> Rate:
    """Raises ``ValueError`` and its like where a rule is broken."""
    kinds = [k for k in ("withdraws", "fx", "multiplier") if k in body]
    bases = [b for b in _BASES if b in body]
    if len(kinds) > 1 or (kinds and bases) or not isinstance(body.get("backdated", False), bool):
        raise ValueError(kinds)
    rate_id = _name(body["rate_id"])
    if "*" in rate_id or rate_id.startswith("book:"):
        raise ValueError(rate_id)
    _name(body.get("published_at", "-"))
    effective_us = parse_time(body["effective_from"].replace(" ", "T", 1))
    if "withdraws" in body:
        return Rate(offset, rate_id, effective_us, withdraws=_name(body["withdraws"]))
    if "fx" in body:
        factor = _amount(body["rate"])
        if factor == 0:
            raise ValueError("rate")
        return Rate(offset, rate_id, effective_us, fx=_code(body["fx"]), factor=factor,
                    provider="*", model="*")  # fmt: skip
    provider, model = _name(body["provider"]), _name(body["model"])
    if "multiplier" in body:
        factor = _amount(body["multiplier"])
        return Rate(offset, rate_id, effective_us, provider, model, factor=factor)
    prices = tuple(_prices(body))
    if not prices:
        raise ValueError("prices")
    currency = _code(body["currency"]) if "currency" in body else None
    return Rate(offset, rate_id, effective_us, provider, model, currency, prices)


def _prices(body: Mapping[str, Any]) -> list[tuple[str, Fraction]]:
    prices: list[tuple[str, Fraction]] = []
    for basis, (per, names) in _BASES.items():
        for name, price in dict(body.get(basis, {})).items():
            if name not in names:
                raise ValueError(name)
            if price is not None:
                counter = "audio_nano" if name == "audio_seconds" else name
                prices.append((counter, _amount(price) / per))
    return prices


def _name(text: object) -> str:
    if not isinstance(text, str) or not 1 <= len(text) <= 128:
        raise ValueError(text)
    return text


def _code(text: object) -> str:
    if not isinstance(text, str) or re.fullmatch("[A-Z]{3}", text) is None:
        raise ValueError(text)
    return text


def _amount(text: object) -> Fraction:
    if not isinstance(text, str) or len(text) > 64 or _PLAIN.fullmatch(text) is None:
        raise ValueError(text)
    amount = Decimal(text)
    decimals = len(f"{amount:f}".partition(".")[2].rstrip("0"))
    if amount < 0 or amount >= 10**12 or decimals > 18:
        raise ValueError(text)
    return Fraction(amount)


# -- matching ------------------------------------------------------------------------------------


@lru_cache(maxsize=4_096)
def _pattern(glob: str) -> re.Pattern[str]:
    parts = [".*" if c == "*" else "." if c == "?" else re.escape(c) for c in glob]
    return re.compile("".join(parts), re.DOTALL)


def _is_glob(text: str) -> bool:
    return "*" in text or "?" in text


def _matches(pattern: str, text: str) -> bool:
    return pattern == text or (_is_glob(pattern) and _pattern(pattern).fullmatch(text) is not None)


def _closeness(pattern: str) -> tuple[int, int]:
    return (0, len(pattern)) if _is_glob(pattern) else (1, 0)


# -- what things cost ----------------------------------------------------------------------------


def _rate_cost(prices: Mapping[str, Fraction], event: Reading) -> Fraction | None:
    """Whole currency; None where a counter is above 0 and none of those has a price."""
    present = [name for name, count in event.counts.items() if count]
    priced = [name for name in present if _price_of(prices, name) is not None]
    if present and not priced and "request" not in prices:
        return None
    cost = prices.get("request", Fraction(0))
    for name, count in event.counts.items():
        own = count
        if name in ("input_tokens", "output_tokens"):
            parts = [p for p in WHOLE if _whole_of(p) == name]
            own -= sum(event.counts[part] for part in parts)
        amount = Fraction(own, NANO) if name == "audio_nano" else own
        cost += amount * (_price_of(prices, name) or 0)
    return cost


def _whole_of(part: str) -> str:
    return "output_tokens" if WHOLE[part] == "output_tokens" else "input_tokens"


def _price_of(prices: Mapping[str, Fraction], counter: str) -> Fraction | None:
    if counter in prices or counter not in WHOLE:
        return prices.get(counter)
    return _price_of(prices, WHOLE[counter])


class _Listed(NamedTuple):
    """A model that the book lists; ``cost`` None where nothing present has a price."""

    cost: Fraction | None


def _book_cost(event: Reading) -> _Listed | None:
    """What the library says, or the dated file for events without tokens; None when unlisted."""
    by_length = _by_length(event)
    if by_length is not None:
        return _Listed(_rate_cost(by_length, event))
    found = _find(event.provider, event.model)
    if found is None:
        return None
    provider, model = found
    context = _context(event.texts["service_tier"])
    with localcontext(prec=80):
        answer = model.calc_price(
            _usage(event.counts),
            provider,
            genai_request_timestamp=_moment(event.occurred_at_us),
            price_context=context,
        )
    if not _has_price(answer.model_price, event.counts):
        return _Listed(None)
    return _Listed(Fraction(answer.total_price))


def _usage(counts: Mapping[str, int]) -> Usage:
    writes = counts["cache_write_tokens"] + counts["cache_write_1h_tokens"]
    return Usage(
        input_tokens=counts["input_tokens"],
        cache_read_tokens=counts["cached_input_tokens"],
        cache_write_tokens=writes,
        cache_write_1h_tokens=counts["cache_write_1h_tokens"],
        input_audio_tokens=counts["input_audio_tokens"],
        input_image_tokens=counts["input_image_tokens"],
        output_tokens=counts["output_tokens"],
        output_reasoning_tokens=counts["reasoning_tokens"],
        output_audio_tokens=counts["output_audio_tokens"],
        input_characters=counts["characters"],
        web_searches=counts["web_searches"],
        audio_seconds=Decimal(counts["audio_nano"]).scaleb(-9),
        # The parts are disjoint here, so nothing is both.
        **dict.fromkeys(_JOINS, 0),
    )


_JOINS = (
    "cache_audio_read_tokens",
    "cache_audio_write_tokens",
    "cache_audio_write_1h_tokens",
    "cache_image_read_tokens",
    "cache_image_write_tokens",
    "cache_image_write_1h_tokens",
    "output_audio_reasoning_tokens",
    "input_audio_seconds",
    "output_audio_seconds",
)


def _has_price(prices: ModelPrice, counts: Mapping[str, int]) -> bool:
    present = [name for name, count in counts.items() if count]
    if not present or getattr(prices, _BOOK_KEYS["request"]) is not None:
        return True
    return any(_book_price(prices, name) for name in present)


def _book_price(prices: ModelPrice, counter: str) -> bool:
    key = _BOOK_KEYS.get(counter)
    if key is not None and getattr(prices, key) is not None:
        return True
    return counter in WHOLE and _book_price(prices, WHOLE[counter])


def _context(service_tier: str) -> dict[str, str] | None:
    """Batch and fast come in the field of the service tier, but are other words in the book."""
    if not service_tier:
        return None
    words = {"batch": {"processing": "batch"}, "fast": {"speed": "fast"}}
    return {"service_tier": service_tier, **words.get(service_tier, {})}


def _moment(occurred_at_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=occurred_at_us)


@lru_cache(maxsize=65_536)
def _find(provider: str, model: str) -> tuple[Provider, ModelInfo] | None:
    try:
        return get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None


def _owner(provider: Provider, model: ModelInfo) -> str:
    """The provider whose list has the model; a fallback of ``provider`` may."""
    if any(listed is model for listed in provider.models):
        return provider.id
    others = {other.id: other for other in get_snapshot().providers}
    for name in provider.fallback_model_providers or ():
        if name in others and any(listed is model for listed in others[name].models):
            return name
    return provider.id


@lru_cache(maxsize=65_536)
def _book_time_unit_us(provider: str, model: str) -> int:
    """Within which unit of time the book's price cannot change."""
    found = _find(provider, model)
    if found is None:
        return DAY_US
    prices = found[1].prices
    entries = [*(prices if isinstance(prices, list) else ()), *(found[1].price_variants or ())]
    constraints = [entry.constraint for entry in entries if entry.constraint is not None]
    if all(isinstance(constraint, StartDateConstraint) for constraint in constraints):
        return DAY_US
    return 1


# -- the dated file ------------------------------------------------------------------------------


class _ByLength(NamedTuple):
    since_us: int
    counter: str
    price: Fraction


class _Extra(NamedTuple):
    free: frozenset[str]
    by_length: dict[tuple[str, str], _ByLength]


@cache
def _extra() -> _Extra:
    body = json.loads(files("pipeline.core").joinpath("extra_prices.json").read_text())
    entries = {
        (entry["provider"], entry["model"]): _ByLength(
            parse_time(f"{entry['since']}T00:00:00Z"),
            "audio_nano" if entry["counter"] == "audio_seconds" else entry["counter"],
            Fraction(entry["price"]) / entry["per"],
        )
        for entry in body["by_length"]
    }
    return _Extra(frozenset(body["free"]), entries)


def _by_length(event: Reading) -> dict[str, Fraction] | None:
    if any(event.counts[name] for name in TOKENS):
        return None
    found = _find(event.provider, event.model)
    key = (event.provider, event.model) if found is None else (_owner(*found), found[1].id)
    entry = _extra().by_length.get(key)
    if entry is None or event.occurred_at_us < entry.since_us or not event.counts[entry.counter]:
        return None
    return {entry.counter: entry.price}
