"""Commands as a user runs them: a process, an environment, a folder of their own."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str


Command = Callable[..., Ended]


def environment(**settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TALLYPORT_")}
    given = {f"TALLYPORT_{name}": value for name, value in settings.items()}
    return {**kept, "PYTHONPATH": str(ROOT), **given}


@pytest.fixture
def tallyport(tmp_path: Path) -> Command:
    """Runs a command to its end: ``tallyport("check", API_PORT="1")``."""

    def call(*arguments: str, stdin: str = "", **settings: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=tmp_path,
            env=environment(**settings),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return call
