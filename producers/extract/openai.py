"""Responses in OpenAI's shapes, which many other providers and servers use too."""

from typing import Any

from producers.extract.usage import Usage, count, read, usage

PROVIDER = "openai"


def from_chat(response: object) -> Usage:
    """Chat and legacy completions, whole or as the last chunk of a stream."""
    found = read(response, "usage")
    read_parts, written_parts = "prompt_tokens_details", "completion_tokens_details"
    counts = None
    if found is not None:
        counts = {
            "input_tokens": count(found, "prompt_tokens"),
            "cached_input_tokens": count(found, read_parts, "cached_tokens"),
            "cache_write_tokens": count(found, read_parts, "cache_write_tokens"),
            "input_audio_tokens": count(found, read_parts, "audio_tokens"),
            "input_image_tokens": count(found, read_parts, "image_tokens"),
            "output_tokens": count(found, "completion_tokens"),
            "reasoning_tokens": count(found, written_parts, "reasoning_tokens"),
            "output_audio_tokens": count(found, written_parts, "audio_tokens"),
        }
    return usage(_described(response, "llm"), counts)


def from_response(response: object) -> Usage:
    """Answers of the Responses API."""
    found = read(response, "usage")
    counts = None
    if found is not None:
        counts = {
            **_token_counts(found, "input_tokens_details"),
            "cached_input_tokens": count(found, "input_tokens_details", "cached_tokens"),
            "cache_write_tokens": count(found, "input_tokens_details", "cache_write_tokens"),
            "reasoning_tokens": count(found, "output_tokens_details", "reasoning_tokens"),
            "output_audio_tokens": count(found, "output_tokens_details", "audio_tokens"),
            "web_searches": sum(map(_is_search, read(response, "output") or ())),
        }
    return usage(_described(response, "llm"), counts)


def from_embedding(response: object) -> Usage:
    """Embeddings; there is no response id."""
    counts = {"input_tokens": count(response, "usage", "prompt_tokens")}
    return usage(_described(response, "embedding"), counts)


def from_image(response: object) -> Usage:
    """Generated images; older models report no tokens."""
    counts = {"images": len(read(response, "data") or ())}
    counts |= _token_counts(read(response, "usage"), "input_tokens_details")
    return usage(_described(response, "image"), counts)


def from_transcription(response: object) -> Usage:
    """Transcriptions and translations, billed by tokens or by length."""
    found = read(response, "usage")
    described = _described(response, "stt")
    if read(found, "type") == "duration":
        return usage(described, {"audio_seconds": read(found, "seconds")})
    if found is not None:
        return usage(described, _token_counts(found, "input_token_details"))
    seconds = read(response, "duration")
    return usage(described, None if seconds is None else {"audio_seconds": seconds})


def from_speech(_: object) -> Usage:
    """Generated speech: sound alone, which does not say what it cost."""
    return usage({"provider": PROVIDER, "kind": "tts"}, None)


def from_speech_event(event: object) -> Usage:
    """The last event of streamed speech."""
    counts = _token_counts(read(event, "usage"), "input_tokens_details")
    return usage({"provider": PROVIDER, "kind": "tts"}, counts)


def _token_counts(found: object, details: str) -> dict[str, Any]:
    return {
        "input_tokens": count(found, "input_tokens"),
        "input_audio_tokens": count(found, details, "audio_tokens"),
        "input_image_tokens": count(found, details, "image_tokens"),
        "output_tokens": count(found, "output_tokens"),
    }


def _described(response: object, kind: str) -> dict[str, Any]:
    return {
        "event_id": read(response, "id"),
        "provider": PROVIDER,
        "model": read(response, "model"),
        "kind": kind,
        "request_id": read(response, "_request_id"),
        "service_tier": read(response, "service_tier"),
    }


def _is_search(item: object) -> bool:
    """Whether an item of the output is a web search that is billed as one."""
    if read(item, "type") != "web_search_call":
        return False
    return read(item, "action", "type") in (None, "search")
