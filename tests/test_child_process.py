"""A part of a deployment that ends: what is said about it, in one line."""

import sys
from pathlib import Path

import pytest

from pipeline.ops.child_process import ChildProcess


def ended(log_file: Path, code: str) -> ChildProcess:
    child = ChildProcess("part", (sys.executable, "-c", code), log_file)
    try:
        child.process.wait(30)
    finally:
        child.kill()
    return child


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('tallyport: no such topic\\nbye')", "no such topic"),
        ("def f(): raise ValueError('odd')\nf()", "ValueError: odd"),
        ("print('[2026] ERROR Exiting Kafka (kafka.Kafka$)\\n\\tat a.B')", "ERROR Exiting Kafka"),
    ],
)
def test_the_last_error_of_a_log_is_told_in_one_line(tmp_path: Path, code: str, said: str) -> None:
    child = ended(tmp_path / "part.log", code)
    note = child.log_note()
    assert said in note
    assert "\n" not in note
    assert str(child.log_file) in note


def test_the_error_of_an_earlier_run_is_not_told(tmp_path: Path) -> None:
    ended(tmp_path / "part.log", "import sys; sys.exit('tallyport: earlier')")
    child = ended(tmp_path / "part.log", "print('ready part')")
    assert child.log_note() == f"; its log: {child.log_file}"
