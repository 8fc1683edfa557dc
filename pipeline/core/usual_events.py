"""Whether the events of a JSON array are valid, at the price of looking at what nearly all have.

For the API, which sends events on as the bytes they came as: it needs to know that they are
valid, whose they are and when they occurred. What is more than that here costs every event.
"""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from pipeline.core import event_fields
from pipeline.core.event_codec import decode_plain_array
from pipeline.core.events import Event
from pipeline.core.timestamp_columns import parse_many_us
from pipeline.core.wire_types import BillingScope, Count, Id, Kind, Text

_GivenFeature = Annotated[
    str, msgspec.Meta(min_length=1, max_length=event_fields.MAX_FEATURE_CHARS)
]


class UsualEvent(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """An event that has none but these fields, and no null: any other one is unusual here."""

    event_id: Id
    occurred_at: str
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
    feature: _GivenFeature = "unspecified"
    kind: Kind = "llm"
    billing_scope: BillingScope = "org"
    input_tokens: Count = 0
    cached_input_tokens: Count = 0
    output_tokens: Count = 0


class ValidEvents(NamedTuple):
    """Valid events in their order, and when each occurred (µs since 1970 UTC)."""

    events: Sequence[UsualEvent] | Sequence[Event]
    occurred_at_us: list[int]


_array_decoder = msgspec.json.Decoder(list[UsualEvent])


def read_valid_array(array: bytes) -> ValidEvents | None:
    """The events of a JSON array that are all valid whatever their record's time, else None.

    None as well where one of them has an unknown field, a null or another thing that has to be
    looked at more carefully; how large each of them is, is for the caller to look at.
    """
    usual = _read_usual_array(array)
    if usual is not None:
        return usual
    events = decode_plain_array(array)
    return None if events is None else ValidEvents(events, [e.occurred_at_us for e in events])


def _read_usual_array(array: bytes) -> ValidEvents | None:
    try:
        events = _array_decoder.decode(array)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if [1 for event in events if event.cached_input_tokens > event.input_tokens]:
        return None
    times_us = parse_many_us([event.occurred_at for event in events])
    known_us = [time_us for time_us in times_us if time_us is not None]
    return ValidEvents(events, known_us) if len(known_us) == len(events) else None
