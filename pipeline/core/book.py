"""The built-in book: the prices that apply where no rate was set, as plain exact data.

It is compiled from the data of ``genai-prices`` (``core.book_source``) and answers like that
library: the same matching of provider and model references, the same dates, times of day,
context tiers and service tiers. ``digest`` identifies its content.
"""

import hashlib
import re
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import cache
from typing import Any

import msgspec

from pipeline.core.errors import CorruptRecord
from pipeline.core.tariffs import Prices, Tariff, nano_per_unit

CURRENCY = "USD"
# Part of the digest: raise it when the same data would price otherwise than before.
MEANING = 1

DAY_US = 86_400_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LITELLM = "litellm"

# (kind, text) for equals, starts_with, ends_with, contains, regex; (kind, clauses) for or, and.
Clause = tuple[str, "str | tuple[Clause, ...]"]


class BookPrice(msgspec.Struct, frozen=True):
    """``price`` whole currency per ``per`` units of ``counter``, by tier of input tokens."""

    counter: str
    per: int
    price: str
    tiers: tuple[tuple[int, str], ...] = ()


class Season(msgspec.Struct, frozen=True):
    """When prices apply: from ``start_us`` on, or daily in a window of microseconds, or always."""

    start_us: int | None = None
    window_us: tuple[int, int] | None = None

    def contains(self, at_us: int) -> bool:
        if self.start_us is not None:
            return at_us >= self.start_us
        if self.window_us is not None:
            start, end = self.window_us
            time_us = at_us % DAY_US
            if end < start:
                return time_us >= start or time_us < end
            return start <= time_us < end
        return True

    @property
    def label(self) -> str:
        if self.start_us is not None:
            return (_EPOCH + timedelta(microseconds=self.start_us)).date().isoformat()
        if self.window_us is not None:
            start, end = (_EPOCH + timedelta(microseconds=edge) for edge in self.window_us)
            return f"{start:%H:%M}-{end:%H:%M}"
        return "base"


class SeasonPrices(msgspec.Struct, frozen=True):
    """Prices and when they apply."""

    season: Season
    prices: tuple[BookPrice, ...]


class Variant(msgspec.Struct, frozen=True):
    """Prices that replace the standard ones, each key on its own, in one request context."""

    when: tuple[tuple[str, str], ...]
    season: Season
    prices: tuple[BookPrice, ...]


class ByLength(msgspec.Struct, frozen=True):
    """A price by time or length for events that count no tokens."""

    unit: str
    since: str
    price: BookPrice


_PREPARED = msgspec.json.Decoder(
    tuple[tuple[SeasonPrices, ...], tuple[Variant, ...], ByLength | None]
)
"""Unused, but made while the module is imported: msgspec 0.22 crashes the interpreter when two
threads meet a struct's type for the first time at once, as two meters of a process would."""


class BookModel(msgspec.Struct, frozen=True):
    """One model: how it is recognised and what it costs; the last season that applies counts."""

    model_id: str
    match: Clause
    seasons: tuple[SeasonPrices, ...]
    variants: tuple[Variant, ...] = ()
    minimum_audio_s: int = 0
    by_length: ByLength | None = None


class BookProvider(msgspec.Struct, frozen=True):
    """A provider's models in order of matching, then those of its fallback providers."""

    provider_id: str
    models: tuple[BookModel, ...]
    provider_match: Clause | None = None
    model_match: Clause | None = None
    fallbacks: tuple[str, ...] = ()


class BookContent(msgspec.Struct, frozen=True):
    """All that a book says; its canonical JSON is what the digest is taken of."""

    source: str
    providers: tuple[BookProvider, ...]
    free: tuple[str, ...] = ()
    meaning: int = MEANING


def decode_content(data: bytes) -> BookContent:
    """The content of a book from its JSON, as the digest is taken of it.

    Raises ``CorruptRecord`` when it is none.
    """
    try:
        body = msgspec.json.decode(data)
        return BookContent(
            source=body["source"],
            providers=tuple(map(_decoded_provider, body["providers"])),
            free=tuple(body["free"]),
            meaning=body["meaning"],
        )
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
        raise CorruptRecord(f"no price book: {type(error).__name__} {error}") from error


class Listing:
    """A model of the book as found for one provider and model reference."""

    __slots__ = ("_contexts", "is_free", "model", "name")

    def __init__(self, name: str, model: BookModel | None, own: bool = True) -> None:
        self.name = name
        self.model = model
        self.is_free = model is None
        # The library applies a provider's variants to its own models only.
        self._contexts = model.variants if model is not None and own else ()

    def variants(self, service_tier: str) -> tuple[Variant, ...]:
        """The variants that an event's ``service_tier`` selects, first to last."""
        if not service_tier or not self._contexts:
            return ()
        context = context_of(service_tier)
        return tuple(
            variant
            for variant in self._contexts
            if all(context.get(key) == value for key, value in variant.when)
        )

    def seasons(self, service_tier: str) -> list[Season]:
        """Every season whose edges can change the price."""
        if self.model is None:
            return []
        found = [entry.season for entry in self.model.seasons]
        found += [variant.season for variant in self.variants(service_tier)]
        if self.model.by_length is not None:
            found.append(Season(date_us(self.model.by_length.since)))
        return found

    def tariff_at(self, at_us: int, service_tier: str) -> tuple[str, Tariff]:
        """The rate id and the tariff in force at a time; a free listing has empty prices."""
        if self.model is None:
            return f"book:{self.name}", Tariff({})
        rate_id = f"book:{self.name}"
        merged: dict[str, BookPrice] = {}
        entry = _season_at(self.model.seasons, at_us)
        if entry is not None:
            rate_id += f"@{entry.season.label}"
            merged = {price.counter: price for price in entry.prices}
        overrides: dict[str, BookPrice] = {}
        labels: list[str] = []
        for variant in self.variants(service_tier):
            if variant.season.contains(at_us):
                labels.append(variant.season.label)
                for price in variant.prices:
                    overrides.setdefault(price.counter, price)
        if overrides:
            merged |= overrides
            rate_id += f"+{service_tier}@{max(labels)}"
        return rate_id, _tariff(tuple(merged.values()), self.model.minimum_audio_s)

    def by_length_at(self, at_us: int) -> tuple[str, Tariff] | None:
        """The rate id and tariff for an event without tokens, where the book has one."""
        extra = self.model.by_length if self.model is not None else None
        if extra is None or at_us < date_us(extra.since):
            return None
        return f"book:{self.name}+{extra.unit}@{extra.since}", _tariff((extra.price,), 0)


class Book:
    """Finds models in a book's content; immutable."""

    def __init__(self, content: BookContent) -> None:
        self.content = content
        self.digest = hashlib.sha256(msgspec.json.encode(content)).hexdigest()
        self._by_id = {entry.provider_id: _Matcher(entry) for entry in content.providers}
        self._free = frozenset(content.free)

    def find(self, provider: str, model: str) -> Listing | None:
        """What the book lists for references as they stand in events; None when nothing."""
        if provider in self._free:
            return Listing(provider, None)
        ref = model.lower()
        matcher: _Matcher | None = None
        if provider.lower() == _LITELLM:
            prefix, slash, rest = ref.partition("/")
            matcher = self._provider(prefix) if slash and prefix else None
            if matcher is not None:
                ref = rest
            else:
                matcher = self._provider(provider) or self._provider_of_model(ref)
        else:
            matcher = self._provider(provider)
        if matcher is None:
            return None
        return self._model(matcher, ref) or self._model(matcher, _dashed_date(ref))

    def _model(self, matcher: "_Matcher", ref: str) -> Listing | None:
        owners = [matcher, *(self._by_id.get(name) for name in matcher.provider.fallbacks)]
        for owner in owners:
            model = owner.find(ref) if owner is not None else None
            if owner is not None and model is not None:
                name = f"{owner.provider.provider_id}/{model.model_id}"
                return Listing(name, model, own=owner is matcher)
        return None

    def _provider(self, reference: str) -> "_Matcher | None":
        name = reference.lower().strip()
        exact = self._by_id.get(name)
        if exact is not None:
            return exact
        for matcher in self._by_id.values():
            clause = matcher.provider.provider_match
            if clause is not None and matches(clause, name):
                return matcher
        return None

    def _provider_of_model(self, ref: str) -> "_Matcher | None":
        for matcher in self._by_id.values():
            clause = matcher.provider.model_match
            if ref and clause is not None and matches(clause, ref):
                return matcher
        return None


@cache
def builtin_book() -> Book:
    """The book of the installed ``genai-prices`` and the repository's own dated file.

    Compiled at the first call (about a second, the import of the library included).
    """
    from pipeline.core.book_source import compile_content

    return Book(compile_content())


def context_of(service_tier: str) -> dict[str, str]:
    """The request context, in the words of ``genai-prices``, that a service tier stands for.

    Batch and fast are no service tiers there but ways of processing; providers report them in
    the same field (``"service_tier": "batch"``).
    """
    context = {"service_tier": service_tier}
    if service_tier == "batch":
        context["processing"] = "batch"
    elif service_tier == "fast":
        context["speed"] = "fast"
    return context


def matches(clause: Clause, text: str) -> bool:
    """Whether lower-case ``text`` satisfies ``clause``."""
    kind, operand = clause
    if isinstance(operand, tuple):
        results = (matches(inner, text) for inner in operand)
        return any(results) if kind == "or" else all(results)
    if kind == "equals":
        return text == operand
    if kind == "starts_with":
        return text.startswith(operand)
    if kind == "ends_with":
        return text.endswith(operand)
    if kind == "contains":
        return operand in text
    return re.search(operand, text) is not None


def date_us(day: str) -> int:
    """Microseconds since 1970 of a UTC date such as ``2026-10-12``."""
    return (date.fromisoformat(day) - date(1970, 1, 1)).days * DAY_US


class _Matcher:
    """A provider's models, with those that are matched by name alone in a dict."""

    def __init__(self, provider: BookProvider) -> None:
        self.provider = provider
        self._named: dict[str, int] = {}
        self._others: list[tuple[int, Clause]] = []
        for index, model in enumerate(provider.models):
            names, rest = _split(model.match)
            for name in names:
                self._named.setdefault(name, index)
            if rest is not None:
                self._others.append((index, rest))

    def find(self, ref: str) -> BookModel | None:
        """The first model whose clause matches lower-case ``ref``."""
        found = self._named.get(ref)
        for index, clause in self._others:
            if found is not None and index > found:
                break
            if matches(clause, ref):
                found = index
                break
        return self.provider.models[found] if found is not None else None


def _split(clause: Clause) -> tuple[list[str], Clause | None]:
    """The names a clause matches whole, and what is left of it."""
    kind, operand = clause
    if kind == "equals" and isinstance(operand, str):
        return [operand], None
    if kind != "or" or isinstance(operand, str):
        return [], clause
    names: list[str] = []
    rest: list[Clause] = []
    for inner in operand:
        found, left = _split(inner)
        names += found
        if left is not None:
            rest.append(left)
    return names, ("or", tuple(rest)) if rest else None


def _decoded_provider(body: dict[str, Any]) -> BookProvider:
    return BookProvider(
        provider_id=body["provider_id"],
        models=tuple(map(_decoded_model, body["models"])),
        provider_match=_decoded_clause(body["provider_match"]),
        model_match=_decoded_clause(body["model_match"]),
        fallbacks=tuple(body["fallbacks"]),
    )


def _decoded_model(body: dict[str, Any]) -> BookModel:
    match = _decoded_clause(body["match"])
    if match is None:
        raise ValueError("a model without a clause")
    # msgspec has no type for a clause, which holds clauses.
    return BookModel(
        model_id=body["model_id"],
        match=match,
        seasons=msgspec.convert(body["seasons"], tuple[SeasonPrices, ...]),
        variants=msgspec.convert(body["variants"], tuple[Variant, ...]),
        minimum_audio_s=body["minimum_audio_s"],
        by_length=msgspec.convert(body["by_length"], ByLength | None),
    )


def _decoded_clause(body: list[Any] | None) -> Clause | None:
    if body is None:
        return None
    kind, operand = body
    if isinstance(operand, str):
        return kind, operand
    return kind, tuple(clause for inner in operand if (clause := _decoded_clause(inner)))


_COMPACT_DATE = re.compile(r"(-)(20\d{2})(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


def _dashed_date(ref: str) -> str:
    """``ref`` with a date such as ``-20251211`` written ``-2025-12-11``."""

    def replace(found: re.Match[str]) -> str:
        year, month, day = (int(found.group(index)) for index in (2, 3, 4))
        try:
            return f"-{date(year, month, day).isoformat()}"
        except ValueError:
            return found.group(0)

    return _COMPACT_DATE.sub(replace, ref)


def _season_at(seasons: tuple[SeasonPrices, ...], at_us: int) -> SeasonPrices | None:
    for entry in reversed(seasons):
        if entry.season.contains(at_us):
            return entry
    return seasons[0] if seasons else None


def _tariff(prices: tuple[BookPrice, ...], minimum_audio_s: int) -> Tariff:
    starts = sorted({start for price in prices for start, _ in price.tiers})
    brackets: tuple[tuple[int, Prices], ...] = tuple(
        (start, {price.counter: _nano_above(price, start) for price in prices}) for start in starts
    )
    base = {price.counter: nano_per_unit(price.price, price.per) for price in prices}
    return Tariff(base, brackets, minimum_audio_s)


def _nano_above(price: BookPrice, start: int) -> Fraction:
    """The price of an event with more than ``start`` input tokens, up to the next tier."""
    found = price.price
    for tier_start, tier_price in price.tiers:
        if tier_start <= start:
            found = tier_price
    return nano_per_unit(found, price.per)
