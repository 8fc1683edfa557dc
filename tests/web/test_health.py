import re
import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import PlainTextResponse

from pipeline import metrics
from pipeline.core.errors import ConfigurationError
from pipeline.core.rejections import REASONS
from pipeline.ops.loopback_ports import free_port
from pipeline.web.health import serve_health
from pipeline.web.loopback import LoopbackOnly, is_loopback


@pytest.fixture
def problems() -> list[str]:
    return []


@pytest.fixture
def mortal() -> list[str]:
    return []


@pytest.fixture
def client(problems: list[str], mortal: list[str]) -> Iterator[httpx.Client]:
    server = serve_health(0, "sink", lambda: problems, lambda: mortal)
    port = server.address.rpartition(":")[2]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as found:
            yield found
    finally:
        server.close()


def test_a_part_without_problems_is_ready(client: httpx.Client) -> None:
    for name in ("live", "ready", "pipeline"):
        answer = client.get(f"/health/{name}")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_problems_are_told_with_503_while_the_part_lives(
    client: httpx.Client, problems: list[str]
) -> None:
    problems.append("Kafka does not answer")
    answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json()["problems"] == ["Kafka does not answer"]
    assert client.get("/health/live").status_code == 200


def test_what_a_restart_would_cure_is_told_to_whoever_restarts(
    client: httpx.Client, mortal: list[str]
) -> None:
    mortal.append("its event loop does not answer")
    answer = client.get("/health/live")
    assert (answer.status_code, answer.json()["problems"]) == (503, mortal)


def test_metrics_are_prometheus_text(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "tallyport_sink_rows_total " in answer.text


@pytest.mark.parametrize("part", ["worker", "sink", "api"])
def test_a_part_shows_only_what_it_counts_itself(part: metrics.Part) -> None:
    shown = set(re.findall(r"^# TYPE (\w+?)(?:_total)? ", metrics.render(part).decode(), re.M))
    assert shown == {name for name, owners in metrics.OWNERS.items() if part in owners}
    assert shown


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigurationError, match=f"TALLYPORT_HEALTH_PORT: port {port} .* in use"
        ):
            serve_health(port, "sink")


def test_the_port_is_free_again_after_close() -> None:
    port = free_port()
    for _ in range(2):
        serve_health(port, "sink").close()


def test_every_reason_of_rejection_shows_from_the_start() -> None:
    text = metrics.render("worker").decode()
    for reason in REASONS:
        assert f'tallyport_events_rejected_total{{reason="{reason}"}}' in text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("LOCALHOST", True),
        ("localhost.evil.example", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("", False),
    ],
)
def test_what_counts_as_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("base", "origin", "status"),
    [
        ("http://localhost:8080", "http://localhost:8080", 200),
        ("https://localhost:8080", "https://localhost:8080", 200),
        ("https://localhost:8080", "http://localhost:8080", 403),
        ("http://localhost:8080", "http://localhost:8081", 403),
    ],
)
async def test_a_page_of_ours_has_our_own_scheme(base: str, origin: str, status: int) -> None:
    transport = httpx.ASGITransport(LoopbackOnly(PlainTextResponse("ours")))
    async with httpx.AsyncClient(transport=transport, base_url=base) as client:
        assert (await client.get("/", headers={"Origin": origin})).status_code == status
