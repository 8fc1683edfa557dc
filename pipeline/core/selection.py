"""Which of the used rates applies: matching by exact name or glob, and the order of preference.

The order: an exact model beats a glob, a longer glob a shorter one; then the same for the
provider; then the latest ``effective_from``; then the later record.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from pipeline.core.rates import FxRate, Multiplier, PriceRate, Rate, UsedRate, Withdrawal

NEVER_US = 1 << 62

Matchable = TypeVar("Matchable", PriceRate, Multiplier)
Dated = TypeVar("Dated", PriceRate, Multiplier, FxRate, covariant=True)


@dataclass(frozen=True, slots=True)
class Span(Generic[Dated]):
    """A used rate and the time it applies to: ``[effective_from, until_us)`` of an event."""

    offset: int
    rate: Dated
    until_us: int = NEVER_US
    withdrawn_by: str | None = None

    def applies(self, at_us: int) -> bool:
        return self.rate.effective_from_us <= at_us < self.until_us

    def edges(self) -> tuple[int, int]:
        """The times at which it begins and ends to apply."""
        return self.rate.effective_from_us, self.until_us


@dataclass(frozen=True, slots=True)
class Spans:
    """The used rates of a log by kind, withdrawals applied."""

    prices: tuple[Span[PriceRate], ...]
    multipliers: tuple[Span[Multiplier], ...]
    fx: tuple[Span[FxRate], ...]


def spans_of(used: Iterable[UsedRate]) -> Spans:
    """Sorts used rates by kind and gives each the end that the earliest withdrawal sets."""
    ends = _ends(used)
    prices: list[Span[PriceRate]] = []
    multipliers: list[Span[Multiplier]] = []
    fx: list[Span[FxRate]] = []
    for entry in used:
        until_us, by = ends.get(entry.rate.rate_id, (NEVER_US, None))
        rate: Rate = entry.rate
        if isinstance(rate, PriceRate):
            prices.append(Span(entry.offset, rate, until_us, by))
        elif isinstance(rate, Multiplier):
            multipliers.append(Span(entry.offset, rate, until_us, by))
        elif isinstance(rate, FxRate):
            fx.append(Span(entry.offset, rate, until_us, by))
    return Spans(tuple(prices), tuple(multipliers), tuple(fx))


def matching(spans: Iterable[Span[Matchable]], provider: str, model: str) -> list[Span[Matchable]]:
    """The spans whose names match, the preferred ones first, whatever the time."""
    found = [
        span
        for span in spans
        if matches(span.rate.provider, provider) and matches(span.rate.model, model)
    ]
    return sorted(found, key=rank, reverse=True)


def first_at(spans: Iterable[Span[Dated]], at_us: int) -> Span[Dated] | None:
    """The first of ``spans`` that applies at a time."""
    return next((span for span in spans if span.applies(at_us)), None)


def newest_first(fx: Iterable[Span[FxRate]], currency: str) -> list[Span[FxRate]]:
    """The exchange rates of one currency, the preferred ones first."""
    found = [span for span in fx if span.rate.fx == currency]
    return sorted(found, key=lambda span: (span.rate.effective_from_us, span.offset), reverse=True)


def rank(span: Span[Matchable]) -> tuple[int, int, int, int, int, int]:
    """Greater is preferred."""
    rate = span.rate
    return (
        *_closeness(rate.model),
        *_closeness(rate.provider),
        rate.effective_from_us,
        span.offset,
    )


def is_glob(pattern: str) -> bool:
    """``*`` stands for any run of characters, ``?`` for one; nothing else is special."""
    return "*" in pattern or "?" in pattern


def matches(pattern: str, name: str) -> bool:
    """Whether an exact name or a glob matches the whole of ``name``, case and all."""
    if not is_glob(pattern):
        return pattern == name
    return _expression(pattern).fullmatch(name) is not None


def _closeness(pattern: str) -> tuple[int, int]:
    return (0, len(pattern)) if is_glob(pattern) else (1, 0)


@lru_cache(maxsize=4096)
def _expression(glob: str) -> re.Pattern[str]:
    # A run of stars is one star, and each star takes the shortest text that lets the next
    # literal match, for good: no backtracking, so a hostile glob cannot take exponential time.
    parts = [_literal(part) for part in re.sub(r"\*+", "*", glob).split("*")]
    if len(parts) == 1:
        return re.compile(parts[0], re.DOTALL)
    middle = "".join(f"(?>.*?{part})" for part in parts[1:-1] if part)
    return re.compile(f"{parts[0]}{middle}.*{parts[-1]}", re.DOTALL)


def _literal(part: str) -> str:
    return "".join("." if char == "?" else re.escape(char) for char in part)


def _ends(used: Iterable[UsedRate]) -> dict[str, tuple[int, str | None]]:
    ends: dict[str, tuple[int, str | None]] = {}
    for entry in used:
        rate = entry.rate
        if isinstance(rate, Withdrawal):
            known = ends.get(rate.withdraws, (NEVER_US, None))
            if rate.effective_from_us < known[0]:
                ends[rate.withdraws] = (rate.effective_from_us, rate.rate_id)
    return ends
