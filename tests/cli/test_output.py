"""What reaches a terminal of what others wrote."""

import pytest

from pipeline.cli.output import print_table, printable


def test_a_terminal_obeys_no_id(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"scope": "port:\x1b]0;mine\x07\n\x9b2J", "used": 3}], ("scope", "used"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "port:\ufffd]0;mine\ufffd\ufffd\ufffd2J     3"
    assert len(lines) == 2


def test_other_text_stays() -> None:
    assert printable("port:[bold]ß 港\N{ANCHOR}") == "port:[bold]ß 港\N{ANCHOR}"
