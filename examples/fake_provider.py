"""Stands in for a provider: answers, whole or word by word, and says what that has used."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

_numbers = itertools.count()


async def complete(text: str) -> dict[str, Any]:
    """A response as that of OpenAI's Responses API; every one uses 100 tokens."""
    usage = {"input_tokens": 40, "output_tokens": 60}
    response = {"object": "response", "id": f"resp_{next(_numbers)}", "model": "gpt-5"}
    return {**response, "output_text": text[:20], "usage": usage}


async def answer(question: str) -> AsyncIterator[dict[str, Any]]:
    """Events as those of OpenAI's Responses API; every answer uses 100 tokens."""
    response = {"object": "response", "id": f"resp_{next(_numbers)}", "model": "gpt-5"}
    yield {"type": "response.created", "response": response}
    for word in ("You", " asked: ", question):
        yield {"type": "response.output_text.delta", "delta": word}
    usage = {"input_tokens": 40, "output_tokens": 60}
    yield {"type": "response.completed", "response": {**response, "usage": usage}}
