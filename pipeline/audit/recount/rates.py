"""The rates topic as the contract's section 7 reads it: which records count, and what they say."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.audit.recount.events import COUNTERS, Reading
from pipeline.audit.recount.instants import parse_instant

BOOK_CURRENCY = "USD"
TOKENS = COUNTERS[:9]

_BASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "per_million": (1_000_000, (*TOKENS, "characters")),
    "per_second": (1, ("audio_seconds",)),
    "per_unit": (1, ("request", "images", "web_searches")),
}
_NANO_SECONDS = 1_000_000_000
_PLAIN = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", re.ASCII)


class RateRecord(NamedTuple):
    """A record of ``pricing.rates``; ``timestamp_ms`` is when it first arrived in Kafka."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Rate:
    """A record that counts. ``prices`` are whole currency per unit, by counter.

    The unit of ``audio_nano`` is a nanosecond.
    """

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


def _read_rate(record: RateRecord, lead_s: int) -> Rate | None:
    try:
        if not record.value or len(record.value) > 65_536:
            return None
        body = json.loads(record.value.decode())
        rate = _rate(record.offset, {k: v for k, v in body.items() if v is not None})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
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
    effective_us = parse_instant(body["effective_from"].replace(" ", "T", 1))
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
            if price is None:
                continue
            if name == "audio_seconds":
                prices.append(("audio_nano", _amount(price) / per / _NANO_SECONDS))
            else:
                prices.append((name, _amount(price) / per))
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


# -- matching --------------------------------------------------------------------------------------


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
