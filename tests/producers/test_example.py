"""The example runs, streams, and is capped while it runs."""

from collections.abc import Iterator

import httpx
import pytest

from examples import streaming_service
from producers.testing import FakeMeter


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMeter]:
    with FakeMeter() as made:
        monkeypatch.setattr(streaming_service, "meter", made)
        yield made


async def test_the_service_streams_until_its_budget_is_used(meter: FakeMeter) -> None:
    meter.set_budget("port:harbor-7", hard_cap=1_000)
    transport = httpx.ASGITransport(streaming_service.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        answers: list[httpx.Response] = []
        for _ in range(12):
            answers.append(await client.get("/ask/harbor-7?question=why"))
            assert meter.flush(60)  # until then what was sent may count twice
        assert [answer.status_code for answer in answers] == [200] * 10 + [402] * 2
        assert answers[0].text == "You asked: why"
        assert answers[-1].json() == {"error": "hard-cap-exceeded"}
        assert (await client.get("/ask/other?question=why")).status_code == 200
    events = [event for event in meter.events if event["port_id"] == "harbor-7"]
    assert sum(event["input_tokens"] + event["output_tokens"] for event in events) == 1_000
