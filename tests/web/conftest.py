"""One API process without keys for all tests of a module."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web.api_process import ApiProcess


@pytest.fixture(scope="module")
def api(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    folder: Path = tmp_path_factory.mktemp("api")
    process = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", folder)
    with process.running():
        yield process
