"""``emit`` over HTTP; to Kafka it is in ``test_on_kafka``."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from pipeline.ops.loopback_ports import free_port
from tests.cli.conftest import Command, environment
from tests.producers.api_stand_in import KEY, ApiStandIn


@pytest.fixture
def api() -> Iterator[ApiStandIn]:
    running = ApiStandIn()
    running.start()
    yield running
    running.stop()


def lines(count: int, **changes: object) -> str:
    at = datetime.now(UTC).isoformat()
    fields = {"occurred_at": at, "port_id": "p", "provider": "openai", "model": "gpt-5", **changes}
    return "\n".join(json.dumps({"event_id": f"e{n}", **fields}) for n in range(count))


def test_valid_lines_go_as_they_are_and_in_order(tallyport: Command, api: ApiStandIn) -> None:
    text = f"{lines(2_100)}\n{{\n"
    ended = tallyport("emit", "--json", stdin=text, API_URL=api.url, API_KEY=KEY)
    assert ended.status == 1, ended.err
    report = json.loads(ended.out)
    assert (report["sent"], report["rejected"], report["failed"]) == (2_100, 1, 0)
    assert [(one["line"], one["reason"]) for one in report["rejections"]] == [
        (2_101, "malformed-json")
    ]
    assert [event["event_id"] for event in api.events] == [f"e{n}" for n in range(2_100)]
    assert max(api.batches) <= 1_000


def test_what_the_api_refuses_is_named_by_line(tallyport: Command, api: ApiStandIn) -> None:
    def answer(body: list[Any]) -> Response | None:
        accepted = {"status": "accepted", "partition": 0, "offset": 1}
        refused = {"status": "rejected", "reason": "too-old", "detail": "occurred_at: old"}
        results = [refused if event["event_id"] == "e1" else accepted for event in body]
        return JSONResponse({"results": results}, 207)

    api.answer = answer
    ended = tallyport("emit", stdin=f"\n{lines(3)}", API_URL=api.url, API_KEY=KEY)
    assert (ended.status, ended.out) == (1, "sent 2, rejected 1, failed 0\n")
    assert ended.err == "line 3: too-old: occurred_at: old\n"


def test_an_api_that_comes_back_gets_everything(tallyport: Command, api: ApiStandIn) -> None:
    told = iter([503, 429])

    def answer(_: list[Any]) -> Response | None:
        status = next(told, None)
        return None if status is None else JSONResponse({"detail": "later"}, status)

    api.answer = answer
    ended = tallyport("emit", stdin=lines(5), API_URL=api.url, API_KEY=KEY)
    assert (ended.status, ended.out, ended.err) == (0, "sent 5, rejected 0, failed 0\n", "")


def test_it_says_that_it_tries_again_and_where_it_gives_up(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(lines(1_500))
    url = f"http://127.0.0.1:{free_port()}"
    code = (
        "from pipeline.cli import events; events.GIVE_UP_S = 0.2\n"
        "from pipeline.__main__ import main; main(['emit', 'events'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(API_URL=url),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "sent 0, rejected 0, failed 1000\n")
    told, given_up = ended.stderr.splitlines()
    assert told.startswith(f"tallyport: {url}: ")
    assert told.endswith("refused; trying again for 0.2 s")
    assert given_up.endswith("refused; given up at line 1")


def test_a_key_that_is_not_admitted_fails_at_once(tallyport: Command, api: ApiStandIn) -> None:
    ended = tallyport("emit", stdin=f"{lines(3)}\n", API_URL=api.url, API_KEY="another")
    assert api.refused == 1  # it was not tried again
    assert (ended.status, ended.out) == (1, "sent 0, rejected 0, failed 3\n")
    assert ended.err == (
        "tallyport: the API answers 401 no such key (TALLYPORT_API_KEY); given up at line 1\n"
    )


def test_an_address_that_is_none_is_a_mistake(tallyport: Command) -> None:
    ended = tallyport("emit", API_URL="nowhere")
    assert ended.status == 2
    assert "TALLYPORT_API_URL must be a URL" in ended.err
