"""The OpenAPI document: complete, and what schemathesis finds when it takes the API at its word."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import Route

from pipeline.settings import Settings
from pipeline.web.api import Api
from pipeline.web.openapi import document
from tests.stream.conftest import empty_ledger_url
from tests.web.api_process import ApiProcess

__all__ = ["empty_ledger_url"]  # the fixture of a ledger without rows

TIMEOUT_S = 300
OPEN = (
    "/health/live", "/health/ready", "/health/pipeline", "/metrics", "/openapi.json", "/",
    "/page/{name}",
)  # fmt: skip


async def test_every_route_is_in_the_document_and_the_other_way_round(tmp_path: Path) -> None:
    api = Api(Settings(data_dir=tmp_path, kafka_bootstrap="127.0.0.1:1"), None)
    served = {
        (route.path.replace(":path", ""), method)
        for route in api.app.routes
        if isinstance(route, Route) and route.path not in OPEN
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {
        (path, name.upper())
        for path, operations in document()["paths"].items()
        for name in operations
        if name != "parameters"
    }
    assert served == told


@pytest.fixture(scope="module")
def api(
    kafka: str, empty_ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """An API with a ledger behind it."""
    folder = tmp_path_factory.mktemp("api")
    settings = {"TALLYPORT_CLICKHOUSE_URL": empty_ledger_url}
    process = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", folder, settings)
    with process.running():
        yield process


# The report answers 503 while no secret is set, the stream does not end.
LEFT_OUT = "^/v1/(state/stream|reports/weekly)"
# Each answer of these waits for a server behind the API, or starts a process: fewer tell enough.
WAITING = "^/v1/(usage|rejected|names|reprices|replays)"


@pytest.mark.parametrize(
    ("paths", "examples"),
    [(f"--exclude-path-regex={WAITING}|{LEFT_OUT}", 25),
     (f"--include-path-regex={WAITING}", 4)],
    ids=["own", "waiting"],
)  # fmt: skip
def test_the_api_does_what_the_document_says(api: ApiProcess, paths: str, examples: int) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            "run",
            f"{api.url}/openapi.json",
            paths,
            "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance",
            "--phases=examples,fuzzing",
            f"--max-examples={examples}",
            "--seed=1",  # the same requests each time, whoever runs it
            "--request-timeout=20",
            "--no-color",
        ],
        cwd=api.folder,  # where it leaves its notes
        env={**os.environ, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
