"""Compiles the built-in book from ``genai-prices`` and the repository's own dated file.

The only module that imports the library, which is slow to import: ``book.builtin_book`` loads
it on first use.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, time
from decimal import Decimal
from importlib.metadata import version
from importlib.resources import files
from typing import cast

import msgspec
from genai_prices import data, types
from genai_prices.data_units import unit_data

from pipeline.core.book import (
    DAY_US,
    BookContent,
    BookModel,
    BookPrice,
    BookProvider,
    ByLength,
    Clause,
    Season,
    SeasonPrices,
    Variant,
    date_us,
)
from pipeline.core.money import format_decimal

# The library's usage keys in the contract's words. Its other keys (video, documents, messages,
# citations, storage searches, cached parts of one modality) have no counter of their own here.
COUNTER_OF = {
    "input_tokens": "input_tokens",
    "cache_read_tokens": "cached_input_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "cache_write_1h_tokens": "cache_write_1h_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "input_image_tokens": "input_image_tokens",
    "output_tokens": "output_tokens",
    "output_reasoning_tokens": "reasoning_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "input_characters": "characters",
    "web_searches": "web_searches",
    "audio_seconds": "audio_seconds",
    "requests": "request",
}

# By price key: the counter, and how many of its units the price is for.
_COUNTERS = {
    cast("str", unit.get("price_key", usage_key)): (
        COUNTER_OF[usage_key],
        cast("int", unit["per"]),
    )
    for usage_key, unit in unit_data.items()
    if usage_key in COUNTER_OF
}

# Billed for at least ten seconds a call, as the library has it in code.
_MINIMUM_AUDIO_S = {
    ("groq", "whisper-large-v3"): 10,
    ("groq", "whisper-large-v3-turbo"): 10,
}


def compile_content() -> BookContent:
    """The content of the book for the installed version of the library."""
    extra = _extra_decoder.decode(files("pipeline.core").joinpath("extra_prices.json").read_bytes())
    by_length = {(entry.provider, entry.model): entry for entry in extra.by_length}
    return BookContent(
        source=f"genai-prices {version('genai-prices')}, extra prices of {extra.as_of}",
        providers=tuple(_provider(entry, by_length) for entry in data.providers),
        free=tuple(extra.free),
    )


class _ExtraPrice(msgspec.Struct):
    provider: str
    model: str
    since: str
    unit: str
    counter: str
    price: str
    per: int


class _Extra(msgspec.Struct):
    as_of: str
    by_length: list[_ExtraPrice]
    free: list[str]


_extra_decoder = msgspec.json.Decoder(_Extra)


def _provider(
    source: types.Provider, by_length: Mapping[tuple[str, str], _ExtraPrice]
) -> BookProvider:
    models = [
        _model(source.id, model, by_length.get((source.id, model.id))) for model in source.models
    ]
    known = {model.id for model in source.models}
    models += [
        BookModel(name, ("equals", name), (), by_length=_by_length(entry))
        for (provider, name), entry in by_length.items()
        if provider == source.id and name not in known
    ]
    return BookProvider(
        provider_id=source.id,
        models=tuple(models),
        provider_match=None if source.provider_match is None else _clause(source.provider_match),
        model_match=None if source.model_match is None else _clause(source.model_match),
        fallbacks=tuple(source.fallback_model_providers or ()),
    )


def _model(provider_id: str, source: types.ModelInfo, extra: _ExtraPrice | None) -> BookModel:
    prices = source.prices
    if isinstance(prices, types.ModelPrice):
        prices = [types.ConditionalPrice(prices=prices)]
    seasons = tuple(SeasonPrices(_season(e.constraint), _prices(e.prices)) for e in prices)
    own = {price.counter for entry in seasons for price in entry.prices}
    return BookModel(
        model_id=source.id,
        match=_clause(source.match),
        seasons=seasons,
        variants=tuple(
            Variant(
                tuple(sorted(variant.when.items())),
                _season(variant.constraint),
                _prices(variant.prices),
            )
            for variant in source.price_variants or ()
        ),
        minimum_audio_s=_MINIMUM_AUDIO_S.get((provider_id, source.id), 0),
        by_length=None if extra is None or extra.counter in own else _by_length(extra),
    )


def _by_length(extra: _ExtraPrice) -> ByLength:
    return ByLength(extra.unit, extra.since, BookPrice(extra.counter, extra.per, extra.price))


def _season(constraint: object) -> Season:
    if constraint is None:
        return Season()
    if isinstance(constraint, types.StartDateConstraint):
        return Season(start_us=date_us(constraint.start_date.isoformat()))
    if isinstance(constraint, types.TimeOfDateConstraint):
        return Season(window_us=(_time_us(constraint.start_time), _time_us(constraint.end_time)))
    raise TypeError(f"genai-prices has a constraint this release does not know: {constraint!r}")


def _time_us(value: time) -> int:
    """Microseconds since midnight UTC; a time without offset is UTC."""
    moment = datetime.combine(datetime(1970, 1, 2), value)
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    seconds = moment.hour * 3600 + moment.minute * 60 + moment.second
    return (seconds * 1_000_000 + moment.microsecond) % DAY_US


def _prices(source: types.ModelPrice) -> tuple[BookPrice, ...]:
    found: list[BookPrice] = []
    for price_key, price in vars(source).items():
        counter, per = _COUNTERS.get(price_key, ("", 1))
        if not counter or price is None:
            continue
        if isinstance(price, types.TieredPrices):
            tiers = tuple((tier.start, format_decimal(tier.price)) for tier in price.tiers)
            found.append(BookPrice(counter, per, format_decimal(price.base), tiers))
        else:
            found.append(BookPrice(counter, per, format_decimal(cast("Decimal", price))))
    return tuple(sorted(found, key=lambda price: price.counter))


def _clause(source: object) -> Clause:
    if isinstance(source, types.ClauseOr):
        return "or", tuple(_clause(inner) for inner in source.or_)
    if isinstance(source, types.ClauseAnd):
        return "and", tuple(_clause(inner) for inner in source.and_)
    if isinstance(source, types.ClauseRegex):
        return "regex", source.regex
    for kind in ("starts_with", "ends_with", "contains", "equals"):
        text = getattr(source, kind, None)
        if isinstance(text, str):
            return kind, text.lower()
    raise TypeError(f"genai-prices has a clause this release does not know: {source!r}")
