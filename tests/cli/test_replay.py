"""``replay-rejected`` before it reaches a server: what it is asked must make sense."""

import click
import pytest

from pipeline.cli.replay import Offsets
from tests.cli.conftest import Command


@pytest.mark.parametrize(
    ("text", "offsets"),
    [("10-20", (10, 20)), ("10-", (10, None)), ("-20", (0, 20)), ("7", (7, 7)), ("7-7", (7, 7))],
)
def test_a_range_of_offsets(text: str, offsets: tuple[int, int | None]) -> None:
    assert Offsets().convert(text, None, None) == offsets


@pytest.mark.parametrize("text", ["", "-", "x", "1-x", "9-3", "1-2-3", "-1-2", "+1"])
def test_what_is_no_range(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Offsets().convert(text, None, None)


def test_options_that_cannot_be_meant(tallyport: Command) -> None:
    for arguments in (
        ("--reason", "no-such-reason"),
        ("--from", "2026-01-02", "--to", "2026-01-01"),
        ("--offset", "9-3"),
    ):
        ended = tallyport("replay-rejected", *arguments, KAFKA_BOOTSTRAP="127.0.0.1:1")
        assert ended.status == 2
        assert ended.err.count("\n") == 1
