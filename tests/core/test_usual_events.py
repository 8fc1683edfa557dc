"""The array reader of the API takes what the codec takes, or leaves it to the codec."""

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.event_codec import decode_event
from pipeline.core.event_fields import FIELDS
from pipeline.core.events import Event
from pipeline.core.usual_events import UsualEvent, read_valid_array
from tests.core.test_event_codec import encoded, records

TIMES = ("2026-11-22T10:15:03Z", "2026-11-22T10:15:03.120+00:00", "2026-02-30T00:00:00Z", "soon")
LONGEST = "x" * 128
VALUES: dict[str, list[Any]] = {
    "occurred_at": [*TIMES],
    "event_id": ["", "e", LONGEST, LONGEST + "x", 7],
    "feature": ["", "f", LONGEST, LONGEST + "x", None],
    "user_id": ["", "u", "é" * 256, "x" * 257],
    "kind": ["llm", "tts", "LLM", ""],
    "billing_scope": ["org", "user", "group"],
    "input_tokens": [0, 10, 10**10, 10**10 + 1, -1, 1.0, True, "1"],
    "cached_input_tokens": [0, 10, 11, 10**10, None],
    "output_tokens": [0, 1, -1],
    "reasoning_tokens": [0, 1, 2],
    "cache_hit": [True, None, 1],
    "tags": [{}, {"a": "b"}],
    "colour": ["red"],
}


def check(values: list[bytes]) -> None:
    """What is taken are the codec's events; what the codec refuses is not taken."""
    found = read_valid_array(b"[" + b",".join(values) + b"]")
    if found is None:
        return
    alone = [decode_event(value) for value in values]
    events = [event for event in alone if isinstance(event, Event)]
    assert len(events) == len(found.events) == len(values)
    assert [(e.event_id, e.port_id) for e in found.events] == [
        (e.event_id, e.port_id) for e in events
    ]
    assert found.occurred_at_us == [event.occurred_at_us for event in events]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {}, optional={name: st.sampled_from(of) for name, of in VALUES.items()}
        ),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([0, 40]),
)
def test_bounds_of_every_kind_of_field(changes: list[dict[str, Any]], usual: int) -> None:
    check([encoded(**one) for one in changes] + [encoded(event_id=f"u{n}") for n in range(usual)])


@settings(max_examples=200, deadline=None)
@given(st.lists(records(), min_size=1, max_size=4))
def test_whatever_comes(values: list[bytes]) -> None:
    array = b"[" + b",".join(values) + b"]"
    try:
        elements = msgspec.json.decode(array, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        assert read_valid_array(array) is None
        return
    check([bytes(element) for element in elements])


def test_usual_events_are_taken_the_short_way_and_others_the_longer_one() -> None:
    usual = [encoded(event_id=f"e{n}", input_tokens=9, cached_input_tokens=n) for n in range(9)]
    found = read_valid_array(b"[" + b",".join(usual) + b"]")
    assert found is not None
    assert {type(event) for event in found.events} == {UsualEvent}
    for unusual in ({"reasoning_tokens": 1, "output_tokens": 1}, {"feature": ""}):
        found = read_valid_array(b"[" + b",".join([*usual, encoded(**unusual)]) + b"]")
        assert found is not None
        assert len(found.events) == 10
        assert not {type(event) for event in found.events} & {UsualEvent}
    for refused in ({"cached_input_tokens": 1}, {"occurred_at": "soon"}, {"colour": "red"}):
        assert read_valid_array(b"[" + b",".join([*usual, encoded(**refused)]) + b"]") is None


def test_each_field_is_one_of_the_contract() -> None:
    assert {field.name for field in msgspec.structs.fields(UsualEvent)} <= {*FIELDS}
    assert json.loads(encoded()).keys() <= {*UsualEvent.__struct_fields__}
