"""Amounts as text, as nanos and as rationals."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InvalidField
from pipeline.core.money import (
    MAX_NANO,
    format_decimal,
    format_nano,
    format_scaled,
    parse_decimal,
    parse_nano,
    round_half_even,
)

NANOS = st.integers(-MAX_NANO, MAX_NANO)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("5", 5_000_000_000),
        ("5.0", 5_000_000_000),
        ("0.5", 500_000_000),
        (".5", 500_000_000),
        ("5.", 5_000_000_000),
        ("005.50", 5_500_000_000),
        ("+0.000000001", 1),
        ("-0.25", -250_000_000),
        ("0.1000000000000", 100_000_000),
        ("-0", 0),
        ("9223372036.854775807", MAX_NANO),
    ],
)
def test_any_plain_decimal_form_is_read(text: str, nano: int) -> None:
    assert parse_nano(text) == nano


@pytest.mark.parametrize(
    "text",
    ["", ".", "-", "1e3", "1E-3", "1,5", "1_000", " 1", "1 ", "1\n", "NaN", "Infinity", "0x1",
     "١", "--1", "1.2.3", "9" * 65, 5, 0.5, None, True, Decimal(1)],
)  # fmt: skip
def test_nothing_else_is_read(text: object) -> None:
    with pytest.raises(InvalidField, match=r"^cap: must"):
        parse_decimal(text, "cap")


@pytest.mark.parametrize("text", ["0.0000000001", "9223372036.854775808", "-9999999999999"])
def test_nanos_have_nine_decimals_and_64_bits(text: str) -> None:
    with pytest.raises(InvalidField):
        parse_nano(text)


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0"), (5_000_000_000, "5"), (500_000_000, "0.5"), (-1, "-0.000000001"),
     (125_000, "0.000125"), (-10_000_000_000, "-10"), (100_000_000_000, "100")],
)  # fmt: skip
def test_the_canonical_form(nano: int, text: str) -> None:
    assert format_nano(nano) == text


@given(NANOS)
def test_nanos_come_back_from_their_text(nano: int) -> None:
    text = format_nano(nano)
    assert parse_nano(text) == nano
    assert Decimal(text) == Decimal(nano).scaleb(-9)
    assert "E" not in text
    assert "." not in text or not text.endswith(("0", "."))


@given(st.integers(-(10**40), 10**40), st.integers(1, 20))
def test_scaled_integers_come_back_exactly(value: int, decimals: int) -> None:
    assert Fraction(format_scaled(value, decimals)) == Fraction(value, 10**decimals)


@given(st.decimals(allow_nan=False, allow_infinity=False, places=12))
def test_decimals_keep_every_digit(value: Decimal) -> None:
    text = format_decimal(value)
    assert Fraction(text) == Fraction(value)
    assert format_decimal(Decimal(text)) == text
    assert "E" not in text


@pytest.mark.parametrize(
    ("numerator", "denominator", "rounded"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (-1, 2, 0), (-3, 2, -2), (-5, 2, -2), (2, 3, 1), (1, 3, 0),
     (7, 1, 7), (10**30 + 1, 2, (10**30) // 2), (0, 5, 0)],
)  # fmt: skip
def test_ties_go_to_the_even_neighbour(numerator: int, denominator: int, rounded: int) -> None:
    assert round_half_even(numerator, denominator) == rounded


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**12))
def test_rounding_is_that_of_fractions(numerator: int, denominator: int) -> None:
    assert round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(st.integers(-(10**25), 10**25), st.integers(0, 12))
def test_rounding_is_that_of_decimals(numerator: int, places: int) -> None:
    with localcontext(prec=60):
        expected = Decimal(numerator).scaleb(-places).quantize(Decimal(1), ROUND_HALF_EVEN)
    assert round_half_even(numerator, 10**places) == int(expected)
