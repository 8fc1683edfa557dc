"""Records of ``budget.state`` for tests: states, heartbeats, and a clock that tests turn."""

import time
from typing import Any

from pipeline.core.budgets import (
    Heartbeat,
    State,
    heartbeat_json,
    heartbeat_key,
    state_json,
    state_of,
)
from pipeline.core.policies import Policy
from pipeline.core.windows import window


def state(
    scope: str = "port:a",
    used: int = 0,
    hard: int | None = 100,
    unit: str = "tokens",
    period: str = "month",
    at_ms: int | None = None,
    **policy: Any,
) -> State:
    """The state of a policy at ``at_ms`` (now without one); amounts in tokens or nanos."""
    now_ms = now() if at_ms is None else at_ms
    rules = Policy(scope, unit, period, hard_cap=hard, **policy)
    return state_of(rules, scope, window(period, now_ms), used, 0, now_ms)


def record(found: State, version: int = 1, as_of_ms: int | None = None) -> tuple[bytes, bytes]:
    """Key and value of a state's record."""
    value = state_json(found, version, now() if as_of_ms is None else as_of_ms)
    return found.key.encode(), value


def beat(
    partition: int, as_of_ms: int | None = None, through: dict[int, int] | None = None
) -> tuple[bytes, bytes]:
    """Key and value of a heartbeat."""
    as_of_ms = now() if as_of_ms is None else as_of_ms
    value = heartbeat_json(Heartbeat(partition, as_of_ms, through or {}))
    return heartbeat_key(partition).encode(), value


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
