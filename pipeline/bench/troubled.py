"""Backlogs with one kind of trouble each, made from benchmark events that have none.

Pure: each takes (key, value) pairs and gives as many, and knows how many of them must end how.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Pair = tuple[bytes, bytes | None]
Pairs = Iterable[tuple[bytes, bytes]]

POISON_EVERY = 50
"""A slice of the worker holds some hundreds to thousands of records."""
_SKEWED_OF_TEN = 9
_HOT_PORT = b"port-0000"


@dataclass(frozen=True, slots=True)
class Fates:
    """How many records must end how; the rest is accepted and priced."""

    rejected: int = 0
    duplicates: int = 0
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A kind of trouble: ``spoil`` makes it, ``fates`` says what must come of so many events."""

    name: str
    spoil: Callable[[Pairs], Iterator[Pair]]
    fates: Callable[[int], Fates]


def _clean(pairs: Pairs) -> Iterator[Pair]:
    return iter(pairs)


def _skewed(pairs: Pairs) -> Iterator[Pair]:
    """Nine of ten events are of one port, and so of one partition."""
    for number, (key, value) in enumerate(pairs):
        if number % 10 < _SKEWED_OF_TEN:
            yield _HOT_PORT, value.replace(b'"port_id":"' + key, b'"port_id":"' + _HOT_PORT)
        else:
            yield key, value


def _unpriced(pairs: Pairs) -> Iterator[Pair]:
    """No event is of a model that anybody prices."""
    for number, (key, value) in enumerate(pairs):
        head, _, rest = value.partition(b'"model":"')
        _, _, tail = rest.partition(b'"')
        yield key, b'%b"model":"nobody-prices-this-%d"%b' % (head, number % 20, tail)


_REJECTED: tuple[Callable[[bytes], bytes], ...] = (
    lambda value: value[:-1],
    lambda value: value.replace(b'"provider":', b'"supplier":'),
    lambda value: value.replace(b'"output_tokens":', b'"output_tokens":-'),
    lambda value: value.replace(b'"input_tokens":', b'"input_tokens":"many","tokens":', 1),
    lambda value: value.replace(b'"occurred_at":"2', b'"occurred_at":"x'),
    lambda value: b"[%b]" % value,
)


def _rejected(pairs: Pairs) -> Iterator[Pair]:
    """Every tenth is invalid, in six ways in turn."""
    for number, (key, value) in enumerate(pairs):
        spoil = _REJECTED[number // 10 % len(_REJECTED)]
        yield key, spoil(value) if number % 10 == 0 else value


def _doubled(pairs: Pairs) -> Iterator[Pair]:
    """Every fifth is the one that came four before it, byte for byte."""
    four_before: list[Pair] = []
    for number, pair in enumerate(pairs):
        if number % 5 == 4:
            yield four_before[0]
            four_before.clear()
        else:
            four_before.append(pair)
            yield pair


_POISON: tuple[bytes | None, ...] = (
    None,
    b"",
    b"\xff\xfe\x00",
    b"[" * 50_000,
    b'{"a":' * 10_000,
    b'{"event_id":"' + b"x" * 70_000 + b'"}',
    b'{"input_tokens":' + b"9" * 5_000 + b"}",
    b'{"event_id":"\xed\xa0\x80"}',
    b'{"event_id":"\\ud800"}',
)


def _poisoned(pairs: Pairs) -> Iterator[Pair]:
    """Every fiftieth is what has brought decoders down."""
    for number, (key, value) in enumerate(pairs):
        if number % POISON_EVERY == 0:
            yield key, _POISON[number // POISON_EVERY % len(_POISON)]
        else:
            yield key, value


def _every(count: int, step: int) -> int:
    return -(-count // step)


CLEAN = Trouble("clean", _clean, lambda events: Fates())
TROUBLES = (
    Trouble("one port has 90 %", _skewed, lambda events: Fates()),
    Trouble("every event unpriced", _unpriced, lambda events: Fates(unpriced=events)),
    Trouble("10 % rejected", _rejected, lambda events: Fates(rejected=_every(events, 10))),
    Trouble("20 % duplicates", _doubled, lambda events: Fates(duplicates=events // 5)),
    Trouble(
        "poison in every slice",
        _poisoned,
        lambda events: Fates(rejected=_every(events, POISON_EVERY)),
    ),
)
