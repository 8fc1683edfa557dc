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
from typing import Any, NamedTuple

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, Provider

from pipeline.core.book import Book, BookModel, Clause, builtin_book, context_of
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
    owners = [p.id for p, m in all_models() if m is info] if info else []
    return f"{owners[0]}/{info.id}"


def test_every_model_costs_what_the_library_says(book: Book, version: PriceVersion) -> None:
    by_name = {
        (provider.provider_id, model.model_id): model
        for provider in book.content.providers
        for model in provider.models
    }
    refs = _references_by_model(book)
    checked = 0
    for number, (provider, model) in enumerate(all_models()):
        ours = by_name[provider.id, model.id]
        ref = refs.get((provider.id, model.id))
        if ref is None:
            continue
        tiers = TIERS if ours.variants else ("", "flex")
        for at_us in edges_us(ours):
            for tier in tiers if at_us > 1_760_000_000_000_000 else ("",):
                given = mix(number, 31_000)
                expected, _ = library_nano(provider, model, given, at_us, tier)
                price = version.price(event(provider.id, ref, at_us, tier, **given.counts))
                if price != UNPRICED:
                    assert price.cost_nano == expected, (provider.id, model.id, at_us, tier)
                    checked += 1
                else:
                    assert expected == 0, (provider.id, model.id, at_us, tier)
    assert checked > 6_000


def _references_by_model(book: Book) -> dict[tuple[str, str], str]:
    """For each model a reference that finds it; a few stand in the shadow of an earlier one."""
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
