"""The dearest price of one token of each model, for estimates in money."""

import threading
import time
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.core.prices import PriceVersion

MAX_MODELS = 4_096
REFRESH_S = 60.0


class Prices:
    """Looks a model up when it is first asked for, and again when prices change or a minute passes.

    ``dearest`` is None as long as no prices have been read.
    """

    def __init__(self) -> None:
        self._version: PriceVersion | None = None
        self._dearest: dict[tuple[str, str], Fraction] = {}
        self._refreshed_s = 0.0
        self._read = threading.Event()

    def update(self, version: "PriceVersion") -> None:
        """Takes a new version of all prices."""
        self._version = version
        self.refresh()
        self._read.set()

    def refresh(self) -> None:
        """Looks everything up anew, as prices come into force and go with time alone."""
        self._refreshed_s = time.monotonic()
        version = self._version
        if version is not None:
            self._dearest = {key: _dearest(version, *key) for key in list(self._dearest)}

    def refresh_when_due(self) -> None:
        """As ``refresh``, at most once a minute."""
        if time.monotonic() - self._refreshed_s >= REFRESH_S:
            self.refresh()

    def wait(self, timeout_s: float) -> bool:
        """Waits until prices have been read once; whether they have."""
        return self._read.wait(timeout_s)

    def dearest(self, provider: str, model: str) -> Fraction | None:
        """Nanos per token; 0 where nothing prices tokens, None while no prices are known."""
        key = (provider, model)
        found = self._dearest.get(key)
        if found is not None:
            return found
        version = self._version
        if version is None:
            return None
        if len(self._dearest) >= MAX_MODELS:
            self._dearest = {}
        found = self._dearest[key] = _dearest(version, provider, model)
        return found


def _dearest(version: "PriceVersion", provider: str, model: str) -> Fraction:
    from pipeline.core.explain import dearest_token_nano

    return dearest_token_nano(version, provider, model, time.time_ns() // 1000)
