"""How far several gates together go over a cap: within the formula of docs/delivery.md."""

import threading

from producers import BudgetExceeded, Meter
from producers.settings import MeterSettings
from producers.testing import WAIT_S, FakeDeployment

GATES, IN_FLIGHT, ESTIMATE, CAP = 3, 4, 50, 20_000


def test_several_gates_overshoot_by_no_more_than_what_they_had_in_flight() -> None:
    """Every gate sees the others' calls once they are counted; the lag is 0 but for the wire, so
    what is left is each one's calls in flight and recorded but not yet counted."""
    deployment = FakeDeployment()
    deployment.set_budget("port:a", hard_cap=CAP)
    settings = MeterSettings(keeps_on_disk=False)
    meters = [Meter(settings, lambda: deployment) for _ in range(GATES)]
    barrier = threading.Barrier(GATES * IN_FLIGHT)
    highest_unsent = [0] * GATES

    def work(gate: int) -> None:
        meter = meters[gate]
        barrier.wait()
        while True:
            try:
                with meter.guard(
                    port_id="a", estimated_tokens=ESTIMATE, provider="p", model="m"
                ) as call:
                    call.record(input_tokens=ESTIMATE)
            except BudgetExceeded:
                return
            highest_unsent[gate] = max(highest_unsent[gate], meter.stats.waiting)

    try:
        assert all(meter.wait_ready(WAIT_S) for meter in meters)
        threads = [threading.Thread(target=work, args=(n % GATES,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(meter.flush(WAIT_S) for meter in meters)
    finally:
        for meter in meters:
            meter.close(1.0)
    used = sum(event["input_tokens"] for event in deployment.events)
    unseen = sum(highest_unsent) + GATES  # what a gate had recorded and nobody had counted yet
    assert CAP <= used <= CAP + (GATES - 1) * IN_FLIGHT * ESTIMATE + unseen * ESTIMATE
