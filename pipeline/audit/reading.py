"""The audit's own reader of events: the contract's section 5, rule by rule, nothing shared.

Written for clearness, not speed: the standard library's ``json``, plain dicts, exact decimals.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn, cast

Headers = Sequence[tuple[str, bytes | None]]

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
REQUIRED = ("event_id", "occurred_at", "port_id", "provider", "model")
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

_MAX_BYTES = 65_536
_MAX_DEPTH = 256
_MAX_COUNT = 10**10
_MAX_SECONDS = 10**7
_US = 1_000_000
_DAY_US = 86_400 * _US
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


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
    free_by: str
    """``self-hosted``, ``cache-hit`` or nothing."""
    estimated: bool
    reported_cost: Decimal | None
    tags: dict[str, str]


class Unreadable(Exception):
    """The event is rejected; ``reason`` is one of ``REASONS``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_event(value: bytes | None, headers: Headers = ()) -> Reading:
    """The event of a record; raises ``Unreadable`` with the first reason that applies.

    All rules but age and future skew, which ``judge_age`` applies.
    """
    body = _object(value, headers)
    body = {name: field for name, field in body.items() if field is not None}
    if any(name not in body for name in REQUIRED):
        raise Unreadable("missing-field")
    _check_types(body)
    _check_ranges(body)
    occurred_at_us = parse_time(body["occurred_at"])
    counts = {name: body.get(name, 0) for name in COUNTERS}
    if (
        sum(counts[part] for part in INPUT_PARTS) > counts["input_tokens"]
        or sum(counts[part] for part in OUTPUT_PARTS) > counts["output_tokens"]
    ):
        raise Unreadable("inconsistent-tokens")
    counts["audio_nano"] = int(_number(body.get("audio_seconds", 0)).scaleb(9))
    free_by = "cache-hit" if body.get("cache_hit") else ""
    return Reading(
        event_id=body["event_id"],
        occurred_at_us=occurred_at_us,
        port_id=body["port_id"],
        provider=body["provider"],
        model=body["model"],
        texts={name: body.get(name, "") for name in TEXTS},
        counts=counts,
        kind=body.get("kind", "llm"),
        feature=body.get("feature") or "unspecified",
        billing_scope=body.get("billing_scope", "org"),
        free_by="self-hosted" if body.get("self_hosted") else free_by,
        estimated=body.get("estimated", False),
        reported_cost=Decimal(body["reported_cost"]) if "reported_cost" in body else None,
        tags=body.get("tags", {}),
    )


def judge_age(
    occurred_at_us: int, recorded_at_ms: int, max_age_days: int, max_skew_s: int
) -> str | None:
    """``too-old``, ``in-the-future`` or None, against the record's Kafka time."""
    ahead_us = occurred_at_us - recorded_at_ms * 1000
    if -ahead_us > max_age_days * _DAY_US:
        return "too-old"
    return "in-the-future" if ahead_us > max_skew_s * _US else None


def parse_time(text: str) -> int:
    """Microseconds since 1970 UTC, cut; raises ``Unreadable`` (``bad-timestamp``)."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise Unreadable("bad-timestamp")
    year, month, day, hour, minute, second = (int(group) for group in found.groups()[:6])
    zone = found[8]
    shift_s = 0
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[4:])
        if hours > 23 or minutes > 59:
            raise Unreadable("bad-timestamp")
        shift_s = (hours * 3600 + minutes * 60) * (-1 if zone[0] == "-" else 1)
    if hour > 23 or minute > 59 or second > 60:
        raise Unreadable("bad-timestamp")
    minute_s = _day(year, month, day) * 86_400 + hour * 3600 + minute * 60 - shift_s
    if second == 60:
        return _leap_second(minute_s)
    fraction = (found[7] or ".0")[1:7]
    return (minute_s + second) * _US + int(fraction) * 10 ** (6 - len(fraction))


def _day(year: int, month: int, day: int) -> int:
    # Python's calendar starts at year 1, RFC 3339's at 0; 400 years are always 146,097 days.
    try:
        shifted = date(year + 400 if year == 0 else year, month, day).toordinal()
    except ValueError:
        raise Unreadable("bad-timestamp") from None
    return shifted - (146_097 if year == 0 else 0) - date(1970, 1, 1).toordinal()


def _leap_second(minute_s: int) -> int:
    """23:59:60 UTC at a month's end, as that day's last microsecond."""
    days, rest_s = divmod(minute_s + 60, 86_400)
    following = days + date(1970, 1, 1).toordinal()
    if rest_s or not 1 <= following <= date.max.toordinal():
        raise Unreadable("bad-timestamp")
    if date.fromordinal(following).day != 1:
        raise Unreadable("bad-timestamp")
    return (minute_s + 60) * _US - 1


# -- the envelope ------------------------------------------------------------------------------


def _object(value: bytes | None, headers: Headers) -> dict[str, Any]:
    if value is not None and len(value) > _MAX_BYTES:
        raise Unreadable("too-large")
    named = {name.lower(): content for name, content in headers}
    media_type = (named.get("content-type") or b"").decode("latin-1").strip().lower()
    if media_type.startswith("application/cloudevents"):
        return _structured(value, media_type)
    attributes = _binary_attributes(named)
    return _filled(_parse(value), attributes)


def _structured(value: bytes | None, media_type: str) -> dict[str, Any]:
    if media_type.startswith("application/cloudevents-batch"):
        raise Unreadable("bad-cloudevent")
    try:
        envelope = _parse(value)
    except Unreadable:
        raise Unreadable("bad-cloudevent") from None
    if not isinstance(envelope, dict):
        raise Unreadable("bad-cloudevent")
    outer = cast("dict[str, Any]", envelope)
    attributes = {name: outer.get(name) for name in ("id", "time", "subject")}
    if outer.get("specversion") != "1.0" or not all(
        isinstance(text, str | None) for text in attributes.values()
    ):
        raise Unreadable("bad-cloudevent")
    packed = outer.get("data_base64")
    if packed is None:
        return _filled(outer.get("data"), attributes)
    if outer.get("data") is not None or not isinstance(packed, str):
        raise Unreadable("bad-cloudevent")
    try:
        inner = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise Unreadable("bad-cloudevent") from None
    return _filled(_parse(inner), attributes)


def _binary_attributes(named: Mapping[str, bytes | None]) -> dict[str, str | None]:
    try:
        attributes = {
            name[3:]: content.decode()
            for name, content in named.items()
            if name.startswith("ce_") and content is not None
        }
    except UnicodeDecodeError:
        raise Unreadable("bad-cloudevent") from None
    if attributes.get("specversion", "1.0") != "1.0":
        raise Unreadable("bad-cloudevent")
    return {name: attributes.get(name) for name in ("id", "time", "subject")}


def _filled(body: object, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise Unreadable("not-an-object")
    fields = dict(cast("dict[str, Any]", body))
    for name, attribute in (("event_id", "id"), ("occurred_at", "time"), ("port_id", "subject")):
        if fields.get(name) is None and attributes[attribute] is not None:
            fields[name] = attributes[attribute]
    return fields


def _parse(value: bytes | None) -> object:
    """A JSON text in UTF-8, no deeper than 256, without NaN and lone surrogates."""
    if value is None:
        raise Unreadable("malformed-json")
    try:
        parsed = json.loads(
            value.decode(),
            parse_constant=_refuse,
            parse_int=lambda digits: int(digits[:64]),
            object_pairs_hook=_pairs,
        )
    except (ValueError, RecursionError):
        raise Unreadable("malformed-json") from None
    suspect = b"\\u" in value or value.count(b"[") + value.count(b"{") > _MAX_DEPTH
    if suspect and not _is_sound(parsed):
        raise Unreadable("malformed-json")
    return parsed


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of equal keys the last counts, but the text must be sound in all of them.
    if len({name for name, _ in pairs}) < len(pairs) and not _is_sound([list(p) for p in pairs]):
        raise ValueError("lone surrogate")
    return dict(pairs)


def _is_sound(value: object) -> bool:
    """No string with a lone surrogate, no nesting beyond the bound."""
    level, depth = [value], 0
    while level:
        deeper: list[object] = []
        for item in level:
            if isinstance(item, str):
                if not item.isascii() and _SURROGATE.search(item):
                    return False
            elif isinstance(item, dict):
                fields = cast("dict[str, object]", item)
                deeper.extend((*fields, *fields.values()))
            elif isinstance(item, list):
                deeper.extend(cast("list[object]", item))
        depth += any(isinstance(item, dict | list) for item in level)
        level = deeper
    return depth <= _MAX_DEPTH


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


# -- the fields --------------------------------------------------------------------------------


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_decimal(value: object) -> bool:
    return isinstance(value, str) and _DECIMAL.fullmatch(value) is not None


def _check_types(body: Mapping[str, Any]) -> None:
    strings = (*REQUIRED, *TEXTS, *CHOICES, "feature")
    tags = body.get("tags", {})
    right = (
        all(isinstance(body.get(name, ""), str) for name in strings)
        and all(_is_integer(body.get(name, 0)) for name in COUNTERS)
        and all(isinstance(body.get(name, False), bool) for name in FLAGS)
        and _is_decimal(body.get("reported_cost", "0"))
        and _is_seconds(body.get("audio_seconds", 0))
        and isinstance(tags, dict)
        and all(isinstance(text, str) for text in cast("dict[str, Any]", tags).values())
    )
    if not right:
        raise Unreadable("wrong-type")


def _is_seconds(value: object) -> bool:
    return _is_integer(value) or isinstance(value, float) or _is_decimal(value)


def _check_ranges(body: Mapping[str, Any]) -> None:
    identifiers = [body[name] for name in REQUIRED if name != "occurred_at"]
    tags: dict[str, str] = body.get("tags", {})
    right = (
        all(1 <= len(text) <= 128 for text in identifiers)
        and all(len(body.get(name, "")) <= 256 for name in TEXTS)
        and len(body.get("feature", "")) <= 128
        and all(body.get(name, allowed[0]) in allowed for name, allowed in CHOICES.items())
        and all(0 <= body.get(name, 0) <= _MAX_COUNT for name in COUNTERS)
        and _fits(body.get("audio_seconds", 0), _MAX_SECONDS, 9, signed=False)
        and _fits(body.get("reported_cost", "0"), Decimal("1e20") - Decimal("1e-18"), 18)
        and len(tags) <= 16
        and all(len(name) <= 64 and len(text) <= 256 for name, text in tags.items())
    )
    if not right:
        raise Unreadable("out-of-range")


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
