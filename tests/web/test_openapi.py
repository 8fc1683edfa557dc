"""The OpenAPI document: complete, and what schemathesis finds when it takes the API at its word."""

import os
import subprocess
import sys
from pathlib import Path

from starlette.routing import Route

from pipeline.settings import Settings
from pipeline.web.api import Api
from pipeline.web.openapi import document
from tests.web.api_process import ApiProcess

SECONDS = 60
OPEN = ("/health/live", "/health/ready", "/health/pipeline", "/metrics", "/openapi.json")


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


def test_the_api_does_what_the_document_says(api: ApiProcess) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("st")),
            "run",
            f"{api.url}/openapi.json",
            "--exclude-path=/v1/state/stream",
            "--exclude-path=/v1/reports/weekly",  # 503 while no secret is set
            "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
            "response_schema_conformance",
            "--phases=examples,fuzzing",
            "--max-examples=25",
            "--request-timeout=20",
            "--no-color",
        ],
        cwd=api.folder,  # where it leaves its notes
        env={**os.environ, "NO_PROXY": "*"},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
