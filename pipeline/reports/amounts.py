"""Amounts as people read them; the exact ones are in the report's JSON."""

from pipeline.core.money import NANO_DECIMALS, NANO_PER_UNIT, round_half_even
from pipeline.reports.figures import Compared

UNKNOWN = "no price"


def money(nano: int | None, currency: str) -> str:
    """``USD 1,234.50``: two decimals, below 1 up to six, rounded half to even; never 0 for what is
    not."""
    if nano is None:
        return UNKNOWN
    size = abs(nano)
    decimals = 2 if size >= NANO_PER_UNIT else 6
    rounded = round_half_even(size, 10 ** (NANO_DECIMALS - decimals))
    if nano and not rounded:
        return f"{currency} {'-' if nano < 0 else ''}<0.000001"
    whole, rest = divmod(rounded, 10**decimals)
    fraction = f"{rest:0{decimals}d}".rstrip("0").ljust(2, "0")
    return f"{currency} {'-' if nano < 0 else ''}{whole:,}.{fraction}"


def count(number: int) -> str:
    """``1,234,567``."""
    return f"{number:,}"


def period_name(period: str) -> str:
    """What comes after "per"."""
    return "30 days" if period == "rolling-30d" else period


def change(line: Compared) -> str:
    """The change to the week before: ``+12.5 %``, ``new``, ``none``, or that it is unknown."""
    if line.change_nano is None:
        return "unknown"
    if line.change_nano == 0:
        return "none"
    if line.change_permille is None:
        return "new"
    whole, tenth = divmod(abs(line.change_permille), 10)
    return f"{'+' if line.change_nano > 0 else '-'}{whole:,}.{tenth} %"
