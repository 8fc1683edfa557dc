"""The way between clients and the log: latency, outages, and answers that get lost.

A request arrives after a while, is carried out in one step, and its answer takes a while again.
Requests of one client arrive in the order they were sent. What a killed process has sent still
arrives; the answer to a frozen one waits for it.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import KafkaError, KafkaTimeoutError

from tests.sim.log import MarkersUnderWay
from tests.sim.virtual_loop import Process, VirtualLoop

RETRY_S = 0.003


@dataclass
class LostAnswer:
    """The next request of ``kind`` from ``process`` fails, carried out before or not at all."""

    process: str
    kind: str
    is_carried_out: bool


class Request:
    """One request under way."""

    __slots__ = ("client", "deadline_s", "execute", "future", "is_expired", "kind")

    def __init__(self, client: "Client", kind: str, execute: Callable[[], Any], future: Any):
        self.client = client
        self.kind = kind
        self.execute = execute
        self.future = future
        self.deadline_s = float("inf")
        self.is_expired = False

    def expire(self) -> None:
        """The client gives up."""
        self.is_expired = True
        if not self.future.done():
            self.future.set_exception(KafkaTimeoutError("simulated: no answer in time"))


class Network:
    """Carries requests to the broker. ``down`` while the broker is away."""

    LATER = object()
    """What a request answers that has to wait at the broker; whoever ends the wait sends it on."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, latency_s: float) -> None:
        self.loop = loop
        self.down = False
        self.lost_answers: list[LostAnswer] = []
        self.on_fault: Callable[[str], None] = lambda name: None
        self._rng = rng
        self._latency_s = latency_s
        self._parked: list[Callable[[], None]] = []

    def delay_s(self) -> float:
        return self._rng.random() * self._latency_s

    def set_down(self, down: bool) -> None:
        """Takes the broker away, or brings it back: what waited for it goes on then."""
        self.down = down
        if not down:
            parked, self._parked = self._parked, []
            for go_on in parked:
                self.loop.world_later(self.delay_s(), go_on)

    def when_up(self, go_on: Callable[[], None]) -> None:
        """Does something at the broker, now or when it is back."""
        if self.down:
            self._parked.append(go_on)
        else:
            go_on()

    def arrive(self, request: Request) -> None:
        if self.down:
            self._park(request, lambda: self.arrive(request))
            return
        if request.is_expired:
            return
        lost = self._take_lost(request)
        if lost is not None and not lost.is_carried_out:
            self.on_fault(f"lost-{request.kind}-not-executed")
            self._answer(request, error=KafkaTimeoutError("simulated: not carried out"))
            return
        try:
            result = request.execute()
        except MarkersUnderWay as error:
            error.transaction.waiters.append(
                lambda: self.loop.world_later(RETRY_S, self.arrive, request)
            )
            return
        except KafkaError as error:
            self._answer(request, error=error)
            return
        if result is self.LATER:
            return
        if lost is not None:
            self.on_fault(f"lost-{request.kind}-executed")
            self._answer(request, error=KafkaTimeoutError("simulated: the answer was lost"))
        else:
            self._answer(request, result)

    def _park(self, request: Request, go_on: Callable[[], None]) -> None:
        self._parked.append(go_on)
        if request.deadline_s != float("inf"):
            self.loop.world_later(max(0.0, request.deadline_s - self.loop.now_s), request.expire)

    def _take_lost(self, request: Request) -> LostAnswer | None:
        process = request.client.process
        for lost in self.lost_answers:
            if process is not None and (lost.process, lost.kind) == (process.name, request.kind):
                self.lost_answers.remove(lost)
                return lost
        return None

    def _answer(self, request: Request, result: Any = None, error: Exception | None = None) -> None:
        self.loop.world_later(self.delay_s(), self._settle, request, result, error)

    def _settle(self, request: Request, result: Any, error: Exception | None) -> None:
        if self.down:
            self._park(request, lambda: self._settle(request, result, error))
        elif not request.future.done():
            if error is None:
                request.future.set_result(result)
            else:
                request.future.set_exception(error)


class Client:
    """One client's connection. ``process`` None is the world's own, which waits for nothing."""

    def __init__(self, network: Network, process: Process | None) -> None:
        self.network = network
        self.process = process
        self._free_at_s = 0.0

    def request(
        self, kind: str, execute: Callable[[], Any], timeout_s: float | None = None
    ) -> "asyncio.Future[Any]":
        """Sends a request; after ``timeout_s`` without an answer it fails and is not repeated."""
        return self.send(self.prepare(kind, execute), timeout_s)

    def prepare(self, kind: str, execute: Callable[[], Any]) -> Request:
        """A request that has not been sent yet."""
        return Request(self, kind, execute, self.network.loop.create_future())

    def send(self, request: Request, timeout_s: float | None = None) -> "asyncio.Future[Any]":
        """Sends a prepared request; see ``request``."""
        loop = self.network.loop
        at_s = max(self._free_at_s, loop.now_s + self.network.delay_s())
        self._free_at_s = at_s
        loop.world_later(at_s - loop.now_s, self.network.arrive, request)
        if timeout_s is not None:
            request.deadline_s = loop.now_s + timeout_s
        return request.future
