"""Stands in for a provider: streams words, and says in its last event what they cost."""

import itertools
from collections.abc import AsyncIterator
from typing import Any

_numbers = itertools.count()


async def answer(question: str) -> AsyncIterator[dict[str, Any]]:
    """Events as those of OpenAI's Responses API; every answer uses 100 tokens."""
    response = {"object": "response", "id": f"resp_{next(_numbers)}", "model": "gpt-5"}
    yield {"type": "response.created", "response": response}
    for word in ("You", " asked: ", question):
        yield {"type": "response.output_text.delta", "delta": word}
    usage = {"input_tokens": 40, "output_tokens": 60}
    yield {"type": "response.completed", "response": {**response, "usage": usage}}
