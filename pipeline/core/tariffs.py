"""What one unit of each counter costs, and the integer table that prices an event with it.

A tariff holds nanos per unit as exact rationals. Units are one token, one character, one image,
one search, one second of audio, and one request (the call itself).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from operator import attrgetter

from pipeline.core.event_fields import COUNTERS as EVENT_COUNTERS
from pipeline.core.events import Event
from pipeline.core.money import MAX_NANO

TOKEN_COUNTERS = (
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "output_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
)
COUNTERS = (*TOKEN_COUNTERS, "characters", "images", "web_searches", "audio_seconds")
REQUEST = "request"

# A part without a price of its own costs what its whole costs.
WHOLE = {
    "cached_input_tokens": "input_tokens",
    "cache_write_tokens": "input_tokens",
    "cache_write_1h_tokens": "cache_write_tokens",
    "input_audio_tokens": "input_tokens",
    "input_image_tokens": "input_tokens",
    "reasoning_tokens": "output_tokens",
    "output_audio_tokens": "output_tokens",
}
# The whole that contains a part's count; an event counts 1-hour writes beside the others.
_CONTAINER = {**WHOLE, "cache_write_1h_tokens": "input_tokens"}

Prices = Mapping[str, Fraction]
_NANO_PER_SECOND = 1_000_000_000
_NO_BRACKET = 1 << 63


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices in nanos per unit of its currency.

    ``brackets`` are ``(start, prices)`` in rising order: the last one whose ``start`` is below
    the event's ``input_tokens`` prices the whole event. ``minimum_audio_s`` is billed for any
    audio at all.
    """

    prices: Prices
    brackets: tuple[tuple[int, Prices], ...] = ()
    minimum_audio_s: int = 0


def has_rare_counts(event: Event) -> bool:
    """Whether anything else is counted than input, cached input and output tokens."""
    return bool(
        event.reasoning_tokens
        or event.cache_write_tokens
        or event.cache_write_1h_tokens
        or event.input_audio_tokens
        or event.input_image_tokens
        or event.output_audio_tokens
        or event.characters
        or event.images
        or event.web_searches
        or event.audio_nano
    )


def own_price(prices: Prices, counter: str) -> tuple[str, Fraction] | None:
    """The counter whose price ``counter`` is charged at, and that price; None without one."""
    name: str | None = counter
    while name is not None:
        price = prices.get(name)
        if price is not None:
            return name, price
        name = WHOLE.get(name)
    return None


class Table:
    """A tariff times a factor, as integers over one denominator: the inner loop of pricing."""

    __slots__ = (
        "_above",
        "_cached",
        "_den",
        "_half",
        "_input",
        "_minimum_audio_nano",
        "_output",
        "_priced",
        "_request",
        "_rest",
        "_tokens_priced",
        "_upper",
    )

    def __init__(self, tariff: Tariff, factor: Fraction = Fraction(1)) -> None:
        self._fill(tariff.prices, factor, tariff.minimum_audio_s)
        self._above = _NO_BRACKET
        self._upper: Table | None = None
        if tariff.brackets:
            self._above, prices = tariff.brackets[0]
            upper = Tariff(prices, tariff.brackets[1:], tariff.minimum_audio_s)
            self._upper = Table(upper, factor)

    def _fill(self, prices: Prices, factor: Fraction, minimum_audio_s: int) -> None:
        weights = {counter: _weight(prices, counter) * factor for counter in COUNTERS}
        request = prices.get(REQUEST, Fraction(0)) * factor
        weights["audio_seconds"] /= _NANO_PER_SECOND
        self._den = lcm(request.denominator, *(w.denominator for w in weights.values()))
        scaled = {counter: int(w * self._den) for counter, w in weights.items()}
        self._half = self._den // 2
        self._request = int(request * self._den)
        self._input = scaled["input_tokens"]
        self._cached = scaled["cached_input_tokens"]
        self._output = scaled["output_tokens"]
        self._rest = tuple(scaled[counter] for counter in _REST)
        self._priced = None if REQUEST in prices else _priced_counts(prices)
        self._tokens_priced = REQUEST in prices or (
            "input_tokens" in prices and "output_tokens" in prices
        )
        self._minimum_audio_nano = minimum_audio_s * _NANO_PER_SECOND

    def cost_nano(self, event: Event) -> int | None:
        """The event's cost, rounded once half to even; None when nothing present is priced.

        None also stands for a cost beyond 64 bits of nanos.
        """
        inputs = event.input_tokens
        if inputs > self._above:
            return self._upper.cost_nano(event)  # type: ignore[union-attr]
        outputs = event.output_tokens
        total = (
            self._request
            + inputs * self._input
            + event.cached_input_tokens * self._cached
            + outputs * self._output
        )
        if has_rare_counts(event):
            total += self._others(event)
            certain = self._tokens_priced and (inputs or outputs)
        else:
            certain = self._tokens_priced
        if not certain and not self._is_priced(event):
            return None
        cost, rest = divmod(total, self._den)
        if rest > self._half or (rest + rest == self._den and cost & 1):
            cost += 1
        return cost if cost <= MAX_NANO else None

    def per_count(self) -> tuple[int, int, tuple[int, ...], int] | None:
        """The most input tokens up to which this is right, then what an event without audio costs:
        for the request and for one of each of the counters of ``event_fields``, over a denominator.

        It is not for events without tokens that count something else. None where not all tokens
        have a price.
        """
        if not self._tokens_priced:
            return None
        others = dict(zip(_REST, self._rest, strict=True))
        tokens = {
            "input_tokens": self._input,
            "cached_input_tokens": self._cached,
            "output_tokens": self._output,
        }
        per_count = tuple((others | tokens)[counter] for counter in EVENT_COUNTERS)
        return self._above, self._request, per_count, self._den

    def _others(self, event: Event) -> int:
        write, write_1h, audio, image, reasoning, out_audio, chars, images, searches, second = (
            self._rest
        )
        heard = event.audio_nano
        if heard and heard < self._minimum_audio_nano:
            heard = self._minimum_audio_nano
        return (
            event.cache_write_tokens * write
            + event.cache_write_1h_tokens * write_1h
            + event.input_audio_tokens * audio
            + event.input_image_tokens * image
            + event.reasoning_tokens * reasoning
            + event.output_audio_tokens * out_audio
            + event.characters * chars
            + event.images * images
            + event.web_searches * searches
            + heard * second
        )

    def _is_priced(self, event: Event) -> bool:
        if self._priced is None:
            return True
        return any(self._priced(event)) or not any(_ALL_COUNTS(event))


_REST = (
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
    "reasoning_tokens",
    "output_audio_tokens",
    "characters",
    "images",
    "web_searches",
    "audio_seconds",
)
_ATTRIBUTES = tuple("audio_nano" if c == "audio_seconds" else c for c in COUNTERS)
_Counts = Callable[[Event], tuple[int, ...]]
_ALL_COUNTS: _Counts = attrgetter(*_ATTRIBUTES)


def _weight(prices: Prices, counter: str) -> Fraction:
    """What one more unit of ``counter`` adds, its whole being charged already."""
    found = own_price(prices, counter)
    price = found[1] if found is not None else Fraction(0)
    container = _CONTAINER.get(counter)
    if container is None:
        return price
    return price - prices.get(container, Fraction(0))


def _priced_counts(prices: Prices) -> _Counts:
    """Takes from an event the counts of those counters that have a price."""
    names = [
        attribute
        for counter, attribute in zip(COUNTERS, _ATTRIBUTES, strict=True)
        if own_price(prices, counter) is not None
    ]
    # attrgetter of a single name would give the value itself instead of a tuple.
    return attrgetter(*names, *names[:1]) if names else lambda event: ()


@lru_cache(maxsize=4096)
def nano_per_unit(price: str, per: int) -> Fraction:
    """``price`` (a decimal string of whole currency) per ``per`` units, in nanos per unit."""
    return Fraction(price) * 1_000_000_000 / per
