"""Exact amounts: decimal strings, integer nanos and rationals. Never a float.

A nano is 10⁻⁹ of the deployment's currency. Text is read in any plain decimal form (``5``,
``5.00``, ``.5``, ``-0.25``) and written in one: no exponent, no trailing zeros (``5``, ``0.5``).
"""

import re
from decimal import Decimal
from fractions import Fraction

from pipeline.core.errors import InvalidField

NANO_PER_UNIT = 1_000_000_000
NANO_DECIMALS = 9
MAX_NANO = 2**63 - 1
MAX_TEXT_LENGTH = 64

_PLAIN = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


def parse_decimal(text: object, field: str = "amount") -> Decimal:
    """The exact value of a decimal string; raises ``InvalidField`` when it is none."""
    if not isinstance(text, str):
        raise InvalidField(field, 'must be a decimal string such as "0.5"')
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidField(field, f"must have at most {MAX_TEXT_LENGTH} characters")
    if _PLAIN.fullmatch(text) is None:
        raise InvalidField(field, f'must be a plain decimal such as "0.5", not {text!r}')
    return Decimal(text)


def parse_nano(text: object, field: str = "amount") -> int:
    """The nanos of a decimal string.

    Raises ``InvalidField`` when it is no plain decimal, has more than nine decimals that count,
    or lies beyond 64 bits of nanos.
    """
    ratio = Fraction(parse_decimal(text, field)) * NANO_PER_UNIT
    if ratio.denominator != 1:
        raise InvalidField(field, f"must have at most {NANO_DECIMALS} decimals")
    if abs(ratio.numerator) > MAX_NANO:
        raise InvalidField(field, "must fit 64 bits of nanos")
    return ratio.numerator


def format_nano(nano: int) -> str:
    """``nano`` as a canonical decimal string of whole units."""
    # As ``format_scaled``, for two thirds of its time: states are full of amounts.
    text = ("%d.%09d" % divmod(abs(nano), NANO_PER_UNIT)).rstrip("0").rstrip(".")  # noqa: UP031
    return f"-{text}" if nano < 0 else text


def format_scaled(value: int, decimals: int) -> str:
    """``value`` · 10^-``decimals`` as a canonical decimal string; ``decimals`` is above 0."""
    whole, rest = divmod(abs(value), 10**decimals)
    text = str(whole) if rest == 0 else f"{whole}.{rest:0{decimals}d}".rstrip("0")
    return f"-{text}" if value < 0 else text


def format_decimal(value: Decimal) -> str:
    """A finite ``value`` as a canonical decimal string, with all its digits."""
    text = f"{value:f}"
    if "." in text:
        text = text.rstrip("0").removesuffix(".")
    return "0" if text in ("-0", "") else text


def round_half_even(numerator: int, denominator: int) -> int:
    """``numerator / denominator`` to the nearest integer, ties to even; the latter is > 0."""
    whole, rest = divmod(numerator, denominator)
    twice = rest + rest
    if twice > denominator or (twice == denominator and whole & 1):
        return whole + 1
    return whole
