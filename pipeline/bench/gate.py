"""The process of ``bench sdk`` that asks: when did it first refuse each probe's port?

python -m pipeline.bench.gate FIRST_PROBE PROBES SECONDS
"""

import json
import sys
import time

from producers import Meter

POLL_S = 0.0005
PROBE_CAP = 10
ASKED_AT_ONCE = 32
"""Of the probes that are not refused yet, the first ones: more than a slow way round holds."""


def gate(first: int, probes: int, seconds: float) -> dict[int, float]:
    """When (seconds since 1970) this process first refused each probe's port."""
    refused: dict[int, float] = {}
    with Meter.from_env() as meter:
        if not meter.wait_ready(30):
            raise SystemExit("the states could not be read")
        print("ready", flush=True)
        waiting = list(range(first, first + probes))
        end_s = time.monotonic() + seconds
        while waiting and time.monotonic() < end_s:
            for number in waiting[:ASKED_AT_ONCE]:
                if not meter.check(port_id=f"probe-{number}").allowed:
                    refused[number] = time.time()
                    waiting.remove(number)
            time.sleep(POLL_S)
    return refused


def main() -> None:
    """Runs it."""
    print(json.dumps(gate(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))


if __name__ == "__main__":
    main()
