"""Usage of streamed responses: what the chunks say, taken together."""

from typing import Any

from producers.extract import anthropic, gemini, openai
from producers.extract.usage import Usage, read


class StreamUsage:
    """Fed with every chunk of one stream, in order; ``usage`` is what they say so far.

    OpenAI's chat streams name the usage in a last chunk, when asked to; its Responses API in the
    event that ends the response; Anthropic begins with the input and goes on with cumulative
    figures; Gemini's figures are cumulative in every chunk. ``is_complete`` tells whether the
    stream has said all there is.
    """

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.is_complete = False
        self._message: object = None
        self._figures: dict[str, Any] = {}

    def feed(self, chunk: object) -> None:
        """Takes the next chunk: an object of the provider's client or a dict."""
        match read(chunk, "type"):
            case "response.created":
                self.usage = openai.from_response(read(chunk, "response"))
            case "response.completed" | "response.incomplete" | "response.failed":
                self._end(openai.from_response(read(chunk, "response")))
            case "transcript.text.done":
                self._end(openai.from_transcription(chunk))
            case "speech.audio.done":
                self._end(openai.from_speech_event(chunk))
            case "message_start":
                self._message = read(chunk, "message")
                self._cumulate(read(self._message, "usage"))
            case "message_delta":
                self._cumulate(read(chunk, "usage"))
                self.is_complete = True
            case _:
                self._take_untyped(chunk)

    def _take_untyped(self, chunk: object) -> None:
        if read(chunk, "object") in ("chat.completion.chunk", "text_completion"):
            found = openai.from_chat(chunk)
            if self.usage is None or found.is_counted:
                self._end(found)
        elif gemini.is_answer(chunk):
            self._end(gemini.from_answer(chunk))

    def _end(self, found: Usage) -> None:
        self.usage, self.is_complete = found, found.is_counted

    def _cumulate(self, found: object) -> None:
        self._figures = anthropic.cumulated(self._figures, found)
        self.usage = anthropic.from_parts(self._message, self._figures)
