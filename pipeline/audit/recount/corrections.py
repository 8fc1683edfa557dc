"""The recount's own reading of corrections: the contract's section 9, on rows as they stand."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from pipeline.audit.recount.cells import DAY_US, Entry
from pipeline.audit.recount.envelopes import Unreadable, read_fields
from pipeline.audit.recount.events import COUNTERS, INPUT_PARTS, OUTPUT_PARTS, TEXTS, Reading
from pipeline.audit.recount.instants import NoInstant, parse_instant
from pipeline.audit.recount.prices import Priced, Prices

Row = Mapping[str, Any]
"""A ledger row by the names of ``rows.COLUMNS``."""

KINDS = ("void", "amend", "reprice")
AMOUNTS = (*COUNTERS, "audio_nano")
DECIDED_BY_THE_EVENT = (
    "inconsistent-tokens", "unknown-event", "unknown-rate", "already-void", "wrong-currency",
)  # fmt: skip
"""Reasons that the record alone does not tell."""

_NAMES = ("correction_id", "port_id", "event_id")
_REQUIRED = (*_NAMES, "kind", "reason")
_DAYS_END = 49_673
"""The ledger's days end with 2105."""
_MAX_COUNT = 10**10
_MAX_AUDIO = 10**7
_NANO = 10**9


class Correction(NamedTuple):
    """A valid correction; ``counts`` by the names of ``AMOUNTS``, ``day`` counts from 1970."""

    correction_id: str
    port_id: str
    event_id: str
    kind: str
    reason: str
    counts: dict[str, int]
    rate_id: str
    currency: str
    day: int | None


def read_correction(value: bytes | None) -> Correction:
    """The correction of a record; raises ``Unreadable`` with the first reason that applies."""
    fields = {name: field for name, field in read_fields(value, ()).items() if field is not None}
    kind = fields.get("kind")
    needed = [*_REQUIRED, *(["counts"] if kind == "amend" else []),
              *(["rate_id"] if kind == "reprice" else [])]  # fmt: skip
    if any(name not in fields for name in needed):
        raise Unreadable("missing-field")
    counts = fields.get("counts", {}) if kind == "amend" else {}
    rate = ["rate_id"] if kind == "reprice" else []
    texts = [fields[name] for name in (*_REQUIRED, *rate, "currency") if name in fields]
    if not all(isinstance(text, str) for text in texts) or not isinstance(counts, dict):
        raise Unreadable("wrong-type")
    counts = {name: count for name, count in counts.items() if count is not None}
    if any(_is_wrong(name, count) for name, count in counts.items()):
        raise Unreadable("wrong-type")
    if not _is_within(fields, counts):
        raise Unreadable("out-of-range")
    return Correction(
        fields["correction_id"],
        fields["port_id"],
        fields["event_id"],
        fields["kind"],
        fields["reason"],
        {
            "audio_nano" if name == "audio_seconds" else name: int(_scaled(name, count))
            for name, count in counts.items()
        },
        fields["rate_id"] if kind == "reprice" else "",
        fields.get("currency", ""),
        _day(fields.get("occurred_at")),
    )


def _is_wrong(name: str, count: Any) -> bool:
    if name in COUNTERS:
        return type(count) is not int
    if name != "audio_seconds":
        return False
    try:
        return isinstance(count, bool) or (isinstance(count, str) and "e" in count.lower()) or (
            not Decimal(str(count)).is_finite() and isinstance(count, str)
        )  # fmt: skip
    except ArithmeticError:
        return True


def _is_within(fields: Mapping[str, Any], counts: Mapping[str, Any]) -> bool:
    lengths = [(name, 128) for name in _NAMES] + [("reason", 1024)]
    lengths += [("rate_id", 1024)] if fields["kind"] == "reprice" else []
    if not all(1 <= len(fields[name]) <= most for name, most in lengths):
        return False
    if fields["kind"] not in KINDS or (fields["kind"] == "amend" and not counts):
        return False
    for name, count in counts.items():
        if name in COUNTERS:
            if not 0 <= count <= _MAX_COUNT:
                return False
        elif name != "audio_seconds" or not _is_length(count):
            return False
    return True


def _is_length(count: Any) -> bool:
    seconds = Decimal(repr(count) if isinstance(count, float) else count)
    if not seconds.is_finite() or not 0 <= seconds <= _MAX_AUDIO:
        return False
    return seconds * _NANO == int(seconds * _NANO)


def _scaled(name: str, count: Any) -> Any:
    if name != "audio_seconds":
        return count
    return Decimal(repr(count) if isinstance(count, float) else count) * _NANO


def _day(occurred_at: object) -> int | None:
    try:
        day = parse_instant(occurred_at) // DAY_US if isinstance(occurred_at, str) else -1
    except NoInstant:
        return None
    return day if 0 <= day < _DAYS_END else None


class Chain:
    """The entries of one event, added up; ``first`` is its row of ``entry_no`` 0."""

    def __init__(self, first: Row) -> None:
        self.first = first
        self.entry_no = 0
        self.requests: int = first["requests"]
        self.unpriced: int = first["unpriced_requests"]
        self.cost_nano: int = first["cost_nano"] or 0
        self.rate_id: str = first["rate_id"]
        self.status: str = first["price_status"]
        self.amounts: dict[str, int] = {name: first[name] for name in AMOUNTS}

    def add(self, row: Row) -> None:
        """Takes the next entry as it is."""
        self.entry_no = row["entry_no"]
        self.requests += row["requests"]
        self.unpriced += row["unpriced_requests"]
        self.cost_nano += row["cost_nano"] or 0
        self.rate_id = row["rate_id"] or self.rate_id
        self.status = row["price_status"]
        for name in AMOUNTS:
            self.amounts[name] += row[name]

    def next_row(
        self, correction: Correction, recorded_at_ms: int, prices: Prices, currency: str
    ) -> dict[str, Any] | str:
        """The row that a correction must make now, or the reason it is rejected for."""
        if self.requests < 1:
            return "already-void"
        if self.first["currency"] != currency or correction.currency not in ("", currency):
            return "wrong-currency"
        after: dict[str, int] = dict.fromkeys(AMOUNTS, 0)
        price: Priced | str | None = None
        if correction.kind != "void":
            after = {**self.amounts, **correction.counts}
            for whole, parts in (("input_tokens", INPUT_PARTS), ("output_tokens", OUTPUT_PARTS)):
                if sum(after[part] for part in parts) > after[whole]:
                    return "inconsistent-tokens"
            price = self._price(correction, after, prices)
            if isinstance(price, str):
                return price
        return self._row(correction, recorded_at_ms, after, price)

    def _price(
        self, correction: Correction, counts: Mapping[str, int], prices: Prices
    ) -> Priced | str:
        rate_id = correction.rate_id or self.rate_id
        if not rate_id:
            return Priced(None, "unpriced")
        price = prices.named(rate_id, _reading(self.first, counts))
        is_unpriced = not isinstance(price, str) and price.cost_nano is None
        return "unknown-rate" if is_unpriced and correction.kind == "reprice" else price

    def _row(
        self,
        correction: Correction,
        recorded_at_ms: int,
        after: Mapping[str, int],
        price: Priced | None,
    ) -> dict[str, Any]:
        first = self.first
        was, cost_nano = bool(self.unpriced), None if price is None else price.cost_nano
        is_unpriced = False if price is None else cost_nano is None
        moved: int | None = (cost_nano or 0) - self.cost_nano
        if was and (price is None or is_unpriced):
            moved = None
        row = dict(first)
        row.update({name: after[name] - self.amounts[name] for name in AMOUNTS})
        row.update(
            total_tokens=row["input_tokens"] + row["output_tokens"],
            recorded_at_ms=recorded_at_ms,
            correction_id=correction.correction_id,
            correction_reason=correction.reason,
            entry_no=self.entry_no + 1,
            requests=-1 if price is None else 0,
            unpriced_requests=int(is_unpriced) - int(was),
            cost_nano=moved,
            rate_id=self._row_rate(price),
            price_status=self.status if price is None else price.status,
            estimated=int(bool(first["estimated"]) or (price is not None and price.estimated)),
            reported_cost=_negated(first["reported_cost"]) if price is None else "",
        )
        return row

    def _row_rate(self, price: Priced | None) -> str:
        return self.rate_id if price is None else price.rate_id


def entry_of_row(row: Row) -> Entry:
    """What a row of the ledger adds to which cells."""
    named = (
        ("org", row["organization_id"]), ("group", row["group_id"]), ("user", row["user_id"]),
    )  # fmt: skip
    scopes = ["all", f"port:{row['port_id']}", *(f"{kind}:{i}" for kind, i in named if i)]
    cost, unpriced = row["cost_nano"] or 0, row["unpriced_requests"]
    is_org = row["billing_scope"] == "org"
    amounts = (
        row["requests"],
        row["total_tokens"],
        cost,
        cost if is_org else 0,
        unpriced,
        unpriced if is_org else 0,
    )
    return Entry(tuple(scopes), row["occurred_at_us"] // DAY_US, amounts)


def _reading(row: Row, counts: Mapping[str, int]) -> Reading:
    return Reading(
        row["event_id"],
        row["occurred_at_us"],
        row["port_id"],
        row["provider"],
        row["model"],
        {name: row[name] for name in TEXTS},
        dict(counts),
        row["kind"],
        row["feature"],
        row["billing_scope"],
        bool(row["self_hosted"]),
        bool(row["cache_hit"]),
        bool(row["estimated"]),
        None,
        row["tags"],
    )


def _negated(amount: str) -> str:
    if not amount or amount == "0":
        return amount
    return amount.removeprefix("-") if amount.startswith("-") else f"-{amount}"
