"""The built-in book, by asking the price library itself, and the dated file beside it.

Within one bracket of input tokens a model's price is a linear function of the counts almost
everywhere. It is found by asking the library for single counters, and kept only where the library
also agrees at other amounts, small and large. Where it does not (a least length of audio, say) the
library is asked for each event.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache, lru_cache
from importlib.resources import files
from typing import NamedTuple

from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    Usage,
)

from pipeline.audit.recount.events import COUNTERS, Reading
from pipeline.audit.recount.instants import parse_instant
from pipeline.audit.recount.rates import TOKENS
from pipeline.audit.recount.tariffs import REQUEST, WHOLE, container_of

CHARGED = (*COUNTERS, "audio_nano")
"""The counters that can have a price, as an event's ``counts`` name them."""

_PRICE_KEYS = {
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
    REQUEST: "requests_kcount",
}
# The parts are disjoint here, so nothing is both.
_NOTHING_IS_BOTH = dict.fromkeys(
    (
        "cache_audio_read_tokens",
        "cache_audio_write_tokens",
        "cache_audio_write_1h_tokens",
        "cache_image_read_tokens",
        "cache_image_write_tokens",
        "cache_image_write_1h_tokens",
        "output_audio_reasoning_tokens",
        "input_audio_seconds",
        "output_audio_seconds",
    ),
    0,
)
# A multiple of what prices are per: a thousand, a million, an hour of nanoseconds.
_PROBE = 3_600 * 10**9
_MOST_TOKENS = 10**10
_NO_COUNTS: dict[str, int] = dict.fromkeys(CHARGED, 0)
_TOLERANCE = Fraction(1, 10**50)


class BookCost(NamedTuple):
    """Linear prices in whole currency per unit: ``base`` and a weight for each counter."""

    base: Fraction
    weights: Mapping[str, Fraction]
    priced: frozenset[str]
    has_request: bool


class Listing:
    """A model as the book lists it for one provider, model and service tier.

    ``name`` is what its rate ids begin with.
    """

    def __init__(self, provider: Provider, model: ModelInfo, service_tier: str) -> None:
        self._provider, self._model, self._tier = provider, model, service_tier
        self._context = _context(service_tier)
        own = any(listed is model for listed in provider.models)
        self.name = f"{_owner(provider, model)}/{model.id}"
        self._variants: list[PriceVariant] = []
        if self._context is not None and own:
            context = self._context
            self._variants = [
                variant
                for variant in model.price_variants or ()
                if all(context.get(key) == value for key, value in variant.when.items())
            ]
        prices = model.prices
        self._seasons = prices if isinstance(prices, list) else [ConditionalPrice(prices=prices)]
        self._constraints = [
            entry.constraint
            for entry in (*self._seasons, *self._variants)
            if entry.constraint is not None
        ]
        entries = (*self._seasons, *self._variants)
        self._tier_starts = sorted({start for e in entries for start in _tier_starts(e.prices)})
        self._linear: dict[tuple[object, ...], BookCost | None] = {}

    def season(self, occurred_at_us: int) -> tuple[bool, ...]:
        """Which of the dated prices hold; events that share it share a price."""
        if not self._constraints:
            return ()
        moment = moment_of(occurred_at_us)
        return tuple(constraint.active(moment) for constraint in self._constraints)

    def bracket(self, input_tokens: int) -> int:
        """Which of the brackets of input tokens; events that share it share a linear function."""
        return bisect_left(self._tier_starts, input_tokens)

    def rate_id(self, occurred_at_us: int) -> str:
        """What a row says priced it: the model, the season, and the tier where it matters."""
        moment = moment_of(occurred_at_us)
        text = f"book:{self.name}"
        if self._seasons:
            text += f"@{_label(self._season_at(moment).constraint)}"
        labels = [
            (_label(variant.constraint), _has_known_price(variant.prices))
            for variant in self._variants
            if variant.constraint is None or variant.constraint.active(moment)
        ]
        if any(known for _, known in labels):
            text += f"+{self._tier}@{max(label for label, _ in labels)}"
        return text

    def cost(self, counts: Mapping[str, int], occurred_at_us: int) -> Fraction:
        """What the library says: whole currency."""
        cost, _ = self._ask(counts, occurred_at_us)
        return cost

    def prices(self, occurred_at_us: int) -> ModelPrice:
        """The prices in force."""
        return self._ask(_NO_COUNTS, occurred_at_us)[1]

    def linear(self, occurred_at_us: int, input_tokens: int) -> BookCost | None:
        """The prices of this time and bracket; None where they are no linear function."""
        place = (self.season(occurred_at_us), self.bracket(input_tokens))
        if place not in self._linear:
            self._linear[place] = self._probe(occurred_at_us, self._span(place[1]))
        return self._linear[place]

    def _span(self, bracket: int) -> tuple[int, int]:
        """The fewest and most input tokens of a bracket."""
        starts = [0, *self._tier_starts, _MOST_TOKENS]
        return starts[bracket] + (1 if bracket else 0), starts[bracket + 1]

    def _probe(self, occurred_at_us: int, span: tuple[int, int]) -> BookCost | None:
        few, many = span
        few = max(few, 1)

        def ask(**counts: int) -> Fraction:
            return self.cost({**_NO_COUNTS, "input_tokens": few, **counts}, occurred_at_us)

        at_few = ask()
        weights = {"input_tokens": (ask(input_tokens=many) - at_few) / (many - few)}
        for name in CHARGED[1:]:
            whole = container_of(name)
            if whole == "input_tokens":
                weights[name] = ask(**{name: 1}) - at_few
                continue
            counts = {name: _PROBE} | ({} if whole is None else {whole: _PROBE})
            weights[name] = (ask(**counts) - at_few) / _PROBE
            weights[name] -= 0 if whole is None else weights[whole]
        prices = self.prices(occurred_at_us)
        found = BookCost(
            at_few - few * weights["input_tokens"],
            weights,
            frozenset(name for name in CHARGED if has_price(prices, name)),
            has_price(prices, REQUEST),
        )
        return found if self._agrees(found, occurred_at_us, span) else None

    def _agrees(self, found: BookCost, occurred_at_us: int, span: tuple[int, int]) -> bool:
        for counts in _checks(*span):
            linear = found.base + sum(found.weights[name] * n for name, n in counts.items())
            if abs(linear - self.cost(counts, occurred_at_us)) > _TOLERANCE:
                return False
        return True

    def _ask(self, counts: Mapping[str, int], occurred_at_us: int) -> tuple[Fraction, ModelPrice]:
        with localcontext(prec=80):
            answer = self._model.calc_price(
                _usage(counts),
                self._provider,
                genai_request_timestamp=moment_of(occurred_at_us),
                price_context=self._context,
            )
        return Fraction(answer.total_price), answer.model_price

    def _season_at(self, moment: datetime) -> ConditionalPrice:
        for entry in reversed(self._seasons):
            if entry.constraint is None or entry.constraint.active(moment):
                return entry
        return self._seasons[0]


@lru_cache(maxsize=16_384)
def listing(provider: str, model: str, service_tier: str) -> Listing | None:
    """What the book lists for these references; None when nothing."""
    found = _find(provider, model)
    return None if found is None else Listing(*found, service_tier)


def has_price(prices: ModelPrice, counter: str) -> bool:
    """Whether a counter, or the whole it is part of, has a price."""
    key = _PRICE_KEYS.get(counter)
    if key is not None and getattr(prices, key) is not None:
        return True
    return counter in WHOLE and has_price(prices, WHOLE[counter])


def moment_of(at_us: int) -> datetime:
    """Microseconds since 1970 as the library takes a time."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)


def _has_known_price(prices: ModelPrice) -> bool:
    return any(getattr(prices, key) is not None for key in _PRICE_KEYS.values())


def _label(constraint: object) -> str:
    if constraint is None:
        return "base"
    if isinstance(constraint, StartDateConstraint):
        return constraint.start_date.isoformat()
    start, end = (getattr(constraint, name) for name in ("start_time", "end_time"))
    return f"{start:%H:%M}-{end:%H:%M}"


def _tier_starts(prices: ModelPrice) -> list[int]:
    tiered = [price for price in vars(prices).values() if isinstance(price, TieredPrices)]
    return [tier.start for price in tiered for tier in price.tiers]


def _checks(few: int, many: int) -> list[dict[str, int]]:
    """Counts at which a linear function must agree with the library: each magnitude, mixed."""
    found: list[dict[str, int]] = []
    for step, input_tokens in enumerate((few, few + (many - few) // 1_000, many)):
        for magnitude in (0, 1, 97, 300_007, 10**10):
            counts = {name: magnitude + at % 3 for at, name in enumerate(CHARGED)}
            parts = [part for part in WHOLE if container_of(part) == "input_tokens"]
            counts |= dict.fromkeys(parts, input_tokens // (len(parts) + step))
            counts["input_tokens"] = input_tokens
            counts["output_tokens"] += sum(counts[part] for part in WHOLE if part not in parts)
            counts["audio_nano"] = magnitude * 10**9 + step
            found.append(counts)
    return found


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
        **_NOTHING_IS_BOTH,
    )


def _context(service_tier: str) -> dict[str, str] | None:
    """Batch and fast come in the field of the service tier, but are other words in the book."""
    if not service_tier:
        return None
    words = {"batch": {"processing": "batch"}, "fast": {"speed": "fast"}}
    return {"service_tier": service_tier, **words.get(service_tier, {})}


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


# -- the dated file --------------------------------------------------------------------------------


class ByLength(NamedTuple):
    """The price of a model for events without tokens: whole currency per unit of ``counter``."""

    since_us: int
    rate_id: str
    counter: str
    price: Fraction


class _Extra(NamedTuple):
    free: frozenset[str]
    by_length: dict[tuple[str, str], ByLength]


@cache
def _extra() -> _Extra:
    body = json.loads(files("pipeline.core").joinpath("extra_prices.json").read_text())
    entries: dict[tuple[str, str], ByLength] = {}
    for entry in body["by_length"]:
        provider, model, counter = entry["provider"], entry["model"], entry["counter"]
        seconds = counter == "audio_seconds"
        entries[provider, model] = ByLength(
            parse_instant(f"{entry['since']}T00:00:00Z"),
            f"book:{provider}/{model}+{entry['unit']}@{entry['since']}",
            "audio_nano" if seconds else counter,
            Fraction(entry["price"]) / entry["per"] / (10**9 if seconds else 1),
        )
    return _Extra(frozenset(body["free"]), entries)


def is_free_provider(provider: str) -> bool:
    """Whether everything of ``provider`` costs nothing."""
    return provider in _extra().free


def by_length_edges_us() -> list[int]:
    """The times from which on there are prices by length."""
    return sorted({entry.since_us for entry in _extra().by_length.values()})


def by_length(event: Reading) -> ByLength | None:
    """What prices an event that counts no tokens, where the file has its model."""
    if any(event.counts[name] for name in TOKENS):
        return None
    found = listing(event.provider, event.model, "")
    name = found.name.partition("/") if found is not None else (event.provider, "", event.model)
    entry = _extra().by_length.get((name[0], name[2]))
    return entry if entry is not None and event.occurred_at_us >= entry.since_us else None
