"""A process that sends events at an even rate, as many services together would.

python -m pipeline.bench.load RATE SECONDS INTERVAL_MS

What is due is sent every INTERVAL_MS, without lingering. The broker's address and the topic's
prefix come from the settings' environment variables. Prints how many seconds it took until the
broker had all of it: more than SECONDS where the machine is too slow for the rate.
"""

import asyncio
import itertools
import os
import sys
import time
from datetime import UTC, datetime

from producers.kafka import Publisher
from producers.steady import steady


async def load(bootstrap: str, topic: str, rate: int, seconds: int, interval_s: float) -> float:
    """Sends ``rate`` events a second for ``seconds``; the seconds until all are acknowledged."""
    events = steady(
        rate * seconds, time.time_ns() % 2**32, end=datetime.now(UTC), events_per_s=rate
    )
    async with Publisher({"bootstrap_servers": bootstrap}, topic, linger_ms=0) as publisher:
        started_s, sent = time.perf_counter(), 0
        while sent < rate * seconds:
            due = min(rate * seconds, int((time.perf_counter() - started_s) * rate))
            sent += await publisher.send_many([*itertools.islice(events, due - sent)])
            await asyncio.sleep(interval_s)
        await publisher.flush()
    return time.perf_counter() - started_s


def main() -> None:
    """Runs it."""
    prefix = os.environ.get("TALLYPORT_TOPIC_PREFIX", "")
    rate, seconds, interval_ms = (int(argument) for argument in sys.argv[1:])
    bootstrap = os.environ["TALLYPORT_KAFKA_BOOTSTRAP"]
    print(asyncio.run(load(bootstrap, f"{prefix}usage.events", rate, seconds, interval_ms / 1000)))


if __name__ == "__main__":
    main()
