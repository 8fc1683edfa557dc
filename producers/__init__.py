"""The client SDK: reports AI usage, and asks whether a budget allows the next call.

    from producers import Meter, BudgetExceeded

Beside it live the generators of test and benchmark events.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.core.decision import Verdict
    from producers.call import BudgetExceeded, Call
    from producers.meter import Meter
    from producers.settings import MeterSettings
    from producers.stats import MeterStats

__all__ = ["BudgetExceeded", "Call", "Meter", "MeterSettings", "MeterStats", "Verdict"]

_HOMES = {
    "BudgetExceeded": "producers.call",
    "Call": "producers.call",
    "Meter": "producers.meter",
    "MeterSettings": "producers.settings",
    "MeterStats": "producers.stats",
    "Verdict": "pipeline.core.decision",
}


def __getattr__(name: str) -> Any:
    """Loads a name when it is first asked for: the generators need none of the SDK."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
