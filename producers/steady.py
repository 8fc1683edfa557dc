"""Benchmark events: many ports and users, all of them valid, made as fast as they can be sent."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random

_LEAST_TEMPLATES = 8_192
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_MODELS = (
    ("openai", "gpt-5-mini"),
    ("openai", "gpt-5"),
    ("openai", "gpt-4o"),
    ("anthropic", "claude-sonnet-4-5"),
    ("google", "gemini-2.5-flash"),
)


def steady(
    count: int,
    seed: int = 1,
    *,
    ports: int = 200,
    users: int = 5_000,
    end: datetime | None = None,
    events_per_s: int = 20_000,
) -> Iterator[tuple[bytes, bytes]]:
    """``count`` (key, value) pairs of about 330 bytes each, in the order of their times.

    The times are ``events_per_s`` apart and lead up to ``end`` (2026-01-01 without one); the
    identifiers depend on ``seed``, so that two seeds never repeat one another's events.
    """
    templates = _templates(Random(seed), ports, users)
    kinds = len(templates)
    prefix = b"%08x" % (seed & 0xFFFFFFFF)
    last = end.astimezone(UTC) if end is not None else _EPOCH
    length_s = count // events_per_s + 1
    start = last.replace(microsecond=0) - timedelta(seconds=length_s)
    step_us = 1_000_000 // events_per_s or 1
    number = 0
    for at_s in range(length_s):
        second = (start + timedelta(seconds=at_s)).strftime("%Y-%m-%dT%H:%M:%S").encode()
        for turn in range(min(events_per_s, count - number)):
            key, head, tail = templates[(number * 2_654_435_761 >> 7) % kinds]
            yield (
                key,
                b"%b%b%012x%b%b.%06dZ%b"
                % (
                    head,
                    prefix,
                    number,
                    b'","occurred_at":"',
                    second,
                    turn * step_us % 1_000_000,
                    tail,
                ),
            )
            number += 1


def _templates(rng: Random, ports: int, users: int) -> list[tuple[bytes, bytes, bytes]]:
    """Keys with what stands before the event's id and after its time."""
    templates: list[tuple[bytes, bytes, bytes]] = []
    for number in range(max(_LEAST_TEMPLATES, 2 * users)):
        port = f"port-{number % ports:04d}"
        user = number % users
        provider, model = rng.choice(_MODELS)
        read = rng.randrange(500, 9_000)
        tail = (
            f'","port_id":"{port}","user_id":"user-{user:05d}","organization_id":"org-{user % 20}",'
            f'"group_id":"group-{user % 60}","service":"inbox","feature":"reply_draft",'
            f'"kind":"llm","provider":"{provider}","model":"{model}","input_tokens":{read},'
            f'"cached_input_tokens":{read // 3},"output_tokens":{rng.randrange(20, 900)}}}'
        )
        templates.append((port.encode(), b'{"event_id":"', tail.encode()))
    return templates
