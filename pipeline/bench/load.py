"""A process that sends events at an even rate, as many services together would.

python -m pipeline.bench.load SENDING

What is due is sent every few milliseconds, without lingering. The broker's address and the topic's
prefix come from the settings' environment variables. Prints how many seconds it took until the
broker had all of it: more than it was to take where the machine is too slow for the rate.
"""

import asyncio
import itertools
import os
import sys
import time
from datetime import UTC, datetime, timedelta

import msgspec

from pipeline.bench.traffic import PORTS, USERS
from pipeline.core.errors import TallyportError
from pipeline.ops.deployment import child_environ
from pipeline.settings import Settings
from producers.kafka import Publisher
from producers.steady import steady

TIMEOUT_S = 30.0


class Sending(msgspec.Struct, frozen=True):
    """``rate`` events a second of so many ports and users, for ``seconds``.

    They occur about when they are sent, and are stamped so, ``ahead_ms`` later than the clock says.
    The stamps hold on a topic of ``CreateTime`` only. What is due is sent every ``interval_ms``.
    """

    rate: int
    seconds: int
    ports: int = PORTS
    users: int = USERS
    ahead_ms: int = 0
    interval_ms: int = 2

    @property
    def events(self) -> int:
        """How many."""
        return self.rate * self.seconds


_decoder = msgspec.json.Decoder(Sending)


class LoadProcess:
    """The process that sends, from its start until it has ended."""

    def __init__(self, process: asyncio.subprocess.Process, sending: Sending) -> None:
        self._process = process
        self._sending = sending

    @classmethod
    async def start(cls, settings: Settings, sending: Sending) -> "LoadProcess":
        """Begins to send to the deployment of ``settings``."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pipeline.bench.load", msgspec.json.encode(sending).decode()),
            env=child_environ(settings, os.environ),
            stdout=asyncio.subprocess.PIPE,
        )
        return cls(process, sending)

    async def took_s(self) -> float:
        """Waits until all is acknowledged, ``TIMEOUT_S`` longer than it should take at most.

        Raises ``TallyportError`` when that failed, ``TimeoutError``.
        """
        took, _ = await asyncio.wait_for(
            self._process.communicate(), self._sending.seconds + TIMEOUT_S
        )
        if self._process.returncode:
            raise TallyportError("the process that sends the load has failed")
        return float(took)

    async def stop(self) -> None:
        """Ends it, whatever it has sent."""
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


async def _send(bootstrap: str, topic: str, sending: Sending) -> float:
    """The seconds until all are acknowledged."""
    end = datetime.now(UTC) + timedelta(seconds=sending.seconds, milliseconds=sending.ahead_ms)
    events = steady(
        sending.events,
        time.time_ns() % 2**32,
        ports=sending.ports,
        users=sending.users,
        end=end,
        events_per_s=sending.rate,
    )
    async with Publisher({"bootstrap_servers": bootstrap}, topic, linger_ms=0) as publisher:
        started_s, sent = time.perf_counter(), 0
        while sent < sending.events:
            due = min(sending.events, int((time.perf_counter() - started_s) * sending.rate))
            stamp_ms = int(time.time() * 1000) + sending.ahead_ms
            sent += await publisher.send_many([*itertools.islice(events, due - sent)], stamp_ms)
            await asyncio.sleep(sending.interval_ms / 1000)
        await publisher.flush()
    return time.perf_counter() - started_s


def main() -> None:
    """Runs it."""
    prefix = os.environ.get("TALLYPORT_TOPIC_PREFIX", "")
    sending = _decoder.decode(sys.argv[1])
    bootstrap = os.environ["TALLYPORT_KAFKA_BOOTSTRAP"]
    print(asyncio.run(_send(bootstrap, f"{prefix}usage.events", sending)))


if __name__ == "__main__":
    main()
