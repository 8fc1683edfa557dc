"""`pip install tallyport` alone: the wheel and its dependency in an environment of their own."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from pipeline.native import build
from tests.producers.api_stand_in import KEY, ApiStandIn
from tests.producers.states import beat, record, state

ROOT = Path(__file__).parent.parent
DEPENDENCIES = {"msgspec"}
OURS = {"pipeline", "producers"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment's folder of programs."""
    home = tmp_path_factory.mktemp("plain")
    venv.create(home, symlinks=True)
    programs = home / "bin"
    command = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install"]
    offline = ["--no-index", "--no-deps", "--quiet", "--disable-pip-version-check", str(wheel)]
    subprocess.run([*command, *offline], check=True, capture_output=True, timeout=120)
    [packages] = home.glob("lib/*/site-packages")
    for name in DEPENDENCIES:
        shutil.copytree(Path(sysconfig.get_path("platlib")) / name, packages / name)
    return programs


def run(
    folder: Path, *command: str, environ: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    outside = {n: text for n, text in os.environ.items() if n != "PYTHONPATH"}
    return subprocess.run(
        [str(folder / command[0]), *command[1:]],
        cwd=folder,
        env={**outside, **(environ or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_it_needs_little_and_has_the_extras_of_the_contract(wheel: Path) -> None:
    found = metadata(wheel)
    required = found.get_all("Requires-Dist", [])
    plain = {line.split(">")[0] for line in required if "extra ==" not in line}
    assert plain == DEPENDENCIES
    assert found.get_all("Provides-Extra") == ["all", "kafka"]
    of = {
        extra: {line.split(";")[0] for line in required if line.endswith(f"extra == '{extra}'")}
        for extra in ("kafka", "all")
    }
    [kafka] = of["kafka"]
    assert kafka.startswith("confluent-kafka")
    assert of["kafka"] < of["all"]
    assert found["Requires-Python"] == ">=3.11"


def test_everything_that_belongs_to_it_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    here = {
        path.relative_to(ROOT).as_posix()
        for top in OURS
        for path in (ROOT / top).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == here
    own = {".py", ".json", ".sql", ".sha256", ".c"}
    if build.LIBRARY.exists():
        own.add(build.LIBRARY.suffix)
    page = {".html", ".css", ".js", ".svg"}
    assert {Path(name).suffix for name in packed} == own | page


def test_a_meter_imports_the_standard_library_and_its_dependency_alone(folder: Path) -> None:
    code = (
        "import json, sys; before = set(sys.modules)\n"
        "from producers import Meter, BudgetExceeded; import producers.transports.http\n"
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before})))"
    )
    done = run(folder, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout)) - sys.stdlib_module_names
    assert imported == {*OURS, *DEPENDENCIES}
    fakes = run(folder, "python", "-c", "from producers.testing import FakeMeter; FakeMeter()")
    assert (fakes.returncode, fakes.stderr) == (0, "")


def test_it_asks_and_reports_over_http(folder: Path, tmp_path: Path) -> None:
    api = ApiStandIn()
    api.start()
    try:
        api.put_state(0, *record(state("port:full", used=10, hard=10), 1))
        for partition in range(2):
            api.put_state(partition, *beat(partition))
        environ = {
            "TALLYPORT_API_URL": api.url,
            "TALLYPORT_API_KEY": KEY,
            "TALLYPORT_SPOOL_DIR": str(tmp_path),
        }
        code = (
            "from producers import Meter\nmeter = Meter.from_env()\nassert meter.wait_ready(20)\n"
            "assert meter.check(port_id='full').reason == 'hard-cap-exceeded'\n"
            "with meter.guard(port_id='p', provider='acme', model='m', estimated_tokens=5) as call:"
            "\n    call.record(input_tokens=3)\n"
            "assert meter.flush(20), meter.stats\n"
            "print(meter.stats.sent)\n"
        )
        done = run(folder, "python", "-c", code, environ=environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
        assert [event["input_tokens"] for event in api.events] == [3]
    finally:
        api.stop()


def test_to_kafka_it_names_the_extra_and_is_off(folder: Path) -> None:
    code = (
        "from producers import Meter; meter = Meter.from_env()\n"
        "assert meter.check(port_id='p').freshness == 'OFF'; meter.record(port_id='p')\n"
    )
    environ = {"TALLYPORT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}
    done = run(folder, "python", "-c", code, environ=environ)
    assert done.returncode == 0, done.stderr
    assert "tallyport[kafka]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["up", "emit", "check", "--help"])
def test_a_command_names_the_extra(folder: Path, command: str) -> None:
    done = run(folder, "tallyport", command)
    assert done.returncode == 2
    assert "tallyport[all]" in done.stderr
    assert len(done.stderr.splitlines()) == 1
