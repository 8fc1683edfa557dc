"""Rate limits: a token bucket for each key, and for each user of a key where asked for."""

import re
from collections import OrderedDict
from typing import NamedTuple

from pipeline.core.errors import InvalidField

MAX_BUCKETS = 100_000
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(s|min|h)")


class Rate(NamedTuple):
    """``requests`` in ``period_s`` seconds; up to all of them at once."""

    requests: int
    period_s: int


def parse_rate(text: str, field: str = "rate") -> Rate:
    """A rate such as ``20/min``, ``5/s`` or ``100/h``; raises ``InvalidField``."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise InvalidField(field, f"must look like 20/min (or /s, /h), not {text!r}")
    return Rate(int(match[1]), _SECONDS[match[2]])


class _Bucket:
    __slots__ = ("filled_s", "tokens")

    def __init__(self, tokens: float, filled_s: float) -> None:
        self.tokens = tokens
        self.filled_s = filled_s


class RateLimits:
    """Buckets by name, the most recently used ``most``; memory is bounded by that.

    Beyond the bound the longest unused is forgotten, and starts full when it comes back.
    """

    def __init__(self, most: int = MAX_BUCKETS) -> None:
        self._most = most
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()

    def wait_s(self, name: tuple[str, ...], rate: Rate, now_s: float) -> float:
        """Takes one token; 0 when there was one, else the seconds until there is."""
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(rate.requests, now_s)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(name)
            gained = (now_s - bucket.filled_s) * rate.requests / rate.period_s
            bucket.tokens = min(float(rate.requests), bucket.tokens + gained)
            bucket.filled_s = now_s
        if bucket.tokens >= 1:
            bucket.tokens -= 1
            return 0.0
        return (1 - bucket.tokens) * rate.period_s / rate.requests
