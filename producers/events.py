"""From the fields a service gives to the bytes of an event, or to the reason why it is none.

The bytes are checked by the worker's own reader, so the SDK refuses exactly what the worker would.
"""

import math
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from pipeline.core.event_codec import UnknownFields, decode_event
from pipeline.core.events import Event
from pipeline.core.rejections import MALFORMED_JSON, OUT_OF_RANGE, WRONG_TYPE, Rejection

_PLAIN = (str, int, bool)


class Prepared(NamedTuple):
    """An event ready to be sent: its record's key and value, and what the value says."""

    key: bytes
    value: bytes
    event: Event


def prepare(fields: Mapping[str, Any], unknown: UnknownFields) -> Prepared | Rejection:
    """The event with these fields; None means absent. Unknown fields are counted.

    ``event_id`` and ``occurred_at`` are filled in where they are absent. Besides what JSON knows,
    values may be ``datetime``, ``Decimal``, ``UUID`` and enumerations.
    """
    body: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None:
            continue
        if type(value) not in _PLAIN:
            broken = _not_json(name, value)
            if broken is not None:
                return broken
        body[name] = value
    if "event_id" not in body:
        body["event_id"] = new_event_id()
    if "occurred_at" not in body:
        body["occurred_at"] = now_text()
    encoded = _encoded(body)
    if isinstance(encoded, Rejection):
        return encoded
    event = decode_event(encoded, (), unknown)
    if isinstance(event, Rejection):
        return event
    return Prepared(event.port_id.encode(), encoded, event)


# Asking the system for 16 bytes takes half as long as all the rest of a record. What was asked for
# in advance must not be used by both sides of a fork.
_RANDOM_IDS = 256
_random: list[str] = []
os.register_at_fork(after_in_child=_random.clear)


def new_event_id() -> str:
    """A random UUID (version 4) as text, never the same in two processes of one parent."""
    try:
        digits = _random.pop()  # no other thread gets the same
    except IndexError:
        drawn = os.urandom(16 * _RANDOM_IDS).hex()
        _random.extend(drawn[start : start + 32] for start in range(32, len(drawn), 32))
        digits = drawn[:32]
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def now_text() -> str:
    """The time as RFC 3339 in UTC, to the microsecond."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat()[:-6] + "Z"


def nano_of(amount: object) -> int | None:
    """A non-negative amount of money (decimal string, integer or ``Decimal``) in nanos.

    A float means its shortest decimal form. None for what is no amount.
    """
    if type(amount) is int:
        return amount * 1_000_000_000 if amount >= 0 else None
    try:
        value = Decimal(repr(amount) if isinstance(amount, float) else str(amount))
        if not value.is_finite() or value < 0 or value.adjusted() > 18:
            return None
    except ArithmeticError:
        return None
    numerator, denominator = value.as_integer_ratio()
    return -(-numerator * 1_000_000_000 // denominator)


def _not_json(name: str, value: object) -> Rejection | None:
    """Why a value cannot stand in an event though the encoder would find a form for it."""
    if isinstance(value, float):
        if math.isfinite(value):
            return None
        return Rejection(WRONG_TYPE, f"{name}: {value} is no number")
    if isinstance(value, bytes | bytearray | memoryview):
        return Rejection(WRONG_TYPE, f"{name}: bytes are no JSON value")
    return None


def _encoded(body: dict[str, Any]) -> bytes | Rejection:
    try:
        return msgspec.json.encode(body)
    except UnicodeEncodeError:
        return Rejection(MALFORMED_JSON, "value: a text holds a lone surrogate")
    except OverflowError:
        return Rejection(OUT_OF_RANGE, "value: an integer beyond 64 bits")
    except RecursionError:
        return Rejection(MALFORMED_JSON, "value: nested too deeply")
    except Exception as error:  # whatever a foreign type raises: it is no JSON value
        return Rejection(WRONG_TYPE, f"value: {' '.join(str(error).split())[:200]}")
