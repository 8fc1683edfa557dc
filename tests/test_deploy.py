"""The container files, as far as they can be judged without an engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli.root import root
from pipeline.settings import PREFIX, known_names, load_settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
OURS = {name: s for name, s in COMPOSE["services"].items() if "build" in s}


@pytest.mark.parametrize("name", sorted(OURS))
def test_settings_of_each_service_are_known_and_valid(name: str) -> None:
    environment = {key: str(value) for key, value in OURS[name]["environment"].items()}
    assert {key for key in environment if key.startswith(PREFIX)} <= known_names()
    filled = {
        key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in environment.items()
    }
    settings = load_settings(filled)
    assert settings.kafka_bootstrap == "kafka:9092"
    assert settings.replication_factor == 1


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_service_runs_a_command(name: str) -> None:
    command = OURS[name].get("command")
    assert command is None or command[0] in root.list_commands(None)  # pyright: ignore


def test_services_depend_on_services_and_use_volumes_that_exist() -> None:
    for name, service in COMPOSE["services"].items():
        for other in service.get("depends_on", {}):
            assert other in COMPOSE["services"], name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists()
            else:
                assert source in COMPOSE["volumes"]


def test_keys_are_made_where_the_api_reads_them_and_as_its_user() -> None:
    file = Path(OURS["api"]["environment"]["TALLYPORT_API_KEYS_FILE"])
    assert OURS["cli"]["environment"]["TALLYPORT_API_KEYS_FILE"] == str(file)
    # The folder is mounted, as each change of the keys replaces the file.
    assert f"api-keys:{file.parent}:ro" in OURS["api"]["volumes"]
    assert f"api-keys:{file.parent}" in OURS["cli"]["volumes"]
    assert not any("user" in service for service in OURS.values())
    dockerfile = (ROOT / "deploy/Dockerfile").read_text("utf-8")
    before, _, after = dockerfile.rpartition("\nUSER ")
    owner = after.split()[0]
    assert f"install -d -o {owner} -m 700 {file.parent}" in before
    assert f"install -o {owner} -m 600 /dev/null {file}" in before


def test_services_reach_each_other_where_they_listen() -> None:
    worker = OURS["worker"]["environment"]
    url = worker["TALLYPORT_CLICKHOUSE_URL"]
    clickhouse = COMPOSE["services"]["clickhouse"]["environment"]
    assert f"@{'clickhouse'}:8123/{clickhouse['CLICKHOUSE_DB']}" in url
    assert f"//{clickhouse['CLICKHOUSE_USER']}:{clickhouse['CLICKHOUSE_PASSWORD']}@" in url
    listeners = COMPOSE["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"PLAINTEXT://{worker['TALLYPORT_KAFKA_BOOTSTRAP']}" in listeners
    for name in ("worker", "sink"):
        port = OURS[name]["environment"]["TALLYPORT_HEALTH_PORT"]
        assert f":{port}/health/" in OURS[name]["healthcheck"]["test"][-1]


def test_the_compose_kafka_is_the_embedded_version() -> None:
    from pipeline.ops.kafka_jars import KAFKA_VERSION

    assert COMPOSE["services"]["kafka"]["image"].endswith(f":{KAFKA_VERSION}")


@pytest.mark.parametrize(
    ("name", "least"), [("requirements.lock", 50), ("requirements-peers.lock", 30)]
)
def test_a_lock_file_pins_everything_and_names_no_index(name: str, least: int) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "://" not in text
    entries = re.split(r"\n(?=\S)", text.strip())
    assert len(entries) > least
    for entry in entries:
        assert re.match(r"[\w.\[\]-]+==[\w.!+]+( ; .*)? \\\n", entry), entry[:80]
        assert "--hash=sha256:" in entry
    assert "--index-url" not in text


def test_the_lock_file_covers_the_declared_dependencies() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    declared = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["all"],
        *project["project"]["optional-dependencies"]["kafka"],
        *project["dependency-groups"]["dev"],
    ]
    locked = set(
        re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==", (ROOT / "requirements.lock").read_text(), re.M)
    )
    names = {re.split(r"[\[<>=~! ]", name)[0].lower() for name in declared} - {"tallyport"}
    assert names <= {name.lower() for name in locked}
    peers = (ROOT / "requirements-peers.lock").read_text("utf-8").splitlines()
    for pinned in project["dependency-groups"]["peers"]:
        assert f"{pinned} \\" in peers


def test_the_image_copies_what_the_build_context_lets_through() -> None:
    allowed = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = re.findall(r"^COPY (?!--)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.M)
    for sources in copied:
        for source in sources.split():
            assert source in allowed
            assert (ROOT / source).exists()
