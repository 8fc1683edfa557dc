"""CloudEvents 1.0 around an event, as the Kafka protocol binding writes them."""

import base64
import json
from typing import Any

import pytest

from pipeline.core import rejections
from pipeline.core.event_codec import UnknownFields, decode_event
from pipeline.core.events import PricedEvent
from pipeline.core.rejections import Rejection

PLAIN = {"provider": "openai", "model": "gpt-5", "input_tokens": 7}
STRUCTURED = [("content-type", b"application/cloudevents+json; charset=UTF-8")]
ENVELOPE = {
    "specversion": "1.0",
    "type": "usage",
    "source": "/reply-api",
    "id": "e1",
    "time": "2026-11-22T10:15:03.120Z",
    "subject": "harbor-7",
    "datacontenttype": "application/json",
    "partitionkey": "harbor-7",
}
BINARY = [
    ("content-type", b"application/json"),
    ("ce_specversion", b"1.0"),
    ("ce_type", b"usage"),
    ("ce_source", b"/reply-api"),
    ("ce_id", b"e1"),
    ("ce_time", b"2026-11-22T10:15:03.120Z"),
    ("ce_subject", b"harbor-7"),
]
EVENT = PricedEvent("e1", 1_795_342_503_120_000, "harbor-7", "openai", "gpt-5", input_tokens=7)


def structured(**changes: Any) -> PricedEvent | Rejection:
    envelope = {"data": PLAIN} | ENVELOPE | changes
    return decode_event(json.dumps(envelope).encode(), STRUCTURED)


def binary(data: Any, **headers: bytes | None) -> PricedEvent | Rejection:
    replaced = [(name, headers.pop(name, value)) for name, value in BINARY]
    return decode_event(json.dumps(data).encode(), [*replaced, *headers.items()])


def reason(outcome: PricedEvent | Rejection) -> str:
    assert isinstance(outcome, Rejection), outcome
    return outcome.reason


def test_structured_mode_fills_what_the_object_lacks():
    assert structured() == EVENT
    assert structured(data=PLAIN | {"event_id": None, "port_id": None}) == EVENT


@pytest.mark.parametrize(
    "content_type",
    [b"application/cloudevents", b"application/cloudevents+json", b"Application/CloudEvents+JSON"],
)
def test_any_structured_content_type(content_type: bytes):
    value = json.dumps(ENVELOPE | {"data": PLAIN}).encode()
    assert decode_event(value, [("content-type", content_type)]) == EVENT


def test_what_the_object_has_stays():
    own = {"event_id": "own", "occurred_at": "1970-01-01T00:00:01Z", "port_id": "other"}
    expected = PricedEvent("own", 1_000_000, "other", "openai", "gpt-5", input_tokens=7)
    assert structured(data=PLAIN | own) == expected
    assert binary(PLAIN | own) == expected
    assert reason(structured(data=PLAIN | {"port_id": ""})) == rejections.OUT_OF_RANGE


def test_data_in_base64():
    def encoded(data: bytes) -> PricedEvent | Rejection:
        envelope = ENVELOPE | {"data_base64": base64.b64encode(data).decode()}
        return decode_event(json.dumps(envelope).encode(), STRUCTURED)

    assert encoded(json.dumps(PLAIN).encode()) == EVENT
    assert reason(encoded(b"{")) == rejections.MALFORMED_JSON
    assert reason(encoded(b"\xff")) == rejections.MALFORMED_JSON
    assert reason(encoded(b"[]")) == rejections.NOT_AN_OBJECT


@pytest.mark.parametrize(
    "changes",
    [
        {"specversion": "0.3"},
        {"specversion": None},
        {"specversion": 1.0},
        {"id": 7},
        {"time": 1795342503},
        {"subject": ["harbor-7"]},
        {"data": None, "data_base64": "###"},
        {"data": None, "data_base64": "é"},
        {"data": None, "data_base64": 7},
        {"data_base64": "e30="},
    ],
)
def test_an_envelope_that_is_no_cloudevent(changes: dict[str, Any]):
    assert reason(structured(**changes)) == rejections.BAD_CLOUDEVENT


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"1", b'"\xff"', b'{"a":"\\ud800"}'])
def test_an_envelope_that_cannot_be_read(value: bytes | None):
    assert reason(decode_event(value, STRUCTURED)) == rejections.BAD_CLOUDEVENT


def test_a_batch_is_refused_whatever_it_holds():
    for value in (b"[]", json.dumps([ENVELOPE | {"data": PLAIN}]).encode(), None):
        headers = [("content-type", b"application/cloudevents-batch+json")]
        assert reason(decode_event(value, headers)) == rejections.BAD_CLOUDEVENT


@pytest.mark.parametrize("data", [None, [], "text", 1, json.dumps(PLAIN)])
def test_data_that_is_no_object(data: Any):
    assert reason(structured(data=data)) == rejections.NOT_AN_OBJECT


def test_an_envelope_without_data_has_no_object():
    assert (
        reason(decode_event(json.dumps(ENVELOPE).encode(), STRUCTURED)) == rejections.NOT_AN_OBJECT
    )


def test_the_size_counts_the_whole_record():
    assert reason(structured(extension="x" * 65_536)) == rejections.TOO_LARGE


def test_absent_attributes_leave_the_field_missing():
    assert reason(structured(subject=None)) == rejections.MISSING_FIELD
    assert reason(structured(time="noon")) == rejections.BAD_TIMESTAMP
    assert reason(binary(PLAIN, ce_id=None)) == rejections.MISSING_FIELD


def test_unknown_fields_are_counted_in_the_object_only():
    unknown = UnknownFields()
    value = json.dumps(ENVELOPE | {"data": PLAIN | {"colour": "red"}}).encode()
    assert decode_event(value, STRUCTURED, unknown) == EVENT
    assert unknown.count == 1


def test_binary_mode_fills_what_the_object_lacks():
    assert binary(PLAIN) == EVENT
    assert binary(PLAIN | {"event_id": None}) == EVENT
    assert decode_event(json.dumps(PLAIN).encode(), [(n.upper(), v) for n, v in BINARY]) == EVENT


def test_binary_mode_names_are_utf_8():
    outcome = binary(PLAIN, ce_subject="härbor".encode())
    assert isinstance(outcome, PricedEvent)
    assert outcome.port_id == "härbor"
    assert reason(binary(PLAIN, ce_subject=b"\xff")) == rejections.BAD_CLOUDEVENT


def test_binary_mode_of_another_version():
    assert reason(binary(PLAIN, ce_specversion=b"0.3")) == rejections.BAD_CLOUDEVENT


def test_binary_mode_checks_the_value_like_any_event():
    assert reason(decode_event(None, BINARY)) == rejections.MALFORMED_JSON
    assert reason(decode_event(b"{", BINARY)) == rejections.MALFORMED_JSON
    assert reason(binary([PLAIN])) == rejections.NOT_AN_OBJECT
    assert reason(binary(PLAIN | {"input_tokens": "7"})) == rejections.WRONG_TYPE


def test_other_headers_change_nothing():
    own = {"event_id": "e1", "occurred_at": "2026-11-22T10:15:03.120Z", "port_id": "harbor-7"}
    headers = [("content-type", b"application/json"), ("traceparent", b"\xff"), ("empty", None)]
    assert decode_event(json.dumps(PLAIN | own).encode(), headers) == EVENT
