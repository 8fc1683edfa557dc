"""Who may ask for the weekly report and see what was sent; what happens then is in tests/e2e."""

import httpx
import pytest
from starlette.applications import Starlette

from pipeline.settings import load_settings
from pipeline.web.gate import Gate
from pipeline.web.problems import Problem, handle_error
from pipeline.web.reports import ReportEndpoints
from tests.web.api_process import ApiProcess

MAIL = {
    "TALLYPORT_SMTP_URL": "smtp://localhost",
    "TALLYPORT_MAIL_FROM": "t@x.y",
    "TALLYPORT_MAIL_TO": "a@b.c",
}
SECRET = {"TALLYPORT_CRON_SECRET": "right"}
NOWHERE = {"bootstrap_servers": "127.0.0.1:1"}


async def asked(
    settings: dict[str, str], path: str = "/v1/reports/weekly", **headers: str
) -> httpx.Response:
    endpoints = ReportEndpoints(load_settings(settings), NOWHERE, "tallyport.notices")
    app = Starlette(routes=endpoints.routes(Gate(None)), exception_handlers={Problem: handle_error})
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
        return await client.post(path, headers=headers)


async def test_without_a_secret_nobody_may() -> None:
    answer = await asked(MAIL, **{"X-Cron-Secret": ""})
    assert answer.status_code == 503
    assert "TALLYPORT_CRON_SECRET" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("given", ["", "wrong", "Right", "righ", "rightright"])
async def test_a_wrong_secret(given: str) -> None:
    in_header = await asked(SECRET | MAIL, **{"X-Cron-Secret": given})
    in_query = await asked(SECRET | MAIL, f"/v1/reports/weekly?secret={given}")
    both = await asked(SECRET | MAIL, "/v1/reports/weekly?secret=right", **{"X-Cron-Secret": given})
    assert [one.status_code for one in (in_header, in_query, both)] == [401] * 3


@pytest.mark.parametrize("missing", sorted(MAIL))
async def test_without_mail_there_is_nothing_to_send(missing: str) -> None:
    some = {name: value for name, value in MAIL.items() if name != missing}
    answer = await asked(SECRET | some, **{"X-Cron-Secret": "right"})
    assert answer.status_code == 503
    assert missing in answer.json()["detail"]


def test_what_was_sent(api: ApiProcess) -> None:
    with api.http() as client:
        assert client.post("/v1/reports/weekly").status_code == 503
        assert client.get("/v1/reports/weekly").status_code == 405
        counts = {"pending": 0, "sent": 0, "dead": 0}
        assert client.get("/v1/notices").json() == {"notices": [], "deliveries": counts}
        assert client.get("/v1/notices?status=lost").status_code == 400
        assert client.get("/v1/notices?limit=0").status_code == 400
