"""A service that streams answers and stops in time: `uvicorn examples.streaming_service:app`."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response, StreamingResponse

from examples.fake_provider import answer
from producers import Meter

app = FastAPI()
meter = Meter.from_env()


@app.get("/ask/{port_id}")
async def ask(port_id: str, question: str) -> Response:
    call = meter.begin(
        port_id=port_id, provider="openai", model="gpt-5", feature="chat", estimated_tokens=100
    )
    if not call.verdict.allowed:
        return JSONResponse({"error": call.verdict.reason}, status_code=402)
    chunks = call.stream(answer(question))
    return StreamingResponse(chunk["delta"] async for chunk in chunks if "delta" in chunk)
