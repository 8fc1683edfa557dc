"""``endpoints.json``: parts of several processes side by side, and what is left of dead ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.endpoints import Endpoints, read_endpoints, remove_endpoints, write_endpoints


def _ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_parts_of_several_processes_are_kept_apart(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert read_endpoints(folder) == Endpoints()
    write_endpoints(folder, kafka="127.0.0.1:9092")
    write_endpoints(
        folder, clickhouse_url="http://127.0.0.1:8123", sink_password="s", pid=os.getppid()
    )
    assert read_endpoints(folder) == Endpoints(
        kafka="127.0.0.1:9092", clickhouse_url="http://127.0.0.1:8123", sink_password="s"
    )
    assert (folder / "endpoints.json").stat().st_mode & 0o777 == 0o600

    remove_endpoints(folder)
    assert read_endpoints(folder).kafka is None
    assert read_endpoints(folder).clickhouse_url == "http://127.0.0.1:8123"
    remove_endpoints(folder, pid=os.getppid())
    assert not (folder / "endpoints.json").exists()


def test_what_a_dead_process_left_is_stale_and_dropped_by_the_next_one(tmp_path: Path) -> None:
    write_endpoints(tmp_path, api_url="http://127.0.0.1:8080", pid=_ended_pid())
    assert read_endpoints(tmp_path) == Endpoints(stale=("api",))
    write_endpoints(tmp_path, kafka="127.0.0.1:9092")
    assert list(json.loads((tmp_path / "endpoints.json").read_text())) == ["kafka"]


@pytest.mark.parametrize("text", ["", "[]", '{"kafka": {}}', '{"kafka": 1}', "not json"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "endpoints.json").write_text(text)
    with pytest.raises(ConfigurationError, match="damaged"):
        read_endpoints(tmp_path)


def test_the_password_does_not_show(tmp_path: Path) -> None:
    write_endpoints(tmp_path, clickhouse_url="http://127.0.0.1:8123", sink_password="hidden")
    assert "hidden" not in repr(read_endpoints(tmp_path))
