"""From a record's bytes to an event, or to the reason why it is none.

Two readers give the same answer. ``_decode_fast`` takes the usual valid event; whatever it does
not take goes to ``_decode_carefully``, which states every rule and alone decides on reasons.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, cast

import msgspec

from pipeline.core import event_fields
from pipeline.core.cloudevents import (
    Attributes,
    Headers,
    content_type,
    is_cloudevent,
    is_structured,
    open_envelope,
    read_attributes,
)
from pipeline.core.event_fields import COUNTERS, FIELDS, FLAGS, OPTIONAL_TEXTS
from pipeline.core.events import Event, PricedEvent
from pipeline.core.json_text import MalformedJsonError, parse_json
from pipeline.core.rejections import (
    BAD_TIMESTAMP,
    IN_THE_FUTURE,
    INCONSISTENT_TOKENS,
    MALFORMED_JSON,
    MISSING_FIELD,
    NOT_AN_OBJECT,
    OUT_OF_RANGE,
    TOO_LARGE,
    TOO_OLD,
    WRONG_TYPE,
    Rejection,
)
from pipeline.core.timestamps import US_PER_DAY, US_PER_SECOND, parse_rfc3339_us
from pipeline.core.wire_types import BillingScope, Cost, Count, Feature, Id, Kind, Text

MAX_EVENT_BYTES: Final = 64 * 1024


class EncodedEvent(Protocol):
    """A Kafka record, as far as it is decoded here."""

    @property
    def value(self) -> bytes | None: ...

    @property
    def headers(self) -> Headers: ...


class UnknownFields(msgspec.Struct):
    """Counts fields that accepted events carried and nobody reads."""

    count: int = 0


class TimeLimits(msgspec.Struct, frozen=True):
    """How far ``occurred_at`` may lie before and after the record's Kafka time."""

    max_age_us: int
    max_skew_us: int

    @classmethod
    def of(cls, max_event_age_days: int, max_future_skew_s: int) -> "TimeLimits":
        """The limits from the settings' units."""
        return cls(max_event_age_days * US_PER_DAY, max_future_skew_s * US_PER_SECOND)


def decode_event(
    value: bytes | None, headers: Headers = (), unknown: UnknownFields | None = None
) -> PricedEvent | Rejection:
    """The event in a record, without a price, or the first reason of the contract's order that
    applies to it.

    Every rule is applied but those that need the record's time (see ``judge_time``). Unknown
    fields of an accepted event are added to ``unknown``.
    """
    if value is not None and not (headers and is_cloudevent(headers)):
        event = _decode_fast(value)
        if event is not None:
            return event
    return _decode_carefully(value, headers, unknown)


def decode_events(
    records: Sequence[EncodedEvent], unknown: UnknownFields | None = None
) -> list[PricedEvent | Rejection]:
    """``decode_event`` of each record, for less than one by one.

    The times are read together, and what nearly all events are like is told without a call for
    each of them.
    """
    found: list[PricedEvent | Rejection | None] = [*_as_events(_decode_plains(records))]
    for number, event in enumerate(found):
        if event is None:
            record = records[number]
            found[number] = _decode_unusual(record.value, record.headers, unknown)
    return cast("list[PricedEvent | Rejection]", found)


def _decode_plains(records: Sequence[EncodedEvent]) -> "list[_PlainEvent | None]":
    """The JSON of each record, None where it is not of the usual kind."""
    decode, plains = _plain_decoder.decode, list[_PlainEvent | None]()
    for record in records:
        value, headers = record.value, record.headers
        plain = None
        try:
            if value is not None and not (headers and is_cloudevent(headers)):
                plain = decode(value) if len(value) <= MAX_EVENT_BYTES else None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            pass  # the other readers say why
        plains.append(plain)
    return plains


def _decode_unusual(
    value: bytes | None, headers: Headers, unknown: UnknownFields | None
) -> PricedEvent | Rejection:
    """``decode_event`` where the reader of plain events has looked already."""
    if value is not None and not (headers and is_cloudevent(headers)):
        event = _decode_with_nulls(value) if len(value) <= MAX_EVENT_BYTES else None
        if event is not None:
            return event
    return _decode_carefully(value, headers, unknown)


def decode_plain_array(array: bytes) -> Sequence[Event] | None:
    """The events of a JSON array, faster than one by one; None unless all of them are valid events
    of the usual kind. How large each of them is, is for the caller to look at."""
    try:
        found = _plain_array_decoder.decode(array)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    events = _as_events(found)
    return None if any(event is None for event in events) else cast("list[Event]", events)


def judge_time(occurred_at_us: int, recorded_at_ms: int, limits: TimeLimits) -> Rejection | None:
    """Whether the event is too old or too new for a record of that Kafka time; both limits pass."""
    age_us = recorded_at_ms * 1000 - occurred_at_us
    if age_us > limits.max_age_us:
        days = limits.max_age_us // US_PER_DAY
        return Rejection(TOO_OLD, f"occurred_at: more than {days} days before the record's time")
    if -age_us > limits.max_skew_us:
        seconds = limits.max_skew_us // US_PER_SECOND
        return Rejection(
            IN_THE_FUTURE, f"occurred_at: more than {seconds} s after the record's time"
        )
    return None


_Text = Text | None
_Feature = Feature | None
_Count = Count | None
_Kind = Kind | None
_BillingScope = BillingScope | None


class _PlainEvent(  # pyright: ignore[reportIncompatibleVariableOverride]
    PricedEvent,
    array_like=False,
    gc=False,
    forbid_unknown_fields=True,
    rename={"occurred_at_us": "occurred_at", "audio_nano": "audio_seconds"},
):
    """What most producers send: no unknown field and no null. It becomes a ``PricedEvent`` in
    place.

    Until then ``occurred_at_us`` and ``audio_nano`` hold what JSON had. What is not the sender's to
    say has a type that no JSON has, so it is unknown there.
    """

    event_id: Id
    occurred_at_us: str  # pyright: ignore
    port_id: Id
    provider: Id
    model: Id
    user_id: Text = ""
    organization_id: Text = ""
    group_id: Text = ""
    session_id: Text = ""
    service: Text = ""
    endpoint: Text = ""
    request_id: Text = ""
    service_tier: Text = ""
    feature: Feature = "unspecified"
    kind: Kind = "llm"  # pyright: ignore
    billing_scope: BillingScope = "org"  # pyright: ignore
    input_tokens: Count = 0
    cached_input_tokens: Count = 0
    cache_write_tokens: Count = 0
    cache_write_1h_tokens: Count = 0
    input_audio_tokens: Count = 0
    input_image_tokens: Count = 0
    output_tokens: Count = 0
    reasoning_tokens: Count = 0
    output_audio_tokens: Count = 0
    characters: Count = 0
    images: Count = 0
    web_searches: Count = 0
    audio_nano: int | float | str = 0  # pyright: ignore
    reported_cost: Cost = ""
    source_offset: msgspec.UnsetType = 0  # pyright: ignore
    recorded_at_ms: msgspec.UnsetType = 0  # pyright: ignore
    cost_nano: msgspec.UnsetType = None  # pyright: ignore
    rate_id: msgspec.UnsetType = ""  # pyright: ignore
    price_status: msgspec.UnsetType = "unpriced"  # pyright: ignore
    price_estimated: msgspec.UnsetType = False  # pyright: ignore


class _WireEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """What the fast reader takes: no unknown field, all types right, most bounds kept."""

    event_id: Id
    occurred_at: str
    port_id: Id
    provider: Id
    model: Id
    user_id: _Text = None
    organization_id: _Text = None
    group_id: _Text = None
    session_id: _Text = None
    service: _Text = None
    endpoint: _Text = None
    request_id: _Text = None
    service_tier: _Text = None
    feature: _Feature = None
    kind: _Kind = None
    billing_scope: _BillingScope = None
    input_tokens: _Count = None
    cached_input_tokens: _Count = None
    cache_write_tokens: _Count = None
    cache_write_1h_tokens: _Count = None
    input_audio_tokens: _Count = None
    input_image_tokens: _Count = None
    output_tokens: _Count = None
    reasoning_tokens: _Count = None
    output_audio_tokens: _Count = None
    characters: _Count = None
    images: _Count = None
    web_searches: _Count = None
    audio_seconds: int | float | str | None = None
    self_hosted: bool | None = None
    cache_hit: bool | None = None
    estimated: bool | None = None
    reported_cost: str | None = None
    tags: dict[str, str] | None = None


_plain_decoder = msgspec.json.Decoder(_PlainEvent)
_plain_array_decoder = msgspec.json.Decoder(list[_PlainEvent])
_wire_decoder = msgspec.json.Decoder(_WireEvent)


def _decode_fast(value: bytes) -> PricedEvent | None:
    """The event, or None when the careful reader has to look."""
    if len(value) > MAX_EVENT_BYTES:
        return None
    try:
        plain = _plain_decoder.decode(value)
    except msgspec.ValidationError:
        return _decode_with_nulls(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _as_event(plain, parse_rfc3339_us(plain.occurred_at_us))


def _as_event(plain: _PlainEvent, occurred_at_us: int | None) -> PricedEvent | None:
    """The plain event turned into a ``PricedEvent``; None when the careful reader has to look."""
    if occurred_at_us is None or not _tokens_fit(plain):
        return None
    audio_seconds: int | float | str = plain.audio_nano
    # Both structs have the same fields in the same order; copying 40 of them costs more than this.
    event: Any = plain
    event.__class__ = PricedEvent
    event.occurred_at_us = occurred_at_us
    if not event.feature:
        event.feature = "unspecified"
    if audio_seconds == 0 and not event.reported_cost and not event.tags:
        event.audio_nano = 0
        return event
    cost, tags = event.reported_cost or None, event.tags or None
    return event if _add_rare_fields(event, audio_seconds, cost, tags) else None


def _as_events(plains: "Sequence[_PlainEvent | None]") -> list[PricedEvent | None]:
    """``_as_event`` of each, for less than one by one; None stays None."""
    # Here, as the SDK decodes single events where no numpy is installed.
    from pipeline.core.timestamp_columns import parse_many_us

    texts = [plain.occurred_at_us for plain in plains if plain is not None]
    times_us = iter(parse_many_us(texts))
    found: list[PricedEvent | None] = []
    for plain in plains:
        event: Any = plain
        if plain is not None:
            at_us = next(times_us)
            if (
                at_us is None
                or plain.cached_input_tokens > plain.input_tokens
                or (
                    plain.cache_write_tokens
                    or plain.cache_write_1h_tokens
                    or plain.input_audio_tokens
                    or plain.input_image_tokens
                    or plain.reasoning_tokens
                    or plain.output_audio_tokens
                    or plain.audio_nano != 0
                    or plain.reported_cost
                    or plain.tags
                    or not plain.feature
                )
            ):
                event = _as_event(plain, at_us)
            else:
                event.__class__ = PricedEvent  # see ``_as_event``
                event.occurred_at_us = at_us
                event.audio_nano = 0
        found.append(event)
    return found


def _decode_with_nulls(value: bytes) -> PricedEvent | None:
    """As ``_decode_fast``, for events that say null where they mean absent."""
    try:
        wire = _wire_decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    occurred_at_us = parse_rfc3339_us(wire.occurred_at)
    if occurred_at_us is None:
        return None
    event = _build_usual(wire, occurred_at_us)
    if not _tokens_fit(event):
        return None
    rare = _add_rare_fields(event, wire.audio_seconds, wire.reported_cost, wire.tags)
    return event if rare else None


def _tokens_fit(event: Event) -> bool:
    """Whether the parts of the input and of the output add up to no more than the whole."""
    input_parts = (
        event.cached_input_tokens
        + event.cache_write_tokens
        + event.cache_write_1h_tokens
        + event.input_audio_tokens
        + event.input_image_tokens
    )
    output_parts = event.reasoning_tokens + event.output_audio_tokens
    return input_parts <= event.input_tokens and output_parts <= event.output_tokens


def _add_rare_fields(
    event: Event,
    audio_seconds: int | float | str | None,
    reported_cost: str | None,
    tags: dict[str, str] | None,
) -> bool:
    """The fields that few events have and that take a closer look; False when one is wrong."""
    if audio_seconds is not None:
        try:
            audio_nano = event_fields.audio_nano(audio_seconds)
        except ValueError:
            return False
        if audio_nano is None:
            return False
        event.audio_nano = audio_nano
    if reported_cost is not None:
        cost = event_fields.reported_cost(reported_cost)
        if cost is None:
            return False
        event.reported_cost = cost
    if tags is not None:
        if event_fields.check_tags_range(tags) is not None:
            return False
        event.tags = tags
    return True


def _build_usual(wire: _WireEvent, occurred_at_us: int) -> PricedEvent:
    return PricedEvent(
        wire.event_id,
        occurred_at_us,
        wire.port_id,
        wire.provider,
        wire.model,
        wire.user_id or "",
        wire.organization_id or "",
        wire.group_id or "",
        wire.session_id or "",
        wire.service or "",
        wire.endpoint or "",
        wire.request_id or "",
        wire.service_tier or "",
        wire.feature or "unspecified",
        wire.kind or "llm",
        wire.billing_scope or "org",
        wire.input_tokens or 0,
        wire.cached_input_tokens or 0,
        wire.cache_write_tokens or 0,
        wire.cache_write_1h_tokens or 0,
        wire.input_audio_tokens or 0,
        wire.input_image_tokens or 0,
        wire.output_tokens or 0,
        wire.reasoning_tokens or 0,
        wire.output_audio_tokens or 0,
        wire.characters or 0,
        wire.images or 0,
        wire.web_searches or 0,
        0,
        wire.self_hosted or False,
        wire.cache_hit or False,
        wire.estimated or False,
    )


def _decode_carefully(
    value: bytes | None, headers: Headers, unknown: UnknownFields | None
) -> PricedEvent | Rejection:
    fields = _read_object(value, headers)
    if isinstance(fields, Rejection):
        return fields
    present = {name: fields[name] for name in FIELDS if fields.get(name) is not None}
    rejection = _check_fields(present)
    if rejection is not None:
        return rejection
    event = _build_event(present)
    if isinstance(event, Event) and unknown is not None:
        unknown.count += sum(name not in FIELDS for name in fields)
    return event


def _read_object(value: bytes | None, headers: Headers) -> dict[str, Any] | Rejection:
    """The event's JSON object, with what a CloudEvents envelope fills in."""
    if value is not None and len(value) > MAX_EVENT_BYTES:
        return Rejection(TOO_LARGE, f"value: {len(value)} bytes, at most {MAX_EVENT_BYTES}")
    media_type = content_type(headers)
    if is_structured(media_type):
        envelope = open_envelope(value, media_type)
        if isinstance(envelope, Rejection):
            return envelope
        if envelope.raw_data is None:
            return _as_object(envelope.data, envelope.attributes)
        return _parse_object(envelope.raw_data, envelope.attributes)
    attributes = read_attributes(headers)
    if isinstance(attributes, Rejection):
        return attributes
    return _parse_object(value, attributes)


def _parse_object(value: bytes | None, attributes: Attributes) -> dict[str, Any] | Rejection:
    if value is None:
        return Rejection(MALFORMED_JSON, "value: null, a JSON object is required")
    try:
        return _as_object(parse_json(value), attributes)
    except MalformedJsonError as error:
        return Rejection(MALFORMED_JSON, f"value: {error}")


def _as_object(data: object, attributes: Attributes) -> dict[str, Any] | Rejection:
    if not isinstance(data, dict):
        return Rejection(NOT_AN_OBJECT, "value: must be a JSON object")
    fields: dict[str, Any] = data
    for name, attribute in (
        ("event_id", attributes.id),
        ("occurred_at", attributes.time),
        ("port_id", attributes.subject),
    ):
        if attribute is not None and fields.get(name) is None:
            fields[name] = attribute
    return fields


def _check_fields(present: Mapping[str, Any]) -> Rejection | None:
    """The first broken rule: of all fields the missing ones, then types, then bounds."""
    for name, rules in FIELDS.items():
        if rules.required and name not in present:
            return Rejection(MISSING_FIELD, f"{name}: required")
    for name, value in present.items():
        broken = FIELDS[name].check_type(value)
        if broken is not None:
            return Rejection(WRONG_TYPE, f"{name}: {broken}")
    for name, value in present.items():
        broken = FIELDS[name].check_range(value)
        if broken is not None:
            return Rejection(OUT_OF_RANGE, f"{name}: {broken}")
    return None


def _build_event(present: Mapping[str, Any]) -> PricedEvent | Rejection:
    occurred_at_us = parse_rfc3339_us(present["occurred_at"])
    if occurred_at_us is None:
        return Rejection(BAD_TIMESTAMP, "occurred_at: must be RFC 3339 with an offset")
    counts: dict[str, int] = {name: present.get(name, 0) for name in COUNTERS}
    for whole, parts in (
        ("input_tokens", event_fields.INPUT_PARTS),
        ("output_tokens", event_fields.OUTPUT_PARTS),
    ):
        if sum(counts[part] for part in parts) > counts[whole]:
            return Rejection(INCONSISTENT_TOKENS, f"{whole}: less than the sum of its parts")
    return PricedEvent(
        event_id=present["event_id"],
        occurred_at_us=occurred_at_us,
        port_id=present["port_id"],
        provider=present["provider"],
        model=present["model"],
        **{name: present.get(name, "") for name in OPTIONAL_TEXTS},
        feature=present.get("feature") or "unspecified",
        kind=present.get("kind", "llm"),
        billing_scope=present.get("billing_scope", "org"),
        **counts,
        audio_nano=event_fields.audio_nano(present.get("audio_seconds", 0)) or 0,
        **{name: present.get(name, False) for name in FLAGS},
        reported_cost=event_fields.plain_decimal(present.get("reported_cost", "")) or "",
        tags=present.get("tags", {}),
    )
