"""Events that must be rejected, several of each of the contract's reasons."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from typing import Any

Body = dict[str, Any]
Headers = tuple[tuple[str, bytes], ...]
Malformed = tuple[bytes | None, Headers]

STRUCTURED: Headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
BATCH: Headers = (("content-type", b"application/cloudevents-batch+json"),)


def encode(body: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _changed(**changes: Any) -> Callable[[Body], Malformed]:
    return lambda body: (encode({**body, **changes}), ())


def _without(field: str) -> Callable[[Body], Malformed]:
    return lambda body: (encode({k: v for k, v in body.items() if k != field}), ())


def _raw(value: bytes | None, headers: Headers = ()) -> Callable[[Body], Malformed]:
    return lambda _: (value, headers)


def _cut_short(body: Body) -> Malformed:
    return encode(body)[:-7], ()


def _surrogate(body: Body) -> Malformed:
    return encode(body).replace(b'"port_id":"', b'"port_id":"\\ud800', 1), ()


def _list_as_data(body: Body) -> Malformed:
    return encode({"specversion": "1.0", "id": "1", "source": "/s", "type": "t", "data": [1]}), (
        STRUCTURED
    )


def _no_specversion(body: Body) -> Malformed:
    return encode({"id": "1", "source": "/s", "type": "t", "data": body}), STRUCTURED


def _moved(shift: timedelta) -> Callable[[Body], Malformed]:
    def moved(body: Body) -> Malformed:
        then = datetime.fromisoformat(body["occurred_at"]) + shift
        return encode({**body, "occurred_at": then.isoformat()}), ()

    return moved


MAKERS: dict[str, tuple[Callable[[Body], Malformed], ...]] = {
    "too-large": (_changed(note="x" * 65_536),),
    "bad-cloudevent": (
        _no_specversion,
        _raw(b"{not an envelope", STRUCTURED),
        _raw(b"[]", BATCH),
    ),
    "malformed-json": (
        _cut_short,
        _surrogate,
        _raw(None),
        _raw(b""),
        _raw(b'{"event_id":"\xff"}'),
    ),
    "not-an-object": (_raw(b"[1,2]"), _raw(b'"event"'), _raw(b"null"), _list_as_data),
    "missing-field": (_without("model"), _without("occurred_at"), _changed(event_id=None)),
    "wrong-type": (
        _changed(input_tokens="12"),
        _changed(input_tokens=1.0),
        _changed(output_tokens=True),
        _changed(occurred_at=1_760_000_000),
        _changed(self_hosted="no"),
        _changed(reported_cost=0.25),
        _changed(tags={"team": 7}),
        _changed(audio_seconds="a minute"),
    ),
    "out-of-range": (
        _changed(input_tokens=-1),
        _changed(characters=10_000_000_001),
        _changed(event_id="e" * 129),
        _changed(port_id=""),
        _changed(kind="video"),
        _changed(audio_seconds="1.0000000001"),
        _changed(tags={f"t{n}": "" for n in range(17)}),
    ),
    "bad-timestamp": (
        _changed(occurred_at="yesterday"),
        _changed(occurred_at="2026-02-30T10:00:00Z"),
        _changed(occurred_at="2026-11-22T10:00:00"),
    ),
    "inconsistent-tokens": (
        _changed(input_tokens=10, cached_input_tokens=11),
        _changed(output_tokens=5, reasoning_tokens=3, output_audio_tokens=3),
    ),
    "too-old": (_moved(timedelta(days=-9)), _moved(timedelta(days=-400))),
    "in-the-future": (_moved(timedelta(hours=30)), _moved(timedelta(days=40))),
}
"""Makers of bad events by reason; each takes a valid body."""


def malformed(reason: str, body: Body, rng: Random) -> Malformed:
    """The value and headers of an event that is rejected for ``reason``, made from ``body``."""
    return rng.choice(MAKERS[reason])(body)
