"""A service as one of several that share a budget; run as a process of its own.

python -m tests.producers.capped_service PORT CAP THREADS ESTIMATE

Waits for the port's hard cap, says ``ready``, waits for a line, makes calls in so many threads
until each is refused while nothing is held, and prints what it did and what it saw, all times in
seconds since 1970.
"""

import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from producers import BudgetExceeded, Meter
from tests.producers.sides import until

WAIT_S = 120.0
CALL_S = (0.01, 0.04)
LOOK_S = 0.001
RETRY_S = 0.02


@dataclass
class Report:
    """``calls`` are (event id, admitted at, recorded at, tokens); ``seen`` is what the states said
    was used at a time; ``refused`` is why each thread ended."""

    calls: list[tuple[str, float, float, int]] = field(
        default_factory=list[tuple[str, float, float, int]]
    )
    seen: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    refused: list[str] = field(default_factory=list[str])


def run(port_id: str, cap: int, threads: int, estimate: int) -> Report:
    report = Report()
    # The second meter records nothing, so all it knows is what the states say.
    with Meter.from_env() as meter, Meter.from_env() as watching:
        assert meter.wait_ready(WAIT_S)
        assert watching.wait_ready(WAIT_S)
        # Another policy may hold for the port until its own one comes.
        until(lambda: meter.check(port_id=port_id).hard_cap == cap, "the policy", WAIT_S)
        print("ready", flush=True)
        sys.stdin.readline()
        working = [
            threading.Thread(target=_work, args=(meter, port_id, estimate, report))
            for _ in range(threads)
        ]
        for thread in working:
            thread.start()
        while any(thread.is_alive() for thread in working):
            used: Any = watching.check(port_id=port_id).used
            report.seen.append((time.time(), used))
            time.sleep(LOOK_S)
        assert meter.flush(WAIT_S), meter.stats
    return report


def _work(meter: Meter, port_id: str, estimate: int, report: Report) -> None:
    asked: dict[str, Any] = {"port_id": port_id, "provider": "acme", "model": "m"}
    while True:
        held = meter.stats.held
        try:
            with meter.guard(**asked, estimated_tokens=estimate) as call:
                admitted_s = time.time()
                time.sleep(random.uniform(*CALL_S))
                event_id, recorded_s = f"{random.getrandbits(64):x}", time.time()
                report.calls.append((event_id, admitted_s, recorded_s, estimate))
                call.record(event_id=event_id, input_tokens=estimate)
        except BudgetExceeded as exceeded:
            # A worker that is kept from counting makes states stale for a moment, and calls that
            # are in the states and still held count twice until the next heartbeat.
            if exceeded.reason != "stale" and not held:
                report.refused.append(exceeded.reason)
                return
            time.sleep(RETRY_S)


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], *map(int, sys.argv[2:])))))
