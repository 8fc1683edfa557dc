"""Which provider's shape a response has."""

from collections.abc import Callable

from producers.extract import anthropic, gemini, openai
from producers.extract.usage import Usage, read

Reader = Callable[[object], Usage]

_BY_OBJECT: dict[str, Reader] = {
    "chat.completion": openai.from_chat,
    "chat.completion.chunk": openai.from_chat,
    "text_completion": openai.from_chat,
    "response": openai.from_response,
}
_SPEECH = "HttpxBinaryResponseContent"


def usage_of(response: object) -> Usage | None:
    """What a response says was used; None when its shape is not known."""
    reader = _reader(response)
    return None if reader is None else reader(response)


def _reader(response: object) -> Reader | None:
    named = read(response, "object")
    if isinstance(named, str) and named in _BY_OBJECT:
        return _BY_OBJECT[named]
    if read(response, "type") == "message" and read(response, "role") == "assistant":
        return anthropic.from_message
    if gemini.is_answer(response):
        return gemini.from_answer
    if named == "list" and read(response, "usage", "prompt_tokens") is not None:
        return openai.from_embedding
    if read(response, "created") is not None and isinstance(read(response, "data"), list):
        return openai.from_image
    if isinstance(read(response, "text"), str) and _is_transcription(response):
        return openai.from_transcription
    return openai.from_speech if type(response).__name__ == _SPEECH else None


def _is_transcription(response: object) -> bool:
    by = read(response, "usage", "type")
    return by in ("tokens", "duration") or read(response, "duration") is not None
