"""The recount's own reader of events: the contract's section 5, rule by rule."""

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.audit.recount.envelopes import Headers, Unreadable, read_fields
from pipeline.audit.recount.instants import NoInstant, parse_instant

REASONS = (
    "too-large",
    "bad-cloudevent",
    "malformed-json",
    "not-an-object",
    "missing-field",
    "wrong-type",
    "out-of-range",
    "bad-timestamp",
    "inconsistent-tokens",
    "too-old",
    "in-the-future",
)
INPUT_PARTS = (
    "cached_input_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "input_audio_tokens",
    "input_image_tokens",
)
OUTPUT_PARTS = ("reasoning_tokens", "output_audio_tokens")
COUNTERS = (
    "input_tokens",
    *INPUT_PARTS,
    "output_tokens",
    *OUTPUT_PARTS,
    "characters",
    "images",
    "web_searches",
)
FLAGS = ("self_hosted", "cache_hit", "estimated")
IDENTIFIERS = ("event_id", "port_id", "provider", "model")
REQUIRED = (*IDENTIFIERS, "occurred_at")
TEXTS = (
    "user_id",
    "organization_id",
    "group_id",
    "session_id",
    "service",
    "endpoint",
    "request_id",
    "service_tier",
)
CHOICES = {
    "kind": ("llm", "stt", "tts", "embedding", "image", "other"),
    "billing_scope": ("org", "user"),
}

_MAX_COUNT = 10**10
_MAX_SECONDS = 10**7
_MAX_COST = Decimal("1e20") - Decimal("1e-18")
_US = 1_000_000
_DAY_US = 86_400 * _US
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", re.ASCII)
_NO_COUNTS = dict.fromkeys(COUNTERS, 0)
_NO_TEXTS = dict.fromkeys(TEXTS, "")


class Reading(NamedTuple):
    """A valid event. ``counts`` has every counter and ``audio_nano`` (10⁻⁹ seconds)."""

    event_id: str
    occurred_at_us: int
    port_id: str
    provider: str
    model: str
    texts: dict[str, str]
    counts: dict[str, int]
    kind: str
    feature: str
    billing_scope: str
    self_hosted: bool
    cache_hit: bool
    estimated: bool
    reported_cost: Decimal | None
    tags: dict[str, str]


def read_event(value: bytes | None, headers: Headers = ()) -> Reading:
    """The event of a record; raises ``Unreadable`` with the first reason that applies.

    All rules but age and future skew, which ``judge_age`` applies.
    """
    fields = read_fields(value, headers)
    body = {name: field for name, field in fields.items() if field is not None and name in _TYPES}
    for name in REQUIRED:
        if name not in body:
            raise Unreadable("missing-field")
    for name, field in body.items():
        if type(field) not in _TYPES[name] or (name in _FORMS and not _FORMS[name](field)):
            raise Unreadable("wrong-type")
    for name, field in body.items():
        if name in _BOUNDS and not _BOUNDS[name](field):
            raise Unreadable("out-of-range")
    try:
        occurred_at_us = parse_instant(body["occurred_at"])
    except NoInstant:
        raise Unreadable("bad-timestamp") from None
    counts = {**_NO_COUNTS, **{name: body[name] for name in COUNTERS if name in body}}
    if (
        sum([counts[part] for part in INPUT_PARTS]) > counts["input_tokens"]
        or sum([counts[part] for part in OUTPUT_PARTS]) > counts["output_tokens"]
    ):
        raise Unreadable("inconsistent-tokens")
    seconds = body.get("audio_seconds")
    counts["audio_nano"] = int(_number(seconds).scaleb(9)) if seconds else 0
    return _reading(body, occurred_at_us, counts)


def _reading(body: Mapping[str, Any], occurred_at_us: int, counts: dict[str, int]) -> Reading:
    get = body.get
    return Reading(
        body["event_id"],
        occurred_at_us,
        body["port_id"],
        body["provider"],
        body["model"],
        {**_NO_TEXTS, **{name: body[name] for name in TEXTS if name in body}},
        counts,
        get("kind", "llm"),
        get("feature") or "unspecified",
        get("billing_scope", "org"),
        get("self_hosted", False),
        get("cache_hit", False),
        get("estimated", False),
        Decimal(body["reported_cost"]) if "reported_cost" in body else None,
        get("tags", {}),
    )


def judge_age(
    occurred_at_us: int, recorded_at_ms: int, max_age_days: int, max_skew_s: int
) -> str | None:
    """``too-old``, ``in-the-future`` or None, against the record's Kafka time."""
    ahead_us = occurred_at_us - recorded_at_ms * 1000
    if -ahead_us > max_age_days * _DAY_US:
        return "too-old"
    return "in-the-future" if ahead_us > max_skew_s * _US else None


# -- the rules of one field ------------------------------------------------------------------------


def _is_decimal(value: object) -> bool:
    return not isinstance(value, str) or _DECIMAL.fullmatch(value) is not None


def _is_text_map(value: dict[str, Any]) -> bool:
    return all(type(text) is str for text in value.values())


def _at_most(length: int) -> Callable[[str], bool]:
    return lambda text: len(text) <= length


def _one_of(choices: tuple[str, ...]) -> Callable[[str], bool]:
    return lambda text: text in choices


def _is_identifier(text: str) -> bool:
    return 1 <= len(text) <= 128


def _is_count(count: int) -> bool:
    return 0 <= count <= _MAX_COUNT


def _is_length(value: Any) -> bool:
    return _fits(value, _MAX_SECONDS, 9, signed=False)


def _is_cost(value: str) -> bool:
    return _fits(value, _MAX_COST, 18)


def _are_few_tags(tags: dict[str, str]) -> bool:
    return len(tags) <= 16 and all(
        len(name) <= 64 and len(text) <= 256 for name, text in tags.items()
    )


_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys((*REQUIRED, *TEXTS, *CHOICES, "feature", "reported_cost"), (str,)),
    **dict.fromkeys(COUNTERS, (int,)),
    **dict.fromkeys(FLAGS, (bool,)),
    "audio_seconds": (int, float, str),
    "tags": (dict,),
}
_FORMS: dict[str, Callable[[Any], bool]] = {
    "audio_seconds": _is_decimal,
    "reported_cost": _is_decimal,
    "tags": _is_text_map,
}
_BOUNDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(IDENTIFIERS, _is_identifier),
    **dict.fromkeys(TEXTS, _at_most(256)),
    "feature": _at_most(128),
    **{name: _one_of(choices) for name, choices in CHOICES.items()},
    **dict.fromkeys(COUNTERS, _is_count),
    "audio_seconds": _is_length,
    "reported_cost": _is_cost,
    "tags": _are_few_tags,
}


def _fits(value: Any, most: int | Decimal, decimals: int, *, signed: bool = True) -> bool:
    amount = _number(value)
    if not amount.is_finite() or (amount < 0 and not signed) or abs(amount) > most:
        return False
    _, digits, exponent = amount.as_tuple()
    text = "".join(map(str, digits)).rstrip("0")
    zeros = len(digits) - len(text)
    return amount == 0 or -(int(exponent) + zeros) <= decimals


def _number(value: Any) -> Decimal:
    """The exact value; a float means its shortest decimal form."""
    return Decimal(repr(value) if isinstance(value, float) else value)
