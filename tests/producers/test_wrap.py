"""Wrapped clients: the real packages against a local server that speaks like the providers."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pipeline.web.server import BackgroundServer, bind
from producers import BudgetExceeded
from producers.testing import FakeMeter

CHAT_USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
USAGE = {
    "input_tokens": 7,
    "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 10,
}
MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-of-tests",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 25, "cache_read_input_tokens": 5, "output_tokens": 1},
}


def sse(*events: dict[str, Any], named: bool = False, done: bool = False) -> Response:
    lines = [
        (f"event: {event['type']}\n" if named else "") + f"data: {json.dumps(event)}\n\n"
        for event in events
    ]
    if done:
        lines.append("data: [DONE]\n\n")
    return Response("".join(lines), media_type="text/event-stream")


async def chat(request: Request) -> Response:
    body = await request.json()
    if body["model"] == "broken":
        return JSONResponse({"error": {"message": "no"}}, 400)
    common = {"id": "c1", "created": 1, "model": "gpt-5-2025"}
    if not body.get("stream"):
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant"}}
        return JSONResponse(
            {**common, "object": "chat.completion", "choices": [choice], "usage": CHAT_USAGE}
        )
    chunk = {**common, "object": "chat.completion.chunk"}
    words = [{"index": 0, "delta": {"content": word}} for word in ("a", "b")]
    chunks = [{**chunk, "choices": [word], "usage": None} for word in words]
    if (body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**chunk, "choices": [], "usage": CHAT_USAGE})
    return sse(*chunks, done=True)


async def responses(request: Request) -> Response:
    body = await request.json()
    common = {"id": "r1", "object": "response", "created_at": 1, "model": "gpt-5", "output": []}
    whole = {**common, "status": "completed", "usage": USAGE}
    if not body.get("stream"):
        return JSONResponse(whole)
    return sse(
        {"type": "response.created", "sequence_number": 0, "response": {**common, "usage": None}},
        {"type": "response.completed", "sequence_number": 1, "response": whole},
        named=True,
    )


async def embeddings(_: Request) -> Response:
    return JSONResponse(
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
            "usage": {"prompt_tokens": 8, "total_tokens": 8},
        }
    )


async def transcriptions(_: Request) -> Response:
    return JSONResponse({"text": "hi", "usage": {"type": "duration", "seconds": 12}})


async def speech(_: Request) -> Response:
    return Response(b"sound", media_type="audio/mpeg")


async def messages(request: Request) -> Response:
    body = await request.json()
    if not body.get("stream"):
        return JSONResponse({**MESSAGE, "stop_reason": "end_turn"})
    return sse(
        {"type": "message_start", "message": MESSAGE},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"},
         "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
        named=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def provider_url() -> Iterator[str]:
    paths = {
        "/v1/chat/completions": chat,
        "/v1/responses": responses,
        "/v1/embeddings": embeddings,
        "/v1/audio/transcriptions": transcriptions,
        "/v1/audio/speech": speech,
        "/v1/messages": messages,
    }
    routes = [Route(path, handler, methods=["POST"]) for path, handler in paths.items()]
    server = BackgroundServer(Starlette(routes=routes), bind("127.0.0.1", 0, "provider"))
    yield f"http://{server.address}"
    server.close()


@pytest.fixture
def meter() -> Iterator[FakeMeter]:
    with FakeMeter() as made:
        yield made


@pytest.fixture
def client(meter: FakeMeter, provider_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="k", base_url=f"{provider_url}/v1", max_retries=0) as plain:
        yield meter.wrap(plain, port_id="a", feature="chat")


def last(meter: FakeMeter) -> dict[str, Any]:
    event = meter.events[-1]
    assert event["port_id"] == "a"
    return event


def counts(event: dict[str, Any]) -> tuple[str, str, int, int]:
    tokens = event.get("input_tokens", 0), event.get("output_tokens", 0)
    return event["provider"], event["model"], *tokens


ASK: dict[str, Any] = {"model": "gpt-5", "messages": [{"role": "user", "content": "x"}]}


class TestOpenAI:
    def test_whole_answers(self, meter: FakeMeter, client: openai.OpenAI) -> None:
        assert isinstance(client, openai.OpenAI)
        assert client.chat.completions.create(**ASK).id == "c1"
        assert counts(last(meter)) == ("openai", "gpt-5-2025", 9, 4)
        client.responses.create(model="gpt-5", input="x")
        assert counts(last(meter)) == ("openai", "gpt-5", 7, 3)
        assert last(meter)["cached_input_tokens"] == 2
        client.embeddings.create(model="text-embedding-3-small", input="x")
        assert last(meter)["kind"] == "embedding"
        client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"sound"))
        assert (last(meter)["audio_seconds"], last(meter)["model"]) == (12, "whisper-1")
        client.audio.speech.create(model="tts-1", voice="alloy", input="hello")
        assert (last(meter)["characters"], last(meter)["kind"]) == (5, "tts")
        assert meter.stats.estimated == 0

    def test_streams(self, meter: FakeMeter, client: openai.OpenAI) -> None:
        words = [
            c.choices[0].delta.content for c in client.chat.completions.create(**ASK, stream=True)
        ]
        assert words == ["a", "b"]  # the chunk that was asked for on the side stays hidden
        assert counts(last(meter)) == ("openai", "gpt-5-2025", 9, 4)
        options = {"include_usage": True}
        chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options=options))
        assert chunks[-1].choices == []
        with client.responses.create(model="gpt-5", input="x", stream=True) as stream:
            assert [event.type for event in stream] == ["response.created", "response.completed"]
        assert counts(last(meter)) == ("openai", "gpt-5", 7, 3)
        assert meter.stats.estimated == 0

    def test_a_stream_that_is_left_early_is_estimated(
        self, meter: FakeMeter, client: openai.OpenAI
    ) -> None:
        stream = client.chat.completions.create(**ASK, stream=True, max_completion_tokens=50)
        next(iter(stream))
        stream.close()
        assert (last(meter)["estimated"], last(meter)["output_tokens"]) == (True, 50)

    def test_a_budget_stops_the_request(self, meter: FakeMeter, client: openai.OpenAI) -> None:
        meter.set_budget("port:a", hard_cap=40)
        with pytest.raises(BudgetExceeded):
            client.chat.completions.create(**ASK, max_completion_tokens=41)
        with pytest.raises(BudgetExceeded):
            client.with_options(timeout=5).chat.completions.create(**ASK, max_tokens=41)
        assert meter.events == []

    def test_an_error_of_the_provider_releases(
        self, meter: FakeMeter, client: openai.OpenAI
    ) -> None:
        meter.set_budget("port:a", hard_cap=40)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**{**ASK, "model": "broken"}, max_tokens=40)
        assert meter.check(port_id="a", estimated_tokens=40).allowed
        assert meter.events == []

    def test_raw_responses(self, meter: FakeMeter, client: openai.OpenAI) -> None:
        raw = client.chat.completions.with_raw_response.create(**ASK)
        assert raw.parse().id == "c1"
        assert counts(last(meter)) == ("openai", "gpt-5-2025", 9, 4)

    async def test_asyncio(self, meter: FakeMeter, provider_url: str) -> None:
        plain = openai.AsyncOpenAI(api_key="k", base_url=f"{provider_url}/v1", max_retries=0)
        async with plain:
            client = meter.wrap(plain, port_id="a")
            await client.responses.create(model="gpt-5", input="x")
            assert counts(last(meter)) == ("openai", "gpt-5", 7, 3)
            stream = await client.chat.completions.create(**ASK, stream=True)
            assert len([chunk async for chunk in stream]) == 2
            assert counts(last(meter)) == ("openai", "gpt-5-2025", 9, 4)


ASK_CLAUDE: dict[str, Any] = {**ASK, "model": "claude-of-tests", "max_tokens": 50}


class TestAnthropic:
    @pytest.fixture
    def client(self, meter: FakeMeter, provider_url: str) -> Iterator[anthropic.Anthropic]:
        with anthropic.Anthropic(api_key="k", base_url=provider_url, max_retries=0) as plain:
            yield meter.wrap(plain, port_id="a")

    def test_messages(self, meter: FakeMeter, client: anthropic.Anthropic) -> None:
        client.messages.create(**ASK_CLAUDE)
        assert counts(last(meter)) == ("anthropic", "claude-of-tests", 30, 1)
        list(client.messages.create(**ASK_CLAUDE, stream=True))
        assert meter.stats.recorded == 2
        with client.messages.stream(**ASK_CLAUDE) as stream:
            stream.until_done()
        assert (meter.stats.recorded, meter.stats.estimated) == (3, 0)
        with client.messages.stream(**ASK_CLAUDE) as stream:
            next(iter(stream))
        assert (meter.stats.recorded, meter.stats.estimated) == (4, 1)

    def test_a_budget_stops_the_stream(self, meter: FakeMeter, client: anthropic.Anthropic) -> None:
        meter.set_budget("port:a", hard_cap=49)
        with pytest.raises(BudgetExceeded), client.messages.stream(**ASK_CLAUDE):
            pass

    async def test_asyncio(self, meter: FakeMeter, provider_url: str) -> None:
        plain = anthropic.AsyncAnthropic(api_key="k", base_url=provider_url, max_retries=0)
        async with plain:
            client = meter.wrap(plain, port_id="a")
            async with client.messages.stream(**ASK_CLAUDE) as stream:
                await stream.until_done()
            assert counts(last(meter)) == ("anthropic", "claude-of-tests", 30, 15)


def test_any_other_client_is_refused(meter: FakeMeter) -> None:
    with pytest.raises(TypeError, match="openai or anthropic"):
        meter.wrap(object())
