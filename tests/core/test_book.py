"""The built-in book against the library it is compiled from.

Deviations from ``genai_prices.calc_price``, all of them on purpose:

- Where nothing that is present has a price the library says 0; here the event is unpriced.
- A cost beyond 64 bits of nanos is unpriced.
- An event has no video tokens, document pages, citations, messages, storage or social searches
  and code executions, so those prices never apply.
- The parts of an event are disjoint: what is cached is not also counted as audio or image, what
  is audio output not also as reasoning. The library gets 0 for every such intersection.
- One field carries what the library takes as three: a service tier ``batch`` also stands for
  ``processing: batch``, and ``fast`` also for ``speed: fast``.
- ``extra_prices.json`` prices some models by time or length when an event counts no tokens, and
  five providers are free whatever the model.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache
from typing import Any, NamedTuple

import msgspec
import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider

from pipeline.core.book import (
    Book,
    BookModel,
    Clause,
    builtin_book,
    context_of,
    decode_content,
)
from pipeline.core.book_source import compile_content
from pipeline.core.errors import CorruptRecord
from pipeline.core.events import Event
from pipeline.core.prices import UNPRICED, PriceVersion
from pipeline.core.rates import RateLog

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FREE = ("speaches", "piper", "cache", "tesseract", "ollama")
BY_LENGTH = {"gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-4o-mini-tts"}
TIERS = ("", "flex", "priority", "default", "fast", "batch", "nonsense")
INTERSECTIONS = (
    "cache_audio_read_tokens",
    "cache_audio_write_tokens",
    "cache_audio_write_1h_tokens",
    "cache_image_read_tokens",
    "cache_image_write_tokens",
    "cache_image_write_1h_tokens",
    "output_audio_reasoning_tokens",
    "output_audio_seconds",
)


class Mix(NamedTuple):
    """Counts of one event by contract counter, ``audio_nano`` included."""

    counts: dict[str, int]

    def usage(self) -> Usage:
        get = self.counts.get
        seconds = Decimal(get("audio_nano", 0)).scaleb(-9)
        return Usage(
            input_tokens=get("input_tokens", 0),
            cache_read_tokens=get("cached_input_tokens", 0),
            cache_write_tokens=get("cache_write_tokens", 0) + get("cache_write_1h_tokens", 0),
            cache_write_1h_tokens=get("cache_write_1h_tokens", 0),
            input_audio_tokens=get("input_audio_tokens", 0),
            input_image_tokens=get("input_image_tokens", 0),
            output_tokens=get("output_tokens", 0),
            output_reasoning_tokens=get("reasoning_tokens", 0),
            output_audio_tokens=get("output_audio_tokens", 0),
            input_characters=get("characters", 0),
            web_searches=get("web_searches", 0),
            audio_seconds=seconds,
            input_audio_seconds=seconds,
            **dict.fromkeys(INTERSECTIONS, 0),
        )


PARTS_IN = (
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
)
PARTS_OUT = ("reasoning_tokens", "output_audio_tokens")


def mix(seed: int, input_tokens: int) -> Mix:
    """Every counter above 0 (but ``images``), parts within their wholes."""
    chance = random.Random(seed)
    counts = {"input_tokens": input_tokens, "output_tokens": chance.randrange(10, 90_000)}
    for whole, parts in (("input_tokens", PARTS_IN), ("output_tokens", PARTS_OUT)):
        left = counts[whole]
        for part in parts:
            counts[part] = chance.randint(1, max(1, left // 2))
            left -= counts[part]
    counts["characters"] = chance.randrange(1, 5_000)
    counts["web_searches"] = chance.randrange(1, 9)
    counts["audio_nano"] = chance.randrange(1, 90 * 10**9)
    return Mix(counts)


@pytest.fixture(scope="module")
def book() -> Book:
    return builtin_book()


@pytest.fixture(scope="module")
def version(book: Book) -> PriceVersion:
    return PriceVersion(RateLog().snapshot(), book)


def event(provider: str, model: str, at_us: int, tier: str = "", **counts: int) -> Event:
    return Event("e", at_us, "p", provider, model, service_tier=tier, **counts)


def edges_us(model: BookModel) -> list[int]:
    """Instants on both sides of everything that can change a price."""
    seasons = [entry.season for entry in model.seasons] + [v.season for v in model.variants]
    day_us = us(datetime(2026, 10, 20, tzinfo=UTC))
    found = {us(datetime(2024, 1, 2, 3, tzinfo=UTC)), us(datetime(2027, 6, 1, 12, tzinfo=UTC))}
    for season in seasons:
        if season.start_us is not None:
            found |= {season.start_us - 1, season.start_us}
        if season.window_us is not None:
            for edge_us in season.window_us:
                found |= {day_us + edge_us - 1, day_us + edge_us}
    return sorted(found)


def us(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def library_nano(
    provider: Provider, model: ModelInfo, given: Mix, at_us: int, tier: str
) -> tuple[int, ModelPrice]:
    with localcontext(prec=80):
        answer = model.calc_price(
            given.usage(),
            provider,
            genai_request_timestamp=EPOCH + timedelta(microseconds=at_us),
            price_context=context_of(tier) if tier else None,
        )
        nano = answer.total_price.scaleb(9).quantize(Decimal(1), ROUND_HALF_EVEN)
    return int(nano), answer.model_price


def references(clause: Clause) -> Iterator[str]:
    """Texts that the clause is made of, each likely to satisfy it."""
    kind, operand = clause
    if isinstance(operand, str):
        yield operand
    else:
        for inner in operand:
            yield from references(inner)
        if kind == "and":
            yield "".join(text for inner in operand for text in references(inner))


def all_models() -> Iterator[tuple[Provider, ModelInfo]]:
    for provider in get_snapshot().providers:
        for model in provider.models:
            yield provider, model


def test_every_reference_finds_the_model_that_the_library_finds(book: Book) -> None:
    snapshot = get_snapshot()
    checked = 0
    for provider in book.content.providers:
        for model in provider.models:
            texts = {model.model_id, *references(model.match)}
            for text in {*texts, *(t.upper() + "-20251211" for t in list(texts)[:1])}:
                assert found_by_library(provider.provider_id, text) == found(
                    book, provider.provider_id, text
                )
                checked += 1
    assert checked > 2 * len([None for p in snapshot.providers for _ in p.models])


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("OpenAI", "GPT-5"),
        (" openai ", "gpt-5"),
        ("my-openai-proxy", "gpt-5-mini"),
        ("azure", "gpt-5"),
        ("azure", "claude-sonnet-4-5"),
        ("azure", "no-such-model"),
        ("aws-bedrock", "anthropic.claude-3-5-sonnet-20240620-v1:0"),
        ("google-vertex", "claude-opus-4-1"),
        ("litellm", "openai/gpt-5"),
        ("litellm", "gpt-5"),
        ("LiteLLM", "nobody/claude-3-opus"),
        ("litellm", "/gpt-5"),
        ("litellm", "nobody/nothing"),
        ("openai", "gpt-5.2-20251211"),
        ("openai", "gpt-5-20259999"),
        ("openai", ""),
        ("nobody", "gpt-5"),
        ("xai", "grok-4"),
        ("ollama", "llama3"),
    ],
)
def test_references_as_services_write_them(book: Book, provider: str, model: str) -> None:
    if provider in FREE:
        assert found(book, provider, model) == provider
    else:
        assert found(book, provider, model) == found_by_library(provider, model)


def found(book: Book, provider: str, model: str) -> str | None:
    listing = book.find(provider, model)
    return None if listing is None else listing.name


def found_by_library(provider: str, model: str) -> str | None:
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return owners()[id(info)]


@cache
def owners() -> dict[int, str]:
    """The full name of each of the library's models, by object identity."""
    return {id(model): f"{provider.id}/{model.id}" for provider, model in all_models()}


class Listed(NamedTuple):
    """One model in the library's form and in ours, and a reference that finds it."""

    number: int
    provider: Provider
    model: ModelInfo
    ours: BookModel
    ref: str


@pytest.fixture(scope="module")
def listed(book: Book) -> list[Listed]:
    by_name = {
        (provider.provider_id, model.model_id): model
        for provider in book.content.providers
        for model in provider.models
    }
    refs = _references_by_model(book)
    return [
        Listed(number, provider, model, by_name[provider.id, model.id], ref)
        for number, (provider, model) in enumerate(all_models())
        if (ref := refs.get((provider.id, model.id))) is not None
    ]


def test_every_model_can_be_reached(listed: list[Listed]) -> None:
    assert len(listed) == len(owners())


def assert_same(version: PriceVersion, one: Listed, given: Mix, at_us: int, tier: str = "") -> bool:
    """Checks one price against the library; whether the event was priced at all."""
    expected, prices = library_nano(one.provider, one.model, given, at_us, tier)
    price = version.price(event(one.provider.id, one.ref, at_us, tier, **given.counts))
    place = (one.provider.id, one.model.id, at_us, tier, given)
    if price == UNPRICED:
        assert not any(_is_priced(prices, counter) for counter, n in given.counts.items() if n), (
            place
        )
        return False
    assert price.cost_nano == expected, place
    return True


PRICE_KEYS = {
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
}


def _is_priced(prices: ModelPrice, counter: str) -> bool:
    """A part always stands beside its whole here, so its whole's price need not be asked."""
    if prices.requests_kcount is not None:
        return True
    key = PRICE_KEYS.get(counter)
    return key is not None and getattr(prices, key) is not None


def test_every_model_date_and_service_tier_costs_what_the_library_says(
    version: PriceVersion, listed: list[Listed]
) -> None:
    checked = 0
    for one in listed:
        given = mix(one.number, 31_000)
        tiers = TIERS if one.ours.variants else ("", "flex")
        for at_us in edges_us(one.ours):
            for tier in tiers:
                checked += assert_same(version, one, given, at_us, tier)
    assert checked > 9_000


def test_every_context_tier_begins_above_its_threshold(
    version: PriceVersion, listed: list[Listed]
) -> None:
    checked = 0
    for one in listed:
        for entry in (*one.ours.seasons, *one.ours.variants):
            starts = {start for price in entry.prices for start, _ in price.tiers}
            at_us = (entry.season.start_us or us(datetime(2026, 10, 20, tzinfo=UTC))) + 5
            for start in sorted(starts):
                for input_tokens in (start, start + 1, start * 3):
                    given = mix(one.number, input_tokens)
                    checked += assert_same(version, one, given, at_us, "flex")
    assert checked > 500


@pytest.mark.parametrize("counter", [*PARTS_IN, *PARTS_OUT, *PRICE_KEYS])
def test_each_counter_alone(version: PriceVersion, listed: list[Listed], counter: str) -> None:
    """On one model for each set of prices there is."""
    at_us = us(datetime(2026, 11, 3, 2, tzinfo=UTC))
    seen: set[tuple[str, ...]] = set()
    for one in listed:
        keys = tuple(sorted({p.counter for e in one.ours.seasons for p in e.prices}))
        if keys in seen or one.model.id in BY_LENGTH:
            continue
        seen.add(keys)
        counts = {counter: 987_654_321 if counter == "audio_nano" else 777}
        if counter in PARTS_IN:
            counts["input_tokens"] = 777
        if counter in PARTS_OUT:
            counts["output_tokens"] = 777
        assert_same(version, one, Mix(counts), at_us)
    assert len(seen) > 15


def test_short_audio_is_billed_for_the_minimum(version: PriceVersion) -> None:
    at_us = us(datetime(2026, 11, 3, tzinfo=UTC))
    costs = [
        version.price(event("groq", "whisper-large-v3", at_us, audio_nano=seconds * 10**9))
        for seconds in (1, 10, 20)
    ]
    assert [price.cost_nano for price in costs] == [308_333, 308_333, 616_667]


@pytest.mark.parametrize(
    ("model", "counts", "cost_nano", "name"),
    [
        ("gpt-4o-transcribe", {"audio_nano": 60 * 10**9}, 6_000_000, "seconds"),
        ("gpt-4o-mini-transcribe", {"audio_nano": 60 * 10**9}, 3_000_000, "seconds"),
        ("gpt-4o-mini-tts", {"characters": 1_000}, 15_000_000, "characters"),
    ],
)
def test_by_time_or_length_where_no_tokens_are_counted(
    version: PriceVersion, model: str, counts: dict[str, int], cost_nano: int, name: str
) -> None:
    at_us = us(datetime(2026, 11, 3, tzinfo=UTC))
    price = version.price(event("openai", model, at_us, **counts))
    assert price.cost_nano == cost_nano
    assert price.rate_id == f"book:openai/{model}+{name}@2025-03-20"
    assert version.price(event("azure", model, at_us, **counts)).cost_nano == cost_nano
    by_tokens = version.price(event("openai", model, at_us, input_tokens=1_000_000, **counts))
    assert by_tokens.rate_id == f"book:openai/{model}@base"
    assert (
        by_tokens.cost_nano
        == {
            "gpt-4o-transcribe": 2_500_000_000,
            "gpt-4o-mini-transcribe": 1_250_000_000,
            "gpt-4o-mini-tts": 600_000_000,
        }[model]
    )
    before_us = us(datetime(2025, 3, 19, tzinfo=UTC))
    assert version.price(event("openai", model, before_us, **counts)) == UNPRICED
    assert version.price(event("openai", model, at_us, images=1)) == UNPRICED


@pytest.mark.parametrize("provider", FREE)
def test_free_providers_cost_nothing_whatever_the_model(
    version: PriceVersion, provider: str
) -> None:
    price = version.price(event(provider, "anything", 0, input_tokens=5, images=1))
    assert (price.cost_nano, price.status, price.rate_id) == (0, "free", f"book:{provider}")


def test_what_the_book_does_not_list_is_unpriced(version: PriceVersion) -> None:
    at_us = us(datetime(2026, 11, 3, tzinfo=UTC))
    for provider, model in (("nobody", "gpt-5"), ("openai", "no-such"), ("Speaches ", "x")):
        assert version.price(event(provider, model, at_us, input_tokens=5)) == UNPRICED
        assert version.price(event(provider, model, at_us)) == UNPRICED
    # Listed, but nothing that is present has a price.
    assert version.price(event("openai", "gpt-5", at_us, images=2)) == UNPRICED
    assert version.price(event("openai", "gpt-5", at_us)).cost_nano == 0


def test_a_rate_id_names_one_tariff(book: Book) -> None:
    tariffs: dict[str, Any] = {}
    for provider in book.content.providers:
        for model in provider.models:
            listing = book.find(provider.provider_id, model.model_id)
            if listing is None or listing.model is not model:
                continue
            for tier in TIERS if model.variants else ("",):
                for at_us in edges_us(model):
                    rate_id, tariff = listing.tariff_at(at_us, tier)
                    assert "*" not in rate_id
                    assert tariffs.setdefault(rate_id, tariff) == tariff, rate_id
    assert len(tariffs) > 2_000


def test_the_digest_is_that_of_the_content(book: Book) -> None:
    content = book.content
    assert Book(compile_content()).digest == book.digest
    changed = [
        msgspec.structs.replace(content, free=content.free[1:]),
        msgspec.structs.replace(content, providers=content.providers[1:]),
        msgspec.structs.replace(content, meaning=content.meaning + 1),
    ]
    assert len({book.digest, *(Book(one).digest for one in changed)}) == 4


def test_the_library_has_no_model_whose_prices_differ_by_the_direction_of_audio() -> None:
    """An event has one figure for audio; the book would need two if this were no longer so."""
    for _, model in all_models():
        prices = model.prices if isinstance(model.prices, list) else [model]
        for entry in (*prices, *(model.price_variants or ())):
            found: Any = entry.prices
            if getattr(found, "input_audio_hours", None) is not None:
                assert found.input_audio_hours == found.audio_hours


def _references_by_model(book: Book) -> dict[tuple[str, str], str]:
    """For each model a reference that finds it."""
    found_refs: dict[tuple[str, str], str] = {}
    for provider in book.content.providers:
        for model in provider.models:
            for text in (model.model_id, *references(model.match)):
                if found(book, provider.provider_id, text) == (
                    f"{provider.provider_id}/{model.model_id}"
                ):
                    found_refs[provider.provider_id, model.model_id] = text
                    break
    return found_refs


def test_a_book_comes_back_from_its_json() -> None:
    content = builtin_book().content
    data = msgspec.json.encode(content)
    assert decode_content(data) == content
    assert Book(decode_content(data)).digest == builtin_book().digest


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"source":1}', b"\xff"])
def test_what_is_no_book_is_refused(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        decode_content(data)
