"""What the simulated services call: models with their counters, ports, people."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

Counters = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of call. ``counters`` draws what it used; ``label`` names a special case."""

    weight: int
    provider: str
    model: str
    kind: str
    features: tuple[str, ...]
    counters: Callable[[Random], Counters]
    label: str = "valid"


@dataclass(frozen=True, slots=True)
class Person:
    """A user with the organisation and group that their calls are booked on."""

    user_id: str
    organization_id: str
    group_id: str
    port_id: str


PORTS = (
    *(f"harbor-{number}" for number in range(1, 10)),
    "hafen-köln",
    "quay|north:2",
    "pier-a",
)
ORGANIZATIONS = ("northwind", "baltic", "org:meridian", "solo")
GROUPS = tuple(f"team-{name}" for name in ("ops", "billing", "claims", "desk", "field", "lab"))

HOUR_WEIGHTS = (
    3,
    2,
    2,
    2,
    3,
    5,
    12,
    25,
    48,
    62,
    66,
    60,
    45,
    58,
    64,
    60,
    52,
    38,
    26,
    20,
    16,
    12,
    8,
    5,
)
"""How busy each UTC hour of a day is, relative to the others."""


def chat(rng: Random) -> Counters:
    """A chat call, often with a cached prefix, sometimes with a search."""
    read = int(rng.lognormvariate(7.0, 0.9)) + 20
    written = int(rng.lognormvariate(5.3, 0.8)) + 5
    counters: Counters = {"input_tokens": read, "output_tokens": written}
    if rng.random() < 0.35:
        counters["cached_input_tokens"] = rng.randrange(read)
    if rng.random() < 0.04:
        counters["web_searches"] = rng.randint(1, 3)
    return counters


def reasoning(rng: Random) -> Counters:
    """A chat call whose output is partly reasoning."""
    counters = chat(rng)
    counters["output_tokens"] += rng.randrange(200, 3_000)
    counters["reasoning_tokens"] = rng.randrange(counters["output_tokens"])
    return counters


def cache_writing(rng: Random) -> Counters:
    """A chat call that writes to the provider's prompt cache; a few cross a price tier."""
    read = rng.randrange(2_000, 30_000) if rng.random() < 0.97 else rng.randrange(200_001, 260_000)
    cached = rng.randrange(read // 2)
    writes = rng.randrange(read // 4)
    long_writes = rng.randrange(read // 8) if rng.random() < 0.3 else 0
    return {
        "input_tokens": read,
        "cached_input_tokens": cached,
        "cache_write_tokens": writes,
        "cache_write_1h_tokens": long_writes,
        "output_tokens": rng.randrange(50, 4_000),
    }


def multimodal(rng: Random) -> Counters:
    """A call that reads pictures and sound beside text."""
    text, image, audio = rng.randrange(50, 2_000), rng.randrange(258, 3_000), rng.randrange(2_000)
    return {
        "input_tokens": text + image + audio,
        "input_image_tokens": image,
        "input_audio_tokens": audio,
        "output_tokens": rng.randrange(20, 900),
    }


def speech(rng: Random) -> Counters:
    """A transcription, reported by time: as a number or as a decimal string."""
    seconds = rng.randrange(2_000, 600_000)
    if rng.random() < 0.5:
        return {"audio_seconds": seconds / 1000}
    return {"audio_seconds": f"{seconds // 1000}.{seconds % 1000:03d}"}


def voice(rng: Random) -> Counters:
    """Text read aloud, reported by characters."""
    return {"characters": rng.randrange(20, 4_000)}


def embedding(rng: Random) -> Counters:
    """An embedding: input only."""
    return {"input_tokens": rng.randrange(100, 9_000)}


def picture(rng: Random) -> Counters:
    """A generated picture, reported in tokens and images."""
    prompt = rng.randrange(20, 400)
    return {"input_tokens": prompt, "output_tokens": rng.choice((272, 1056, 4160)), "images": 1}


def searching(rng: Random) -> Counters:
    """An answer engine's call, which has a price per request."""
    return {"input_tokens": rng.randrange(20, 600), "output_tokens": rng.randrange(80, 900)}


def local(rng: Random) -> Counters:
    """A call to a model on our own machines."""
    return {**chat(rng), "self_hosted": True}


def cached(rng: Random) -> Counters:
    """An answer that came from our own response cache."""
    return {**chat(rng), "cache_hit": True}


_TALK = ("reply_draft", "summary", "ocr", "triage", "chat")
WORKLOADS = (
    Workload(230, "openai", "gpt-5-mini", "llm", _TALK, reasoning),
    Workload(120, "openai", "gpt-5", "llm", _TALK, reasoning),
    Workload(90, "openai", "gpt-5-nano", "llm", ("triage", "routing"), chat),
    Workload(70, "openai", "gpt-4o", "llm", ("ocr", "chat"), chat),
    Workload(60, "openai", "gpt-4o-mini", "llm", _TALK, chat),
    Workload(90, "anthropic", "claude-sonnet-4-5", "llm", _TALK, cache_writing),
    Workload(60, "anthropic", "claude-haiku-4-5", "llm", _TALK, cache_writing),
    Workload(60, "google", "gemini-2.5-flash", "llm", ("ocr", "video"), multimodal),
    Workload(25, "google", "gemini-2.5-pro", "llm", _TALK, cache_writing),
    Workload(20, "mistral", "mistral-small-latest", "llm", _TALK, chat),
    Workload(10, "perplexity", "sonar", "other", ("research",), searching),
    Workload(40, "openai", "gpt-4o-transcribe", "stt", ("dictation", "calls"), speech),
    Workload(12, "openai", "gpt-4o-mini-transcribe", "stt", ("dictation",), speech),
    Workload(25, "openai", "gpt-4o-mini-tts", "tts", ("readout",), voice),
    Workload(8, "openai", "tts-1", "tts", ("readout",), voice),
    Workload(90, "openai", "text-embedding-3-small", "embedding", ("embedding",), embedding),
    Workload(8, "openai", "gpt-image-1", "image", ("banner",), picture),
    Workload(25, "speaches", "whisper-large-v3", "stt", ("dictation",), speech, "self-hosted"),
    Workload(15, "piper", "en_GB-alba-medium", "tts", ("readout",), voice, "self-hosted"),
    Workload(30, "ollama", "llama3.2:3b", "llm", ("triage",), local, "self-hosted"),
    Workload(25, "cache", "gpt-5-mini", "llm", _TALK, cached, "cache-hit"),
    Workload(12, "acme", "frontier-x1", "llm", ("chat",), chat, "unpriced"),
    Workload(6, "openai", "gpt-4o", "other", ("pages",), lambda rng: {"images": 2}, "unpriced"),
)


def people(rng: Random, count: int) -> list[Person]:
    """``count`` users, each with a home port; the last of ``PORTS`` are the quieter ones."""
    return [
        Person(
            user_id=f"u{number:03d}",
            organization_id=rng.choice(ORGANIZATIONS) if rng.random() < 0.95 else "",
            group_id=rng.choice(GROUPS) if rng.random() < 0.8 else "",
            port_id=PORTS[min(int(rng.expovariate(0.25)), len(PORTS) - 1)],
        )
        for number in range(1, count + 1)
    ]
