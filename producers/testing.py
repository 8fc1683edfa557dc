"""A meter for the tests of services: everything real but the deployment, which is in memory.

from producers.testing import FakeMeter

meter = FakeMeter()
meter.set_budget("port:harbor-7", hard_cap=1000)
…
assert meter.events[0]["input_tokens"] == 12
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.core.book import Book, BookContent
from pipeline.core.budgets import (
    Heartbeat,
    heartbeat_json,
    heartbeat_key,
    state_json,
    state_of,
)
from pipeline.core.event_codec import decode_event
from pipeline.core.events import Event
from pipeline.core.policies import Policy, policy_from_object
from pipeline.core.prices import PriceVersion
from pipeline.core.rates import RateSet, UsedRate, parse_rate
from pipeline.core.rejections import Rejection
from pipeline.core.scopes import ALL, event_scopes, is_wildcard, scope_kind
from pipeline.core.windows import window
from producers.meter import Meter
from producers.prices import Prices
from producers.segment import Entry
from producers.settings import MeterSettings
from producers.transports.transport import Follower, Outcome, StateTaker, Unavailable

WAIT_S = 10.0
_DAY_US = 86_400_000_000


class FakeDeployment:
    """Kafka, worker and prices in memory: counts what it is sent, and caps at once.

    While ``is_down`` nothing can be sent and nothing is heard.
    """

    def __init__(self) -> None:
        self.is_down = False
        self.events: list[dict[str, Any]] = []
        self._accepted: dict[tuple[str, str], Event] = {}
        self._policies: dict[str, Policy] = {}
        self._rates: list[UsedRate] = []
        self._gates: list[StateTaker] = []
        self._prices: list[Prices] = []
        self._offset = 0
        self._version = 0
        self._as_of_ms = 0
        self._lock = threading.RLock()

    def set_budget(self, scope: str, **policy: Any) -> None:
        """Sets a policy: the contract's fields, ``unit`` tokens and ``period`` month by default."""
        body = {"scope": scope, "unit": "tokens", "period": "month", **policy}
        with self._lock:
            found = policy_from_object(body)
            self._policies[found.key] = found
            self._publish()

    def set_price(self, model: str, provider: str = "openai", **per_million: str) -> None:
        """Sets prices per million of counters, as decimal strings: ``output_tokens="10"``."""
        rate = {
            "rate_id": f"fake-{len(self._rates)}",
            "provider": provider,
            "model": model,
            "effective_from": "2020-01-01T00:00:00Z",
            "backdated": True,
            "per_million": per_million,
        }
        with self._lock:
            self._rates.append(UsedRate(len(self._rates), parse_rate(rate)))
            for prices in self._prices:
                prices.update(self._price_version())

    # -- what a transport does ---------------------------------------------------------------

    def open(self) -> None:
        """See ``Transport``."""

    def deliver(self, entries: Sequence[Entry], stop: threading.Event) -> Sequence[Outcome | None]:
        """See ``Transport``."""
        if self.is_down:
            raise Unavailable("the fake deployment is down")
        with self._lock:
            outcomes = [self._accept(entry) for entry in entries]
            self._publish()
            return outcomes

    def followers(self, gate: StateTaker, prices: Prices | None) -> Sequence[Follower]:
        """See ``Transport``."""

        def follow(stop: threading.Event) -> None:
            with self._lock:
                self._gates.append(gate)
                gate.begin(1)
                self._publish()
                gate.caught_up()
                if prices is not None:
                    self._prices.append(prices)
                    prices.update(self._price_version())
            stop.wait()

        return [follow]

    def close(self) -> None:
        """See ``Transport``."""

    def abandon(self) -> None:
        """See ``Transport``."""

    def beat(self) -> None:
        """Says that everything is still counted."""
        with self._lock:
            self._publish()

    # -- inside ----------------------------------------------------------------------------

    def _accept(self, entry: Entry) -> Outcome:
        event = decode_event(entry.value)
        if isinstance(event, Rejection):
            return Outcome(reason=event.reason, detail=event.detail)
        offset, self._offset = self._offset, self._offset + 1
        identity = (event.port_id, event.event_id)
        if identity not in self._accepted:
            self._accepted[identity] = event
            self.events.append(msgspec.json.decode(entry.value))
        return Outcome(0, offset)

    def _publish(self) -> None:
        if self.is_down:
            return
        now_ms = time.time_ns() // 1_000_000
        # Each heartbeat is a later one, however quickly a test goes on.
        self._as_of_ms = now_ms = max(now_ms, self._as_of_ms + 1)
        self._version += 1
        records = [
            (state.key.encode(), state_json(state, self._version, now_ms))
            for policy in self._policies.values()
            for state in self._states(policy, now_ms)
        ]
        beat = heartbeat_json(Heartbeat(0, now_ms, {0: self._offset}))
        records.append((heartbeat_key(0).encode(), beat))
        for gate in self._gates:
            for key, value in records:
                gate.take(0, key, value)

    def _states(self, policy: Policy, now_ms: int) -> list[Any]:
        scopes = [policy.scope]
        if is_wildcard(policy.scope):
            kind = scope_kind(policy.scope)
            counted = {scope for event in self._accepted.values() for scope in _scopes(event)}
            own = {p.scope for p in self._policies.values() if _slot(p) == _slot(policy)}
            scopes += sorted(s for s in counted - own if s != ALL and scope_kind(s) == kind)
        span = window(policy.period, now_ms)
        return [
            state_of(policy, scope, span, self._used(policy, scope, span.start_day), 0, now_ms)
            for scope in scopes
        ]

    def _used(self, policy: Policy, scope: str, start_day: int) -> int:
        prices = self._price_version()
        used = 0
        for event in self._accepted.values():
            if scope not in _scopes(event) or event.occurred_at_us < start_day * _DAY_US:
                continue
            if policy.unit == "tokens":
                used += event.input_tokens + event.output_tokens
            elif event.billing_scope == "org" or scope_kind(scope) == "user":
                used += prices.price(event).cost_nano or 0
        return used

    def _price_version(self) -> PriceVersion:
        return PriceVersion(
            RateSet(len(self._rates), "USD", tuple(self._rates)), Book(BookContent("fake", ()))
        )


class FakeMeter(Meter):
    """A ``Meter`` on a ``FakeDeployment`` of its own.

    ``advance`` turns the clock by which budgets become stale, and nothing else does: heartbeats do
    not come by themselves, and a test may take its time.
    """

    def __init__(self, on_stale: str = "allow") -> None:
        self.deployment = FakeDeployment()
        self._now_s = time.monotonic()
        super().__init__(
            MeterSettings(on_stale=on_stale, keeps_on_disk=False),
            lambda: self.deployment,
            lambda: self._now_s,
        )
        self.wait_ready(WAIT_S)

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events that arrived, each once, in order."""
        self.flush(WAIT_S)
        return list(self.deployment.events)

    def set_budget(self, scope: str, **policy: Any) -> None:
        """See ``FakeDeployment.set_budget``; holds from the next check on."""
        self.deployment.set_budget(scope, **policy)

    def set_price(self, model: str, provider: str = "openai", **per_million: str) -> None:
        """See ``FakeDeployment.set_price``."""
        self.deployment.set_price(model, provider, **per_million)

    def advance(self, seconds: float) -> None:
        """Lets time pass without a heartbeat: after 5 s budgets are stale."""
        self._now_s += seconds


def _slot(policy: Policy) -> tuple[str, str]:
    return policy.unit, policy.period


def _scopes(event: Event) -> tuple[str, ...]:
    return event_scopes(event.port_id, event.organization_id, event.group_id, event.user_id)


__all__ = ["FakeDeployment", "FakeMeter"]
