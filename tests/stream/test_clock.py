"""What the worker takes the broker's clock for."""

import time

import pytest

from pipeline.stream.clock import BrokerClock

DAY_MS = 86_400_000


def test_it_follows_what_the_broker_says() -> None:
    clock = BrokerClock()
    clock.observe(1_000_000)
    assert 1_000_000 <= clock.now_ms() < 1_000_000 + DAY_MS


@pytest.mark.parametrize("steps", [1, 3])
def test_what_was_before_a_step_forward_is_not_of_the_time_after(steps: int) -> None:
    clock = BrokerClock()
    clock.observe(1_000_000)
    at_s = time.monotonic()
    before_ms = clock.at_ms(at_s)
    for number in range(1, steps + 1):
        clock.observe(1_000_000 + number * DAY_MS)
    assert clock.at_ms(at_s) == before_ms
    assert clock.at_ms(time.monotonic()) >= 1_000_000 + steps * DAY_MS


def test_after_a_step_back_it_claims_no_more_than_the_clock_says() -> None:
    clock = BrokerClock()
    clock.observe(DAY_MS)
    at_s = time.monotonic()
    clock.observe(1_000)
    assert clock.at_ms(at_s) <= 1_000
