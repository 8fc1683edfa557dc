"""Price lists in CSV and JSON as rates.

CSV has a header. Names: ``provider`` and ``model`` (required; exact or globs), ``rate_id``,
``effective_from``, ``currency``, ``multiplier``, ``backdated`` (``true`` or ``false``), and prices:

    COUNTER or COUNTER_per_BASIS              in whole currency
    COUNTER_micro or COUNTER_micro_per_BASIS  in micro-units, 10⁻⁶ of it

COUNTER is a counter of an event, short or in full (``input`` or ``input_tokens``, ``audio`` or
``audio_seconds``, ``image``, ``request``); BASIS is ``million`` for tokens and characters,
``second`` for audio, ``unit`` for the rest, so ``input_micro_per_million`` is micro-units per
million input tokens. An empty cell is no price.

JSON is an array of such flat objects or of rates as they stand on ``pricing.rates``, or an
object that holds the array as ``rates``. Numbers are read as text, digit by digit.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, cast

from pipeline.core.errors import ConfigurationError, InvalidField
from pipeline.core.money import format_decimal, parse_decimal
from pipeline.core.rates import (
    BASES,
    KINDS,
    MAX_NAME_LENGTH,
    PER_MILLION,
    PER_SECOND,
    PER_UNIT,
    Rate,
    encode_rate,
    parse_rate,
)

Format = Literal["csv", "json"]

MAX_TEXT_LENGTH = 16 * 1024 * 1024
MAX_RATES = 20_000
SHOWN_PROBLEMS = 20

_PLAIN_FIELDS = (
    "rate_id",
    "provider",
    "model",
    "effective_from",
    "published_at",
    "currency",
    "multiplier",
    "backdated",
)
_BASIS_OF = {
    **dict.fromkeys(PER_MILLION, "million"),
    **dict.fromkeys(PER_SECOND, "second"),
    **dict.fromkeys(PER_UNIT, "unit"),
}
_SHORT = {
    "audio": "audio_seconds",
    "image": "images",
    "requests": "request",
    "web_search": "web_searches",
    **{name.removesuffix("_tokens"): name for name in PER_MILLION if name.endswith("_tokens")},
}
_COLUMN = re.compile(r"(?P<counter>\w+?)(?P<micro>_micro)?(?:_per_(?P<basis>[a-z]+))?", re.ASCII)
_MICRO_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a price list; lines count from 1."""

    line: int
    field: str
    rule: str

    def __str__(self) -> str:
        return f"line {self.line}, {self.field}: {self.rule}"


class InvalidPriceList(ConfigurationError):
    """A price list has mistakes; ``problems`` holds all of them."""

    def __init__(self, problems: list[Problem]) -> None:
        shown = "; ".join(str(problem) for problem in problems[:SHOWN_PROBLEMS])
        more = len(problems) - SHOWN_PROBLEMS
        super().__init__(f"{shown}; and {more} more" if more > 0 else shown)
        self.problems = tuple(problems)


def import_prices(
    text: str, list_format: Format, defaults: Mapping[str, Any] | None = None
) -> list[Rate]:
    """The rates of a price list, in its order.

    ``defaults`` stand in for fields that a row leaves out (``effective_from``, ``currency``,
    ``backdated``, …). A row without ``rate_id`` gets one made of its names, its time and its
    content, so the same row is the same rate when it is imported again. Raises
    ``InvalidPriceList`` with every mistake, and then nothing is to be used.
    """
    problems: list[Problem] = []
    if len(text) > MAX_TEXT_LENGTH:
        raise InvalidPriceList(
            [Problem(1, "file", f"must have at most {MAX_TEXT_LENGTH} characters")]
        )
    text = text.removeprefix("\ufeff")
    rows = _csv_rows(text, problems) if list_format == "csv" else _json_rows(text, problems)
    rates: list[Rate] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        if len(rates) >= MAX_RATES:
            problems.append(Problem(line, "file", f"must have at most {MAX_RATES} rates"))
            break
        faults: list[InvalidField] = []
        rate = _rate({**(defaults or {}), **row}, faults)
        problems += [Problem(line, fault.field, fault.rule) for fault in faults]
        if rate is None:
            continue
        first = seen.setdefault(rate.rate_id, line)
        if first != line:
            problems.append(Problem(line, "rate_id", f"{rate.rate_id} stands in line {first} too"))
        rates.append(rate)
    if problems:
        raise InvalidPriceList(sorted(problems, key=lambda problem: problem.line))
    if not rates:
        raise InvalidPriceList([Problem(1, "file", "must hold at least one rate")])
    return rates


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


def _rate(row: Mapping[str, Any], faults: list[InvalidField]) -> Rate | None:
    """The rate of a row, or None and what is wrong with it in ``faults``."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        if name in BASES and isinstance(value, Mapping):
            prices = cast("Mapping[str, Any]", value)
            record[name] = record.get(name, {}) | {k: _text(v) for k, v in prices.items()}
        elif name in (*_PLAIN_FIELDS, *KINDS, "rate", *BASES):
            # A number is read as text only where text would be an amount.
            is_amount = name in ("multiplier", "rate")
            record[name] = 0 if isinstance(value, _Number) and not is_amount else _text(value)
        elif value is not None:
            try:
                basis, counter, price = _price(name, value)
                prices = record.setdefault(basis, {})
                if counter in prices:
                    raise InvalidField(name, f"prices {counter} a second time")
                prices[counter] = price
            except InvalidField as fault:
                faults.append(fault)
    return _parsed(record, faults)


# Stand in for fields with a fault, so that the next fault of the same row is found as well.
_SOUND: dict[str, Any] = {
    "rate_id": "sound",
    "provider": "sound",
    "model": "sound",
    "effective_from": "2000-01-01T00:00:00Z",
    "published_at": None,
    "currency": "USD",
    "multiplier": "1",
    "backdated": False,
    "withdraws": "sound",
    "fx": "EUR",
    "rate": "1",
}


def _parsed(record: dict[str, Any], faults: list[InvalidField]) -> Rate | None:
    had_faults = bool(faults)
    if record.get("rate_id") is None:
        record = {**record, "rate_id": _SOUND["rate_id"]}
    made = record["rate_id"] is _SOUND["rate_id"]
    for _ in range(len(_SOUND)):
        try:
            rate = parse_rate(record)
        except InvalidField as fault:
            no_price = fault.field in BASES and had_faults
            if not no_price:
                faults.append(fault)
            if fault.field not in _SOUND:
                return None
            record = {**record, fault.field: _SOUND[fault.field]}
            continue
        if faults:
            return None
        return parse_rate({**record, "rate_id": _made_id(record, rate)}) if made else rate
    return None


def _price(name: str, value: object) -> tuple[str, str, str]:
    """Basis, counter and price of a column, as a rate has them."""
    found = _COLUMN.fullmatch(name)
    counter = found["counter"] if found is not None else ""
    counter = _SHORT.get(counter, counter)
    if found is None or counter not in _BASIS_OF:
        raise InvalidField(name, "is no column of a price list")
    basis = _BASIS_OF[counter]
    if found["basis"] not in (None, basis):
        raise InvalidField(name, f"must be per {basis}: {counter}_per_{basis}")
    amount = parse_decimal(_text(value), name)
    if amount < 0:
        raise InvalidField(name, "must not be negative")
    if found["micro"]:
        sign, digits, exponent = amount.as_tuple()
        amount = Decimal((sign, digits, cast("int", exponent) - _MICRO_DECIMALS))
    return f"per_{basis}", counter, format_decimal(amount)


def _text(value: object) -> object:
    """A JSON number as plain text; everything else as it is."""
    return str(value) if isinstance(value, _Number) else value


def _made_id(record: Mapping[str, Any], rate: Rate) -> str:
    """An id for a rate that has none: its names, and a digest of all of it."""
    digest = hashlib.sha256(encode_rate(rate)).hexdigest()[:8]
    fields = ("provider", "model", "withdraws", "fx")
    name = "/".join(str(record[field]) for field in fields if record.get(field) is not None)
    room = MAX_NAME_LENGTH - len("import:#") - len(digest)
    return f"import:{name.replace('*', 'any')[:room]}#{digest}"


def _csv_rows(text: str, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader((line + "\n" for line in text.split("\n")), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                faults = list(_header_problems(header, first))
                problems += faults
                if faults:
                    return
            elif len(cells) != len(header):
                rule = f"must have {len(header)} cells like the header, not {len(cells)}"
                problems.append(Problem(first, "row", rule))
            else:
                yield first, _csv_row(header, cells)
    except csv.Error as error:
        problems.append(Problem(line, "row", f"is no CSV: {error}"))


def _csv_row(header: list[str], cells: list[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()
    }
    if row.get("backdated") in ("true", "false"):
        row["backdated"] = row["backdated"] == "true"
    return row


def _header_problems(header: list[str], line: int) -> Iterator[Problem]:
    for number, name in enumerate(header):
        if name in header[:number]:
            yield Problem(line, name or "header", "stands twice in the header")
        elif name not in (*_PLAIN_FIELDS, "withdraws", "fx", "rate"):
            try:
                _price(name, "0")
            except InvalidField as error:
                yield Problem(line, error.field or "header", error.rule)


def _json_rows(text: str, problems: list[Problem]) -> Iterator[tuple[int, dict[str, Any]]]:
    line, counted = 1, 0
    try:
        for position, row in _elements(text):
            line += text.count("\n", counted, position)
            counted = position
            if isinstance(row, dict):
                yield line, cast("dict[str, Any]", row)
            else:
                problems.append(Problem(line, "rate", "must be an object"))
    except json.JSONDecodeError as error:
        problems.append(Problem(error.lineno, "file", f"is no JSON: {error.msg}"))
    except RecursionError:
        problems.append(Problem(1, "file", "is nested too deeply"))


_OPENING = re.compile(r'\s*(?P<object>\{\s*"rates"\s*:\s*)?\[\s*')
_SPACE = re.compile(r"[ \t\r\n]*")


def _elements(text: str) -> Iterator[tuple[int, object]]:
    """The elements of the array of rates, each with the place where it begins."""
    decoder = json.JSONDecoder(parse_float=_Number, parse_int=_Number)
    opened = _OPENING.match(text)
    if opened is None:
        rule = 'an array of rates, or an object that holds one as "rates", is expected'
        raise json.JSONDecodeError(rule, text, 0)
    at = opened.end()
    if text[at : at + 1] != "]":
        while True:
            element, end = decoder.raw_decode(text, at)
            yield at, element
            at = _skip(text, end)
            if text[at : at + 1] != ",":
                break
            at = _skip(text, at + 1)
    closing = r"\]\s*\}\s*" if opened["object"] else r"\]\s*"
    if re.compile(closing).fullmatch(text, at) is None:
        raise json.JSONDecodeError("the end of the rates is expected", text, at)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found is not None else at
