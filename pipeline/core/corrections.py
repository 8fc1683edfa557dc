"""Corrections of events: how one is read, and what it does to what stands in the ledger.

A correction says how things should have been; what becomes of it are deltas, one ledger entry. All
kinds are absolute: an amend names counts, a reprice names a rate, a void takes everything back. So
the last one that was accepted is what counts, and a further one reverses it.
"""

from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec

from pipeline.core.event_fields import COUNTERS, FIELDS, INPUT_PARTS, OUTPUT_PARTS, audio_nano
from pipeline.core.events import Event
from pipeline.core.json_text import MalformedJsonError, parse_json
from pipeline.core.prices import Price, PriceVersion, Status
from pipeline.core.rejections import (
    ALREADY_VOID,
    INCONSISTENT_TOKENS,
    MALFORMED_JSON,
    MISSING_FIELD,
    NOT_AN_OBJECT,
    OUT_OF_RANGE,
    TOO_LARGE,
    UNKNOWN_RATE,
    WRONG_CURRENCY,
    WRONG_TYPE,
    Rejection,
)
from pipeline.core.timestamps import parse_rfc3339_us
from pipeline.core.windows import format_ms

Kind = Literal["void", "amend", "reprice"]
KINDS: Final[tuple[Kind, ...]] = ("void", "amend", "reprice")
MAX_CORRECTION_BYTES: Final = 64 * 1024
MAX_REASON_CHARS: Final = 1024
MAX_RATE_ID_CHARS: Final = 1024

AMOUNTS: Final = (*COUNTERS, "audio_nano")
"""The fields of an event that add up."""

_ID = FIELDS["event_id"]
_REQUIRED: Final = ("correction_id", "port_id", "event_id", "kind", "reason")
# Days that the ledger can hold: from 1970 until 2106.
_DAYS_END_US: Final = 4_291_747_200_000_000
_MORE: Final[Mapping[str, str]] = {"amend": "counts", "reprice": "rate_id"}


class Correction(msgspec.Struct, frozen=True):
    """A valid correction. ``counts`` are of an amend, by the names of ``AMOUNTS``.

    ``currency`` is what its sender takes the amounts to be in, ``day`` when the sender says that
    the event occurred (a date; it only helps to find it). Empty where nothing is said.
    """

    correction_id: str
    port_id: str
    event_id: str
    kind: Kind
    reason: str
    counts: dict[str, int] = {}
    rate_id: str = ""
    currency: str = ""
    day: str = ""


class Standing(msgspec.Struct):
    """What an event amounts to after all its entries up to ``entry_no``.

    ``event`` has the counts as they stand; ``requests`` is 0 once it is void. ``cost_nano`` is None
    exactly while it is unpriced. ``rate_id`` is the last that priced it, also where it could not
    price what was amended since; empty where none ever did.
    """

    event: Event
    entry_no: int
    requests: int
    cost_nano: int | None
    rate_id: str
    status: Status
    currency: str
    first_estimated: bool
    """What the first entry says: the call itself was estimated, or its price."""

    @property
    def is_void(self) -> bool:
        """Whether it was taken back."""
        return self.requests < 1


class Entry(msgspec.Struct, frozen=True):
    """One new ledger entry: the amounts of ``event`` and the cost are deltas.

    ``cost_nano`` None: there was no cost before and there is none now.
    """

    event: Event
    entry_no: int
    requests: int
    unpriced_requests: int
    cost_nano: int | None
    rate_id: str
    status: Status
    estimated: bool


def decode_correction(value: bytes | None) -> Correction | Rejection:
    """The correction in a record's value, or the first reason why it is none."""
    if value is None:
        return Rejection(MALFORMED_JSON, "value: null, a JSON object is required")
    if len(value) > MAX_CORRECTION_BYTES:
        return Rejection(TOO_LARGE, f"value: {len(value)} bytes, at most {MAX_CORRECTION_BYTES}")
    try:
        fields = parse_json(value)
    except MalformedJsonError as error:
        return Rejection(MALFORMED_JSON, f"value: {error}")
    if not isinstance(fields, dict):
        return Rejection(NOT_AN_OBJECT, "value: must be a JSON object")
    present: dict[str, Any] = {name: v for name, v in fields.items() if v is not None}
    return _broken_rule(present) or _built(present)


def _broken_rule(present: Mapping[str, Any]) -> Rejection | None:
    """The first broken rule: missing fields first, then types, then bounds, as of an event."""
    more = _MORE.get(str(present.get("kind")))
    for name in (*_REQUIRED, *([more] if more else [])):
        if name not in present:
            return Rejection(MISSING_FIELD, f"{name}: required")
    optional = ["currency"] if "currency" in present else []
    for name in (*_REQUIRED, *(["rate_id"] if more == "rate_id" else []), *optional):
        if not isinstance(present[name], str):
            return Rejection(WRONG_TYPE, f"{name}: must be a string")
    counts = _counts_of(present)
    if not isinstance(counts, dict):
        return Rejection(WRONG_TYPE, "counts: must be an object of counters")
    for name, count in counts.items():
        rules = FIELDS[name] if name in (*COUNTERS, "audio_seconds") else None
        if rules is not None and (broken := rules.check_type(count)):
            return Rejection(WRONG_TYPE, f"counts.{name}: {broken}")
    return _out_of_range(present, counts)


def _counts_of(present: Mapping[str, Any]) -> Any:
    given: Any = present.get("counts") if present["kind"] == "amend" else {}
    if not isinstance(given, dict):
        return given
    return {name: count for name, count in given.items() if count is not None}


def _out_of_range(present: Mapping[str, Any], counts: Mapping[str, Any]) -> Rejection | None:
    for name in ("correction_id", "port_id", "event_id"):
        if broken := _ID.check_range(present[name]):
            return Rejection(OUT_OF_RANGE, f"{name}: {broken}")
    if present["kind"] not in KINDS:
        return Rejection(OUT_OF_RANGE, f"kind: must be one of {', '.join(KINDS)}")
    bounds = {"reason": MAX_REASON_CHARS}
    if present["kind"] == "reprice":
        bounds["rate_id"] = MAX_RATE_ID_CHARS
    for name, most in bounds.items():
        if not 1 <= len(present[name]) <= most:
            return Rejection(OUT_OF_RANGE, f"{name}: must have 1 to {most} characters")
    if present["kind"] == "amend" and not counts:
        return Rejection(OUT_OF_RANGE, "counts: names no counter that changes")
    for name, count in counts.items():
        if name not in COUNTERS and name != "audio_seconds":
            return Rejection(OUT_OF_RANGE, f"counts.{name}: no such counter")
        if broken := FIELDS[name].check_range(count):
            return Rejection(OUT_OF_RANGE, f"counts.{name}: {broken}")
    return None


def _built(present: Mapping[str, Any]) -> Correction:
    counts: dict[str, int] = {}
    for name, count in _counts_of(present).items():
        if name == "audio_seconds":
            counts["audio_nano"] = audio_nano(count) or 0
        else:
            counts[name] = count
    return Correction(
        present["correction_id"],
        present["port_id"],
        present["event_id"],
        present["kind"],
        present["reason"],
        counts,
        present["rate_id"] if present["kind"] == "reprice" else "",
        present.get("currency", ""),
        _day_of(present.get("occurred_at")),
    )


def _day_of(occurred_at: object) -> str:
    occurred_at_us = parse_rfc3339_us(occurred_at) if isinstance(occurred_at, str) else None
    if occurred_at_us is None or not 0 <= occurred_at_us < _DAYS_END_US:
        return ""
    return format_ms(occurred_at_us // 1000)[:10]


def resolve(
    correction: Correction, standing: Standing, prices: PriceVersion
) -> tuple[Entry, Standing] | Rejection:
    """What ``correction`` does to the event it names, and how the event stands then."""
    event = standing.event
    if correction.kind == "reprice" and prices.price_by(correction.rate_id, event) == "unknown":
        return Rejection(UNKNOWN_RATE, _why("unknown", correction.rate_id))
    if standing.is_void:
        return Rejection(ALREADY_VOID, f"event_id: entry {standing.entry_no} made it void")
    event = msgspec.structs.replace(event, **correction.counts)
    broken = _inconsistent(event) or _other_currency(correction, standing, prices)
    if broken is not None:
        return broken
    if correction.kind == "void":
        return _taken_back(standing)
    rate_id = correction.rate_id if correction.kind == "reprice" else standing.rate_id
    if not rate_id:
        return _moved(standing, event, Price(None, "", "unpriced"))
    price = prices.price_by(rate_id, event)
    if isinstance(price, str):
        reason = UNKNOWN_RATE if price == "unknown" else WRONG_CURRENCY
        return Rejection(reason, _why(price, rate_id))
    if correction.kind == "reprice" and price.cost_nano is None:
        return Rejection(UNKNOWN_RATE, f"rate_id: {rate_id} has no price for what the event counts")
    return _moved(standing, event, price)


def _inconsistent(event: Event) -> Rejection | None:
    for whole, parts in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
        if sum(getattr(event, part) for part in parts) > getattr(event, whole):
            return Rejection(INCONSISTENT_TOKENS, f"counts.{whole}: less than the sum of its parts")
    return None


def _other_currency(
    correction: Correction, standing: Standing, prices: PriceVersion
) -> Rejection | None:
    for currency in (standing.currency, correction.currency):
        if currency and currency != prices.currency:
            detail = (
                f"currency: the deployment's is {prices.currency}, the event is in "
                f"{standing.currency}, the correction says {correction.currency or 'nothing'}"
            )
            return Rejection(WRONG_CURRENCY, detail)
    return None


def _why(trouble: str, rate_id: str) -> str:
    if trouble == "unknown":
        return f"rate_id: no rate {rate_id!r} is used here that prices this event"
    return f"rate_id: {rate_id} is in another currency and no exchange rate applies to the event"


def _taken_back(standing: Standing) -> tuple[Entry, Standing]:
    event = standing.event
    zero = msgspec.structs.replace(event, **dict.fromkeys(AMOUNTS, 0))
    cost_nano = standing.cost_nano
    entry = Entry(
        _difference(zero, event, _negative(event.reported_cost), standing.first_estimated),
        standing.entry_no + 1,
        -1,
        -1 if cost_nano is None else 0,
        None if cost_nano is None else -cost_nano,
        standing.rate_id,
        standing.status,
        standing.first_estimated,
    )
    after = msgspec.structs.replace(
        standing, event=zero, entry_no=entry.entry_no, requests=0, cost_nano=0
    )
    return entry, after


def _moved(standing: Standing, event: Event, price: Price) -> tuple[Entry, Standing]:
    """From how it stands to other counts at another price."""
    before_nano, after_nano = standing.cost_nano, price.cost_nano
    cost_nano = None
    if before_nano is not None or after_nano is not None:
        cost_nano = (after_nano or 0) - (before_nano or 0)
    entry = Entry(
        _difference(event, standing.event, "", standing.first_estimated),
        standing.entry_no + 1,
        0,
        (after_nano is None) - (before_nano is None),
        cost_nano,
        price.rate_id,
        price.status,
        standing.first_estimated or price.estimated,
    )
    after = msgspec.structs.replace(
        standing,
        event=event,
        entry_no=entry.entry_no,
        cost_nano=after_nano,
        rate_id=price.rate_id or standing.rate_id,
        status=price.status,
    )
    return entry, after


def _difference(after: Event, before: Event, reported_cost: str, estimated: bool) -> Event:
    """The event whose amounts are those of ``after`` less those of ``before``."""
    deltas = {name: getattr(after, name) - getattr(before, name) for name in AMOUNTS}
    return msgspec.structs.replace(
        before, **deltas, reported_cost=reported_cost, estimated=estimated
    )


def _negative(decimal: str) -> str:
    if decimal in ("", "0"):
        return decimal
    return decimal[1:] if decimal.startswith("-") else f"-{decimal}"


def added_up(first: Standing, deltas: list[Entry]) -> Standing:
    """How an event stands after its first entry and ``deltas``, in the order of their numbers."""
    requests, unpriced = first.requests, int(first.cost_nano is None)
    amounts = {name: getattr(first.event, name) for name in AMOUNTS}
    cost_nano = first.cost_nano or 0
    standing = first
    for entry in deltas:
        requests += entry.requests
        unpriced += entry.unpriced_requests
        cost_nano += entry.cost_nano or 0
        for name in AMOUNTS:
            amounts[name] += getattr(entry.event, name)
        standing = msgspec.structs.replace(
            standing,
            entry_no=entry.entry_no,
            rate_id=entry.rate_id or standing.rate_id,
            status=entry.status,
        )
    return msgspec.structs.replace(
        standing,
        event=msgspec.structs.replace(first.event, **amounts),
        requests=requests,
        cost_nano=None if unpriced else cost_nano,
    )
