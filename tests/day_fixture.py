"""A day (UTC) that goes on for as long as a test runs which compares something with today."""

import time

import pytest

DAY_S = 86_400
NEEDED_S = 180.0
"""As long as such a test may take; with a wait for the next day it stays within pytest's limit."""


def within_one_day(needed_s: float = NEEDED_S) -> None:
    """Returns once the day has ``needed_s`` left: at once, or after midnight."""
    left_s = DAY_S - time.time() % DAY_S
    if left_s < needed_s:
        time.sleep(left_s + 1)


@pytest.fixture
def one_day() -> None:
    """The test ends on the day it begins on."""
    within_one_day()
