"""What responses of providers come to, as objects and as dicts, against golden payloads."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.event_codec import UnknownFields
from pipeline.core.rejections import Rejection
from producers.events import prepare
from producers.recording import compose

GOLDEN = json.loads((Path(__file__).parent.parent / "golden/provider_usage.json").read_text())
ESTIMATE = 77


def as_object(value: Any) -> Any:
    """The same with attributes, as providers' clients hand it over."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(inner) for name, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("form", [lambda value: value, as_object], ids=["dict", "object"])
@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any], form: Any) -> None:
    response = form(case.get("stream") or case["response"])
    composed = compose({}, response, {}, ESTIMATE)
    assert composed.fields == case["fields"]
    assert composed.is_estimated == case["fields"].get("estimated", False)
    assert composed.is_unknown == case.get("unknown", False)
    given = {"port_id": "p", "provider": "p", "model": "m", **composed.fields}
    assert not isinstance(prepare(given, UnknownFields()), Rejection)


def test_objects_of_the_real_clients() -> None:
    import anthropic.types as a
    import openai.types as o
    from openai.types.audio import Transcription
    from openai.types.chat import ChatCompletion
    from openai.types.responses import Response

    by_name = {case["name"]: case for case in GOLDEN}
    for name, kind in (
        ("openai chat", ChatCompletion),
        ("openai embeddings", o.CreateEmbeddingResponse),
        ("openai transcription by tokens", Transcription),
        ("openai transcription by length", Transcription),
        ("openai images", o.ImagesResponse),
        ("openai responses", Response),
        ("anthropic message, whose input leaves out the cache", a.Message),
    ):
        made = kind.model_construct(**as_object(by_name[name]["response"]).__dict__)
        assert compose({}, made, {}).fields == by_name[name]["fields"], name


def test_who_knows_what_better() -> None:
    response = {"object": "chat.completion", "id": "r", "model": "real", "usage": {}}
    guard = {"port_id": "p", "provider": "azure", "model": "asked", "feature": "ocr"}
    fields = compose(guard, response, {"feature": "mine"}).fields
    assert (fields["provider"], fields["model"], fields["feature"]) == ("azure", "real", "mine")
    assert compose(guard, response, {"model": "said"}).fields["model"] == "said"


def test_what_the_caller_counts_needs_no_known_shape() -> None:
    composed = compose({"provider": "openai"}, b"sound", {"characters": 12}, ESTIMATE)
    assert composed.fields == {"provider": "openai", "characters": 12}
    assert not composed.is_estimated


def test_an_id_that_is_too_long_is_not_taken() -> None:
    response = {"object": "response", "id": "x" * 129, "model": "m", "usage": {"input_tokens": 1}}
    assert "event_id" not in compose({}, response, {}).fields
