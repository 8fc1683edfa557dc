"""Costs as linear functions of an event's counts, over one whole denominator.

A part without its own price costs what its whole costs, and a whole is charged for what is not in
one of its parts: Σ (whole − parts)·p_whole + Σ part·p_part. That is Σ count·weight, where the
weight of a part is its price less that of the whole it is counted in.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

NANO = 1_000_000_000
MAX_NANO = 2**63 - 1
REQUEST = "request"

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

Prices = Mapping[str, Fraction]
"""Whole currency per unit, by counter; ``request`` is per event."""


@dataclass(frozen=True, slots=True)
class Tariff:
    """(base + Σ count·weight) ÷ denominator is the cost in nanos.

    ``priced`` are the counters that have a price, their whole's included. An event without any of
    them is not priced, unless nothing is present or there is a price per request.
    """

    base: int
    weights: Mapping[str, int]
    denominator: int
    priced: frozenset[str]
    has_request: bool

    def cost_nano(self, counts: Mapping[str, int]) -> int | None:
        """Rounded once, half to even; None where nothing present has a price."""
        total = self.base
        weights = self.weights
        present = is_priced = False
        for name, count in counts.items():
            if count:
                present = True
                if name in weights:
                    total += count * weights[name]
                    is_priced = True
        if present and not is_priced and not self.has_request:
            return None
        quotient, rest = divmod(total, self.denominator)
        twice = 2 * rest
        if twice > self.denominator or (twice == self.denominator and quotient % 2):
            quotient += 1
        return None if quotient > MAX_NANO else quotient


def tariff(
    base: Fraction,
    weights: Mapping[str, Fraction],
    priced: frozenset[str],
    *,
    has_request: bool,
    factor: Fraction,
) -> Tariff:
    """The tariff that charges ``base`` and ``weights`` (whole currency), times ``factor``."""
    scaled = {name: weights.get(name, Fraction(0)) * factor * NANO for name in priced}
    scaled_base = base * factor * NANO
    denominator = lcm(scaled_base.denominator, *(w.denominator for w in scaled.values()))
    return Tariff(
        int(scaled_base * denominator),
        {name: int(weight * denominator) for name, weight in scaled.items()},
        denominator,
        priced,
        has_request,
    )


def tariff_of(prices: Prices, counters: tuple[str, ...], factor: Fraction) -> Tariff:
    """The tariff of a set rate."""
    charged = {name: _price_of(prices, name) for name in counters}
    priced = frozenset(name for name, price in charged.items() if price is not None)
    weights: dict[str, Fraction] = {}
    for name in priced:
        weight = charged[name] or Fraction(0)
        container = container_of(name)
        if container is not None:
            weight -= charged[container] or Fraction(0)
        weights[name] = weight
    return tariff(
        prices.get(REQUEST, Fraction(0)),
        weights,
        priced,
        has_request=REQUEST in prices,
        factor=factor,
    )


def container_of(part: str) -> str | None:
    """The counter whose count contains that of ``part``; one-hour writes lie beside the others."""
    if part not in WHOLE:
        return None
    return "output_tokens" if WHOLE[part] == "output_tokens" else "input_tokens"


def _price_of(prices: Prices, counter: str) -> Fraction | None:
    if counter in prices or counter not in WHOLE:
        return prices.get(counter)
    return _price_of(prices, WHOLE[counter])
