"""Rates as they stand on ``pricing.rates``: reading, checking, and which of them are used.

Whether a record is used depends only on the log: its place, its key and value, its Kafka
timestamp, and the lead time. So every reader of the same log comes to the same set.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import msgspec

from pipeline.core.errors import InvalidField
from pipeline.core.money import format_decimal, parse_decimal
from pipeline.core.tariffs import REQUEST, TOKEN_COUNTERS
from pipeline.core.timestamps import parse_rfc3339_us

PER_MILLION = (*TOKEN_COUNTERS, "characters")
PER_SECOND = ("audio_seconds",)
PER_UNIT = (REQUEST, "images", "web_searches")
KINDS = ("withdraws", "fx", "multiplier")
BASES = ("per_million", "per_second", "per_unit")

MAX_NAME_LENGTH = 128
MAX_RECORD_BYTES = 65_536
MAX_DECIMALS = 18
MAX_WHOLE_DIGITS = 12

Amounts = tuple[tuple[str, Decimal], ...]


@dataclass(frozen=True, slots=True)
class PriceRate:
    """Prices for the models that ``provider`` and ``model`` (exact or globs) match.

    ``currency`` None means the deployment's. Amounts are in whole currency per 10⁶ units, per
    second and per unit. ``published_at`` is information only.
    """

    rate_id: str
    provider: str
    model: str
    effective_from_us: int
    per_million: Amounts = ()
    per_second: Amounts = ()
    per_unit: Amounts = ()
    currency: str | None = None
    backdated: bool = False
    published_at: str | None = None

    @property
    def is_last_resort(self) -> bool:
        return self.provider == "*" and self.model == "*"


@dataclass(frozen=True, slots=True)
class Multiplier:
    """Applied to the rate that would match otherwise."""

    rate_id: str
    provider: str
    model: str
    effective_from_us: int
    factor: Decimal
    backdated: bool = False
    published_at: str | None = None


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """From ``effective_from_us`` on, the rate ``withdraws`` no longer applies."""

    rate_id: str
    withdraws: str
    effective_from_us: int
    backdated: bool = False
    published_at: str | None = None


@dataclass(frozen=True, slots=True)
class FxRate:
    """One unit of currency ``fx`` costs ``rate`` units of the deployment's."""

    rate_id: str
    fx: str
    rate: Decimal
    effective_from_us: int
    backdated: bool = False
    published_at: str | None = None


Rate = PriceRate | Multiplier | Withdrawal | FxRate


def parse_rate(value: bytes | str | Mapping[str, Any]) -> Rate:
    """The rate in a record's value; raises ``InvalidField`` naming the field and the rule."""
    record = value if isinstance(value, Mapping) else _decode(value)
    kinds = [kind for kind in KINDS if record.get(kind) is not None]
    has_prices = any(record.get(basis) is not None for basis in BASES)
    if len(kinds) > 1 or (kinds and has_prices):
        names = [*kinds, *(basis for basis in BASES if record.get(basis) is not None)]
        raise InvalidField(names[0], f"cannot stand beside {names[1]} in one record")
    common: dict[str, Any] = {
        "rate_id": _rate_id(record),
        "effective_from_us": parse_instant(record.get("effective_from"), "effective_from"),
        "backdated": _flag(record, "backdated"),
        "published_at": _optional_name(record, "published_at"),
    }
    if kinds == ["withdraws"]:
        return Withdrawal(withdraws=_name(record, "withdraws"), **common)
    if kinds == ["fx"]:
        return FxRate(fx=_currency(record, "fx"), rate=_factor(record, "rate", 1), **common)
    common |= {"provider": _name(record, "provider"), "model": _name(record, "model")}
    if kinds == ["multiplier"]:
        return Multiplier(factor=_factor(record, "multiplier", 0), **common)
    return _price_rate(record, common)


def rate_record(rate: Rate) -> dict[str, Any]:
    """``rate`` in the contract's form, canonical: fixed field order and decimal strings."""
    record: dict[str, Any] = {"rate_id": rate.rate_id}
    if isinstance(rate, PriceRate | Multiplier):
        record |= {"provider": rate.provider, "model": rate.model}
    elif isinstance(rate, Withdrawal):
        record["withdraws"] = rate.withdraws
    else:
        record |= {"fx": rate.fx, "rate": format_decimal(rate.rate)}
    record["effective_from"] = format_instant(rate.effective_from_us)
    if rate.published_at is not None:
        record["published_at"] = rate.published_at
    if rate.backdated:
        record["backdated"] = True
    if isinstance(rate, Multiplier):
        record["multiplier"] = format_decimal(rate.factor)
    if isinstance(rate, PriceRate):
        if rate.currency is not None:
            record["currency"] = rate.currency
        for basis in BASES:
            amounts: Amounts = getattr(rate, basis)
            if amounts:
                record[basis] = {name: format_decimal(amount) for name, amount in amounts}
    return record


def encode_rate(rate: Rate) -> bytes:
    """``rate`` as the canonical JSON of a record's value; its key is ``rate_id`` in UTF-8."""
    return msgspec.json.encode(rate_record(rate))


# -- which records are used ------------------------------------------------------------------

REASONS = (
    "malformed",
    "key-mismatch",
    "other-content",
    "too-early",
    "unknown-rate",
    "wrong-currency",
)


@dataclass(frozen=True, slots=True)
class UsedRate:
    """A rate that counts, and its place in the log."""

    offset: int
    rate: Rate


@dataclass(frozen=True, slots=True)
class IgnoredRecord:
    """A record that does not count: why, in a word of ``REASONS`` and in a sentence."""

    offset: int
    rate_id: str
    reason: str
    detail: str
    rate: Rate | None = None


@dataclass(frozen=True, slots=True)
class RateSet:
    """What the log says up to ``next_offset`` (the offset after its last record read)."""

    next_offset: int
    currency: str
    used: tuple[UsedRate, ...] = ()
    ignored: tuple[IgnoredRecord, ...] = ()


class RateLog:
    """Folds the records of the rates topic, in order, into the set that is used."""

    def __init__(self, currency: str = "USD") -> None:
        self._currency = currency
        self._next_offset = 0
        self._used: dict[str, UsedRate] = {}
        self._ignored: list[IgnoredRecord] = []
        self._convertible = {currency, "USD"}

    def feed(
        self,
        offset: int,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        lead_s: int,
    ) -> IgnoredRecord | None:
        """Takes the next record; returns why it is ignored, None when it is used or a repeat.

        A record at or below an offset fed before is a replay and changes nothing.
        """
        if offset < self._next_offset:
            return None
        self._next_offset = offset + 1
        try:
            rate = parse_rate(value or b"")
        except InvalidField as error:
            return self._ignore(offset, _text(key), "malformed", str(error))
        refusal = self._refusal(rate, key, timestamp_ms, lead_s)
        if refusal is not None:
            return self._ignore(offset, rate.rate_id, *refusal, rate)
        if rate.rate_id not in self._used:
            self._used[rate.rate_id] = UsedRate(offset, rate)
            if isinstance(rate, FxRate):
                self._convertible.add(rate.fx)
        return None

    def snapshot(self) -> RateSet:
        """The set as of now; it does not change when more is fed."""
        used = tuple(self._used.values())
        return RateSet(self._next_offset, self._currency, used, tuple(self._ignored))

    def _ignore(
        self, offset: int, rate_id: str, reason: str, detail: str, rate: Rate | None = None
    ) -> IgnoredRecord:
        ignored = IgnoredRecord(offset, rate_id, reason, detail, rate)
        self._ignored.append(ignored)
        return ignored

    def _refusal(
        self, rate: Rate, key: bytes | None, timestamp_ms: int, lead_s: int
    ) -> tuple[str, str] | None:
        if key != rate.rate_id.encode():
            return "key-mismatch", f"key {_text(key)!r} must equal rate_id {rate.rate_id!r}"
        first = self._used.get(rate.rate_id)
        if first is not None:
            if content_of(first.rate) == content_of(rate):
                return None
            return (
                "other-content",
                f"rate_id {rate.rate_id} stands at offset {first.offset} with other content",
            )
        earliest_us = (timestamp_ms + lead_s * 1000) * 1000
        if rate.effective_from_us < earliest_us and not rate.backdated:
            return (
                "too-early",
                f"effective_from must be at least {lead_s} s after the record's arrival "
                f"({format_instant(earliest_us)} or later), or the record says backdated",
            )
        return self._reference_refusal(rate)

    def _reference_refusal(self, rate: Rate) -> tuple[str, str] | None:
        if isinstance(rate, Withdrawal):
            target = self._used.get(rate.withdraws)
            if target is None:
                return "unknown-rate", f"withdraws names {rate.withdraws!r}, which is not in use"
            if isinstance(target.rate, Withdrawal):
                return "unknown-rate", "withdraws names a withdrawal; publish a new rate instead"
        if isinstance(rate, FxRate) and rate.fx == self._currency:
            return "wrong-currency", f"fx must differ from the deployment's {self._currency}"
        if (
            isinstance(rate, PriceRate)
            and rate.currency is not None
            and rate.currency not in self._convertible
        ):
            return (
                "wrong-currency",
                f"currency must be {self._currency} or one that an earlier fx rate converts",
            )
        return None


def content_of(rate: Rate) -> dict[str, Any]:
    """What makes two records of one id the same; ``published_at`` is information only."""
    record = rate_record(rate)
    record.pop("published_at", None)
    return record


# -- fields ------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US = (datetime(1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_END_US = (datetime(9999, 12, 31, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_CURRENCY = re.compile(r"[A-Z]{3}")


def parse_instant(text: object, field: str) -> int:
    """Microseconds since 1970 of an RFC 3339 string with offset; raises ``InvalidField``."""
    rule = 'must be an RFC 3339 time with offset such as "2026-12-01T00:00:00Z"'
    instant_us = parse_rfc3339_us(text) if isinstance(text, str) else None
    if instant_us is None:
        raise InvalidField(field, rule)
    if not _FIRST_US <= instant_us < _END_US:
        raise InvalidField(field, "must lie in the years 1 to 9999 (UTC)")
    return instant_us


def format_instant(instant_us: int) -> str:
    """An instant as RFC 3339 in UTC, without a fraction where it is zero."""
    moment = _EPOCH + timedelta(microseconds=instant_us)
    return moment.isoformat().replace("+00:00", "Z")


def _decode(value: bytes | str) -> Mapping[str, Any]:
    if not value:
        raise InvalidField("value", "must be a JSON object, not empty")
    if len(value) > MAX_RECORD_BYTES:
        raise InvalidField("value", f"must have at most {MAX_RECORD_BYTES} bytes")
    try:
        record = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidField("value", f"must be JSON: {error}") from error
    if not isinstance(record, dict):
        raise InvalidField("value", "must be a JSON object")
    return cast("dict[str, Any]", record)


def _text(key: bytes | None) -> str:
    return "" if key is None else key.decode(errors="replace")


def _optional_name(record: Mapping[str, Any], field: str) -> str | None:
    return None if record.get(field) is None else _name(record, field)


def _name(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if value is None:
        raise InvalidField(field, "is required")
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME_LENGTH:
        raise InvalidField(field, f"must be a string of 1 to {MAX_NAME_LENGTH} characters")
    return value


def _rate_id(record: Mapping[str, Any]) -> str:
    rate_id = _name(record, "rate_id")
    # A row's rate_id is RATE or RATE*MULTIPLIER, and book: marks the built-in book.
    if "*" in rate_id or rate_id.startswith("book:"):
        raise InvalidField("rate_id", "must not contain '*' nor start with 'book:'")
    return rate_id


def _currency(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or _CURRENCY.fullmatch(value) is None:
        raise InvalidField(field, 'must be a currency code such as "USD"')
    return value


def _flag(record: Mapping[str, Any], field: str) -> bool:
    value = record.get(field)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidField(field, "must be true or false")
    return value


def _amount(value: object, field: str) -> Decimal:
    amount = parse_decimal(value, field)
    whole, _, decimals = format_decimal(abs(amount)).partition(".")
    if amount < 0:
        raise InvalidField(field, "must not be negative")
    if len(whole) > MAX_WHOLE_DIGITS or len(decimals) > MAX_DECIMALS:
        rule = f"must have at most {MAX_WHOLE_DIGITS} digits and {MAX_DECIMALS} decimals"
        raise InvalidField(field, rule)
    return Decimal(format_decimal(amount))


def _factor(record: Mapping[str, Any], field: str, above: int) -> Decimal:
    if record.get(field) is None:
        raise InvalidField(field, "is required")
    factor = _amount(record[field], field)
    if above and not factor:
        raise InvalidField(field, "must be above 0")
    return factor


def _price_rate(record: Mapping[str, Any], common: Mapping[str, Any]) -> PriceRate:
    amounts = {
        "per_million": _amounts(record, "per_million", PER_MILLION),
        "per_second": _amounts(record, "per_second", PER_SECOND),
        "per_unit": _amounts(record, "per_unit", PER_UNIT),
    }
    if not any(amounts.values()):
        raise InvalidField("per_million", "at least one price is required")
    currency = None if record.get("currency") is None else _currency(record, "currency")
    return PriceRate(currency=currency, **amounts, **common)


def _amounts(record: Mapping[str, Any], basis: str, names: tuple[str, ...]) -> Amounts:
    given = record.get(basis)
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        raise InvalidField(basis, "must be an object of prices")
    prices = cast("Mapping[str, Any]", given)
    for name in prices:
        if name not in names:
            raise InvalidField(f"{basis}.{name}", f"must be one of {', '.join(names)}")
    return tuple(
        (name, _amount(prices[name], f"{basis}.{name}"))
        for name in names
        if prices.get(name) is not None
    )
