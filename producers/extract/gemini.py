"""Answers of Gemini, which counts thoughts beside the candidates and lists tokens by modality."""

from typing import Any

from producers.extract.usage import Usage, count, read, usage

PROVIDER = "google"
# The client's names first, then those of the REST interface.
_METADATA = ("usage_metadata", "usageMetadata")


def is_answer(response: object) -> bool:
    """Whether it carries usage in Gemini's words."""
    return _counted(_metadata(response))


def from_answer(response: object) -> Usage:
    """An answer, whole or one chunk of a stream (whose figures are cumulative)."""
    found = _metadata(response)
    described = {
        "event_id": _either(response, "response_id", "responseId"),
        "provider": PROVIDER,
        "model": _either(response, "model_version", "modelVersion"),
        "kind": "llm",
    }
    return usage(described, _counts(found) if _counted(found) else None)


def _metadata(response: object) -> object:
    return _either(response, *_METADATA)


def _counted(found: object) -> bool:
    return _either(found, "prompt_token_count", "promptTokenCount") is not None


def _counts(found: object) -> dict[str, Any]:
    thoughts = _number(found, "thoughts_token_count", "thoughtsTokenCount")
    prompt = _number(found, "prompt_token_count", "promptTokenCount")
    tools = _number(found, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
    return {
        "input_tokens": prompt + tools,
        "cached_input_tokens": _number(
            found, "cached_content_token_count", "cachedContentTokenCount"
        ),
        "input_audio_tokens": _uncached(found, "AUDIO"),
        "input_image_tokens": _uncached(found, "IMAGE"),
        "output_tokens": thoughts
        + _number(found, "candidates_token_count", "candidatesTokenCount"),
        "reasoning_tokens": thoughts,
        "output_audio_tokens": _of_modality(
            _either(found, "candidates_tokens_details", "candidatesTokensDetails"), "AUDIO"
        ),
    }


def _uncached(found: object, modality: str) -> int:
    """Prompt tokens of a modality that did not come from the cache."""
    prompt = _either(found, "prompt_tokens_details", "promptTokensDetails")
    cached = _either(found, "cache_tokens_details", "cacheTokensDetails")
    return max(0, _of_modality(prompt, modality) - _of_modality(cached, modality))


def _of_modality(details: Any, modality: str) -> int:
    total = 0
    for entry in details or ():
        name = read(entry, "modality")
        if getattr(name, "value", name) == modality:
            total += _number(entry, "token_count", "tokenCount")
    return total


def _either(source: object, *names: str) -> Any:
    for name in names:
        value = read(source, name)
        if value is not None:
            return value
    return None


def _number(source: object, name: str, other_name: str) -> int:
    return count(source, name) or count(source, other_name)
