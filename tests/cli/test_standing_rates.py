"""Which rows of a price list are there already."""

from typing import Any

from pipeline.cli.standing_rates import standing_rates
from pipeline.core.rates import Rate, RateLog, RateSet, encode_rate, parse_rate

JAN, FEB, MAR = (f"2026-{month:02}-01T00:00:00Z" for month in (1, 2, 3))


def rate(rate_id: str, since: str, price: str = "1", **more: Any) -> Rate:
    prices = {"model": "m", "per_million": {"input_tokens": price}, "currency": "USD"}
    named = {"rate_id": rate_id, "effective_from": since, "provider": "acme", **prices}
    return parse_rate({**named, **more})


def withdrawal(rate_id: str, since: str) -> Rate:
    return parse_rate({"rate_id": f"w-{rate_id}", "withdraws": rate_id, "effective_from": since})


def log(*rates: Rate) -> RateSet:
    found = RateLog("USD")
    for offset, one in enumerate(rates):
        assert found.feed(offset, one.rate_id.encode(), encode_rate(one), 0, 0) is None
    return found.snapshot()


def ids(rows: list[Rate], there: RateSet) -> list[str | None]:
    return [found and found.rate_id for found in standing_rates(rows, there)]


def test_a_row_with_the_prices_in_force_is_there_already() -> None:
    row = rate("import:acme/m#2", FEB)
    assert ids([row], log()) == [None]
    assert ids([row], log(rate("a", JAN))) == ["a"]
    assert ids([row], log(rate("a", FEB))) == ["a"]
    assert ids([row], log(rate("a", JAN, currency=None))) == ["a"]
    assert ids([row], log(rate("a", MAR))) == [None]
    assert ids([row], log(rate("a", JAN, "2"))) == [None]
    assert ids([row], log(rate("a", JAN, model="other"))) == [None]
    factor = {"rate_id": "a", "provider": "acme", "model": "m", "multiplier": "1"}
    assert ids([row], log(parse_rate({**factor, "effective_from": JAN}))) == [None]


def test_what_applies_last_counts() -> None:
    row = rate("import:acme/m#2", FEB)
    assert ids([row], log(rate("a", JAN), rate("b", FEB, "2"))) == [None]
    assert ids([row], log(rate("a", FEB, "2"), rate("b", FEB))) == ["b"]
    assert ids([row], log(rate("a", FEB), rate("b", JAN, "2"))) == ["a"]


def test_a_rate_that_is_withdrawn_is_not_there() -> None:
    row = rate("import:acme/m#2", FEB)
    for since in (JAN, FEB, MAR):
        assert ids([row], log(rate("a", JAN), withdrawal("a", since))) == [None]
    both = log(rate("a", JAN), rate("b", JAN, "2"), withdrawal("b", FEB))
    assert ids([row], both) == ["a"]


def test_an_id_that_was_given_is_written_and_a_known_one_stays() -> None:
    assert ids([rate("mine", FEB)], log(rate("a", JAN))) == [None]
    assert ids([rate("a", JAN)], log(rate("a", JAN))) == ["a"]


def test_rows_of_one_list_take_over_from_each_other() -> None:
    rows = [rate("import:acme/m#1", FEB, "2"), rate("import:acme/m#2", MAR)]
    assert ids(rows, log(rate("a", JAN))) == [None, None]
    assert ids(rows[::-1], log(rate("a", JAN))) == [None, None]
