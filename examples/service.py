"""A service that stops in time while it runs: `uvicorn examples.service:app`."""

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from examples.fake_provider import complete
from producers import BudgetExceeded, Meter

app = FastAPI()
meter = Meter.from_env()


@app.get("/summary/{port_id}")
async def summary(port_id: str, text: str) -> Response:
    call_for = {"port_id": port_id, "provider": "openai", "model": "gpt-5", "feature": "summary"}
    try:
        async with meter.guard(**call_for, estimated_tokens=100) as call:
            response = await complete(text)
            call.record(response)
    except BudgetExceeded as exceeded:
        return JSONResponse({"error": exceeded.reason}, status_code=402)
    return JSONResponse({"summary": response["output_text"]})
