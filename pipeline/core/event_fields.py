"""The rules of each field of an event on the wire: its type first, then its bounds."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

MAX_ID_CHARS: Final = 128
MAX_TEXT_CHARS: Final = 256
MAX_FEATURE_CHARS: Final = 128
MAX_COUNT: Final = 10**10
MAX_AUDIO_NANO: Final = 10**7 * 10**9
AUDIO_DECIMALS: Final = 9
# The contract leaves the bounds of reported_cost open; these fit a Decimal(38, 18).
REPORTED_COST_WHOLE_DIGITS: Final = 20
REPORTED_COST_DECIMALS: Final = 18
MAX_TAGS: Final = 16
MAX_TAG_KEY_CHARS: Final = 64
MAX_TAG_VALUE_CHARS: Final = 256
KINDS: Final[tuple[str, ...]] = ("llm", "stt", "tts", "embedding", "image", "other")
BILLING_SCOPES: Final[tuple[str, ...]] = ("org", "user")

_PLAIN_DECIMAL: Final = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")

Rule = Callable[[Any], str | None]
"""Says which rule a value breaks, or None."""


class FieldRules(NamedTuple):
    """``check_range`` is only asked about values that ``check_type`` lets pass."""

    required: bool
    check_type: Rule
    check_range: Rule


def plain_decimal(text: str) -> str | None:
    """``text`` in canonical form (no exponent, no needless zero), or None if it is no decimal."""
    match = _PLAIN_DECIMAL.fullmatch(text)
    if match is None:
        return None
    whole, _, fraction = match[2].partition(".")
    whole = whole.lstrip("0") or "0"
    fraction = fraction.rstrip("0")
    magnitude = f"{whole}.{fraction}" if fraction else whole
    return f"-{magnitude}" if match[1] == "-" and magnitude != "0" else magnitude


def audio_nano(value: int | float | str) -> int | None:
    """Seconds of audio in 10⁻⁹ seconds; None outside the bounds or with too many decimals.

    A float means its shortest decimal form. Raises ``ValueError`` for a string that is no
    plain decimal.
    """
    if isinstance(value, int):
        return value * 10**9 if 0 <= value * 10**9 <= MAX_AUDIO_NANO else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        value = format(Decimal(repr(value)), "f")
    decimal = plain_decimal(value)
    if decimal is None:
        raise ValueError("no plain decimal")
    whole, _, fraction = decimal.partition(".")
    if decimal[0] == "-" or len(whole) > 8 or len(fraction) > AUDIO_DECIMALS:
        return None
    nano = int(whole) * 10**9 + int(fraction.ljust(AUDIO_DECIMALS, "0"))
    return nano if nano <= MAX_AUDIO_NANO else None


def reported_cost(value: str) -> str | None:
    """``value`` in canonical form; None when it is no plain decimal or out of its bounds."""
    decimal = plain_decimal(value)
    if decimal is None:
        return None
    whole, _, fraction = decimal.lstrip("-").partition(".")
    if len(whole) > REPORTED_COST_WHOLE_DIGITS or len(fraction) > REPORTED_COST_DECIMALS:
        return None
    return decimal


def _check_string(value: object) -> str | None:
    return None if isinstance(value, str) else "must be a string"


def _check_integer(value: object) -> str | None:
    return None if type(value) is int else "must be an integer"


def _check_boolean(value: object) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _check_decimal_string(value: object) -> str | None:
    if isinstance(value, str) and plain_decimal(value) is not None:
        return None
    return "must be a decimal string without exponent"


def _check_number(value: object) -> str | None:
    if type(value) is int or isinstance(value, float):
        return None
    if isinstance(value, str) and plain_decimal(value) is not None:
        return None
    return "must be a number or a decimal string without exponent"


def _check_tags(value: object) -> str | None:
    if isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):
        return None
    return "must be an object of strings"


def _length(least: int, most: int) -> Rule:
    rule = f"must have {least} to {most} characters" if least else f"at most {most} characters"
    return lambda value: None if least <= len(value) <= most else rule


def _one_of(choices: tuple[str, ...]) -> Rule:
    rule = "must be one of " + ", ".join(choices)
    return lambda value: None if value in choices else rule


def _count_in_range(value: int) -> str | None:
    return None if 0 <= value <= MAX_COUNT else f"must be 0 to {MAX_COUNT}"


def _audio_in_range(value: int | float | str) -> str | None:
    return "must be 0 to 10000000 with at most 9 decimals" if audio_nano(value) is None else None


def _reported_cost_in_range(value: str) -> str | None:
    if reported_cost(value) is not None:
        return None
    return (
        f"at most {REPORTED_COST_WHOLE_DIGITS} digits before and "
        f"{REPORTED_COST_DECIMALS} after the point"
    )


def check_tags_range(tags: dict[str, str]) -> str | None:
    if len(tags) > MAX_TAGS:
        return f"at most {MAX_TAGS} tags"
    if any(len(key) > MAX_TAG_KEY_CHARS for key in tags):
        return f"keys have at most {MAX_TAG_KEY_CHARS} characters"
    if any(len(text) > MAX_TAG_VALUE_CHARS for text in tags.values()):
        return f"values have at most {MAX_TAG_VALUE_CHARS} characters"
    return None


def _unbounded(_value: object) -> str | None:
    return None


_ID: Final = FieldRules(True, _check_string, _length(1, MAX_ID_CHARS))
_TEXT: Final = FieldRules(False, _check_string, _length(0, MAX_TEXT_CHARS))
_COUNTER: Final = FieldRules(False, _check_integer, _count_in_range)
_FLAG: Final = FieldRules(False, _check_boolean, _unbounded)

OPTIONAL_TEXTS: Final[tuple[str, ...]] = (
    "user_id",
    "organization_id",
    "group_id",
    "session_id",
    "service",
    "endpoint",
    "request_id",
    "service_tier",
)
INPUT_PARTS: Final[tuple[str, ...]] = (
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
)
OUTPUT_PARTS: Final[tuple[str, ...]] = ("reasoning_tokens", "output_audio_tokens")
COUNTERS: Final[tuple[str, ...]] = (
    "input_tokens",
    *INPUT_PARTS,
    "output_tokens",
    *OUTPUT_PARTS,
    "characters",
    "images",
    "web_searches",
)
FLAGS: Final[tuple[str, ...]] = ("self_hosted", "cache_hit", "estimated")

FIELDS: Final[dict[str, FieldRules]] = {
    "event_id": _ID,
    "occurred_at": FieldRules(True, _check_string, _unbounded),
    "port_id": _ID,
    "provider": _ID,
    "model": _ID,
    **dict.fromkeys(OPTIONAL_TEXTS, _TEXT),
    "feature": FieldRules(False, _check_string, _length(0, MAX_FEATURE_CHARS)),
    "kind": FieldRules(False, _check_string, _one_of(KINDS)),
    "billing_scope": FieldRules(False, _check_string, _one_of(BILLING_SCOPES)),
    **dict.fromkeys(COUNTERS, _COUNTER),
    "audio_seconds": FieldRules(False, _check_number, _audio_in_range),
    **dict.fromkeys(FLAGS, _FLAG),
    "reported_cost": FieldRules(False, _check_decimal_string, _reported_cost_in_range),
    "tags": FieldRules(False, _check_tags, check_tags_range),
}
"""In the contract's order, which decides the field that a rejection names."""
