"""The processes of ``bench sdk`` beside the one that records: the load, and the gate that refuses.

python -m pipeline.bench.sdk_processes load RATE SECONDS
python -m pipeline.bench.sdk_processes gate FIRST_PROBE PROBES SECONDS
"""

import asyncio
import itertools
import json
import sys
import time
from datetime import UTC, datetime

from producers import Meter
from producers.kafka import Publisher
from producers.steady import steady

BATCH_S = 0.005
POLL_S = 0.0005
PROBE_CAP = 10
ASKED_AT_ONCE = 32
"""Of the probes that are not refused yet, the first ones: more than a slow way round holds."""


async def load(bootstrap: str, topic: str, rate: int, seconds: int) -> None:
    """Sends ``rate`` events a second in small batches, as many services together would."""
    events = steady(rate * seconds, time.time_ns() % 2**32, end=datetime.now(UTC))
    async with Publisher({"bootstrap_servers": bootstrap}, topic, linger_ms=0) as publisher:
        started_s, sent = time.perf_counter(), 0
        while sent < rate * seconds:
            due = min(rate * seconds, int((time.perf_counter() - started_s) * rate))
            batch = [*itertools.islice(events, due - sent)]
            sent += await publisher.send_many(batch)
            await asyncio.sleep(BATCH_S)
        await publisher.flush()


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
    """Runs one of the two."""
    import os

    if sys.argv[1] == "load":
        prefix = os.environ.get("TALLYPORT_TOPIC_PREFIX", "")
        bootstrap = os.environ["TALLYPORT_KAFKA_BOOTSTRAP"]
        asyncio.run(load(bootstrap, f"{prefix}usage.events", int(sys.argv[2]), int(sys.argv[3])))
    else:
        print(json.dumps(gate(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))))


if __name__ == "__main__":
    main()
