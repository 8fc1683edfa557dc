"""The meter as a service uses it, on a deployment in memory."""

import asyncio
import contextvars
import json
import logging
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from random import Random
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from producers import BudgetExceeded, testing
from producers.malformed import MAKERS
from producers.testing import FakeMeter

WAIT_S = 60.0
USE = {"provider": "openai", "model": "gpt-5"}
ANSWER = {
    "object": "response",
    "id": "resp_1",
    "model": "gpt-5",
    "usage": {"input_tokens": 30, "output_tokens": 10},
}


@pytest.fixture
def meter() -> Iterator[FakeMeter]:
    with FakeMeter() as made:
        yield made


class TestGuard:
    def test_it_asks_then_records_what_it_was_given(self, meter: FakeMeter) -> None:
        with meter.guard(port_id="a", user_id="u", feature="ocr", **USE) as call:
            assert call.verdict.allowed
            call.record(ANSWER)
        (event,) = meter.events
        assert event["event_id"] == "resp_1"
        assert (event["port_id"], event["user_id"], event["feature"]) == ("a", "u", "ocr")
        assert (event["input_tokens"], event["output_tokens"]) == (30, 10)
        assert meter.stats.unrecorded == 0

    def test_it_raises_where_a_budget_does_not_allow_it(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=100)
        with (
            pytest.raises(BudgetExceeded, match=r"port:a tokens month, 100 left") as caught,
            meter.guard(port_id="a", estimated_tokens=101),
        ):
            raise AssertionError("entered")
        error = caught.value
        assert (error.reason, error.scope, error.remaining) == (
            "estimated-exceeds-cap",
            "port:a",
            100,
        )
        assert error.resets_at == error.verdict.resets_at

    def test_a_single_process_with_upper_bounds_never_overshoots(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=1_000)
        barrier = threading.Barrier(8)
        refused: list[bool] = []

        def fill() -> None:
            while meter.flush(WAIT_S):
                with meter.guard(port_id="a", estimated_tokens=50, **USE) as call:
                    call.record(input_tokens=50)

        def work(seed: int) -> None:
            rng = Random(seed)
            barrier.wait()
            for _ in range(40):
                try:
                    with meter.guard(port_id="a", estimated_tokens=50, **USE) as call:
                        call.record(input_tokens=rng.randrange(51))
                except BudgetExceeded:
                    refused.append(True)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused
        # Meanwhile what was sent and still held counted twice; now it fits until it does not.
        with pytest.raises(BudgetExceeded):
            fill()
        used = sum(event["input_tokens"] for event in meter.events)
        assert 950 < used <= 1_000

    def test_without_a_record_it_is_released_and_counted(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=100)
        with pytest.raises(ZeroDivisionError), meter.guard(port_id="a", estimated_tokens=100):
            raise ZeroDivisionError
        assert meter.stats.unrecorded == 1
        assert meter.check(port_id="a", estimated_tokens=100).allowed

    async def test_asyncio(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=100)

        async def work() -> None:
            async with meter.guard(port_id="a", estimated_tokens=40, **USE) as call:
                await asyncio.sleep(0.01)
                call.record(input_tokens=40)

        done = await asyncio.gather(*(work() for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(one, BudgetExceeded) for one in done) == 3
        assert len(meter.events) == 2

    def test_begin_without_a_block_from_another_thread(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=100)
        call = meter.begin(port_id="a", estimated_tokens=100, **USE)
        assert call.verdict.allowed
        assert not meter.begin(port_id="a", estimated_tokens=1).verdict.allowed
        thread = threading.Thread(target=lambda: call.record(input_tokens=3))
        thread.start()
        thread.join()
        assert meter.events[0]["input_tokens"] == 3
        other = meter.begin(port_id="a", estimated_tokens=97)
        assert other.verdict.allowed
        other.release()
        assert meter.check(port_id="a", estimated_tokens=97).allowed

    def test_estimates_in_money(self, meter: FakeMeter) -> None:
        meter.set_price("gpt-5", input_tokens="1", output_tokens="10")
        meter.set_budget("user:u", unit="cost", hard_cap="0.01")
        asked: dict[str, Any] = {"user_id": "u", **USE}
        assert meter.check(**asked, estimated_tokens=1_000).allowed
        assert not meter.check(**asked, estimated_tokens=1_001).allowed
        for cost in ("0.01", Decimal("0.01"), 0.01):
            assert meter.check(**asked, estimated_tokens=9_999, estimated_cost=cost).allowed
        assert not meter.check(**asked, estimated_cost="0.010000001").allowed
        meter.check(**asked, estimated_cost="a lot")
        meter.check(**asked, estimated_tokens=-5)
        assert meter.stats.bad_estimates == 2

    def test_a_stream(self, meter: FakeMeter) -> None:
        chunks = [
            {"type": "response.created", "response": {**ANSWER, "usage": None}},
            {"type": "response.completed", "response": ANSWER},
        ]
        with meter.guard(port_id="a", **USE) as call:
            assert list(call.stream(chunks)) == chunks
        assert meter.events[0]["output_tokens"] == 10
        call = meter.begin(port_id="a", estimated_tokens=9, **USE)
        stream = call.stream([chunks[0], dict(chunks[0])])
        next(stream)
        stream.close()
        assert (meter.stats.recorded, meter.stats.estimated) == (2, 1)


class TestBind:
    def test_defaults_of_the_context(self, meter: FakeMeter) -> None:
        meter.set_budget("port:b", hard_cap=0)

        def in_context() -> None:
            meter.bind(port_id="b", user_id="u", **USE)
            assert not meter.check().allowed
            with meter.bind(port_id="c"):
                assert meter.check().allowed
                meter.record(input_tokens=1)
            assert not meter.check().allowed
            with pytest.raises(BudgetExceeded), meter.guard():
                pass

        contextvars.copy_context().run(in_context)
        assert meter.check().allowed
        assert (meter.events[0]["port_id"], meter.events[0]["user_id"]) == ("c", "u")


class TestRecord:
    def test_values_that_services_have(self, meter: FakeMeter) -> None:
        user = uuid4()
        meter.record(port_id="a", user_id=user, reported_cost=Decimal("0.25"), group_id=None, **USE)
        (event,) = meter.events
        assert event["user_id"] == str(user)
        assert event["reported_cost"] == "0.25"
        assert "group_id" not in event
        assert len(event["event_id"]) == 36

    @pytest.mark.parametrize(
        "reason",
        [
            "missing-field",
            "wrong-type",
            "out-of-range",
            "bad-timestamp",
            "inconsistent-tokens",
            "too-large",
        ],
    )
    def test_what_breaks_a_rule_is_counted_with_the_contracts_reason(
        self, meter: FakeMeter, reason: str
    ) -> None:
        valid = {"event_id": "e", "occurred_at": "2026-11-22T10:00:00Z", "port_id": "p", **USE}
        makers = [maker(dict(valid))[0] for maker in MAKERS[reason]]
        bodies = [json.loads(value) for value in makers if value]
        counted = 0
        for body in bodies:
            if body.get("event_id") is None or "occurred_at" not in body:
                continue  # here these are filled in
            meter.record(**body)
            counted += 1
        assert meter.stats.rejected == {reason: counted}
        assert counted
        assert meter.events == []

    @pytest.mark.parametrize(
        "fields",
        [
            {"port_id": b"bytes"},
            {"port_id": "\ud800"},
            {"input_tokens": 2**70},
            {"audio_seconds": float("nan")},
            {"tags": {"a": object()}},
            {"user_id": object()},
        ],
    )
    def test_nothing_makes_it_raise(self, meter: FakeMeter, fields: dict[str, Any]) -> None:
        meter.record(**{"port_id": "p", **USE, **fields})
        assert sum(meter.stats.rejected.values()) == 1

    def test_a_response_that_bites(self, meter: FakeMeter) -> None:
        class Biting:
            def __getattr__(self, name: str) -> Any:
                raise RuntimeError("no")

        with meter.guard(port_id="p", estimated_tokens=5, **USE) as call:
            call.record(Biting())
        assert meter.stats.lost == {"error": 1}
        assert meter.stats.held == 0

    def test_unknown_fields_are_counted(
        self, meter: FakeMeter, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        for _ in range(5):
            meter.record(port_id="p", input_token=5, **USE)
        assert meter.stats.unknown_fields == 5
        assert len(meter.events) == 5
        assert caplog.messages == [
            "an event has fields that nobody reads: 'input_token': a typing error?"
        ]

    def test_of_many_unknown_fields_a_few_are_named(
        self, meter: FakeMeter, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        meter.record(port_id="p", user=None, a=1, b=2, c=3, d=4, e=5, **USE)
        assert "reads: 'a', 'b', 'c' and 2 more: a typing" in caplog.text

    def test_an_unknown_shape_is_recorded_as_the_estimate_and_counted(
        self, meter: FakeMeter
    ) -> None:
        with meter.guard(port_id="p", estimated_tokens=500, **USE) as call:
            call.record({"what": "is this"})
        (event,) = meter.events
        assert (event["estimated"], event["output_tokens"]) == (True, 500)
        assert (meter.stats.estimated, meter.stats.unknown_shapes) == (1, 1)

    def test_down_and_up_again(self, meter: FakeMeter) -> None:
        meter.deployment.is_down = True
        for number in range(50):
            meter.record(port_id="p", event_id=f"e{number}", **USE)
        assert not meter.flush(0.3)
        assert (meter.stats.recorded, meter.stats.sent, meter.stats.waiting) == (50, 0, 50)
        meter.deployment.is_down = False
        assert meter.flush(WAIT_S)
        assert [event["event_id"] for event in meter.events] == [f"e{n}" for n in range(50)]

    def test_after_close_it_is_lost_and_counted(self) -> None:
        meter = FakeMeter()
        assert meter.close()
        meter.record(port_id="p", **USE)
        assert meter.stats.lost == {"closed": 1}
        assert meter.check(port_id="p").freshness == "OFF"

    def test_without_a_disk_what_is_left_at_the_end_is_counted(self) -> None:
        meter = FakeMeter()
        meter.deployment.is_down = True
        meter.record(port_id="p", **USE)
        assert not meter.close(0.1)
        assert meter.stats.lost == {"closed": 1}


class TestFake:
    def test_it_counts_and_caps(self, meter: FakeMeter) -> None:
        meter.set_budget("user:*", hard_cap=100)
        meter.record(port_id="p", user_id="u", input_tokens=100, **USE)
        assert len(meter.events) == 1
        verdict = meter.check(user_id="u")
        assert (verdict.reason, verdict.used) == ("hard-cap-exceeded", 100)
        assert meter.check(user_id="other", estimated_tokens=100).allowed
        meter.record(port_id="p", event_id="same", **USE)
        meter.record(port_id="p", event_id="same", **USE)
        assert len(meter.events) == 2

    def test_time_without_heartbeats(self, meter: FakeMeter) -> None:
        meter.set_budget("port:a", hard_cap=0, on_stale="allow")
        assert not meter.check(port_id="a").allowed
        meter.advance(6)
        assert meter.check(port_id="a").reason == "stale"
        assert meter.check(port_id="a").allowed
        meter.deployment.beat()
        assert not meter.check(port_id="a").allowed

    def test_a_test_may_take_its_time(
        self, meter: FakeMeter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meter.set_budget("port:a", hard_cap=0, on_stale="allow")
        later_s = time.monotonic() + 3_600
        clocks = SimpleNamespace(monotonic=lambda: later_s, time_ns=time.time_ns)
        monkeypatch.setattr(testing, "time", clocks)
        assert not meter.check(port_id="a").allowed
