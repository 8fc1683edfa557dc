"""What an accepted event's ledger row must say, and the digest by which two rows are held equal.

A digest is taken of a text that both sides can build: each string behind its length in code
points, the integers with commas between. ``audit.ledger`` lets ClickHouse build the same.
"""

from hashlib import sha256
from typing import Any

from pipeline.audit.recount.events import COUNTERS, TEXTS, Reading
from pipeline.audit.recount.prices import Priced

EVENT_TEXTS = (
    "event_id",
    "port_id",
    "provider",
    "model",
    *TEXTS,
    "feature",
    "kind",
    "billing_scope",
    "reported_cost",
    "correction_id",
    "correction_reason",
)
EVENT_NUMBERS = (
    "occurred_at_us",
    "recorded_at_ms",
    *COUNTERS,
    "audio_nano",
    "total_tokens",
    "entry_no",
    "requests",
    "self_hosted",
    "cache_hit",
)
PRICE_TEXTS = ("currency", "rate_id", "price_status")
PRICE_NUMBERS = ("cost_nano", "unpriced_requests", "estimated")
COLUMNS = (*EVENT_TEXTS, *EVENT_NUMBERS, "tags", *PRICE_TEXTS, *PRICE_NUMBERS)
"""All columns of a ledger entry but those that say where it came from."""

EVENT_BYTES = 12
PRICE_BYTES = 8
NO_NUMBER = "null"

_AMOUNTS = frozenset((*COUNTERS, "audio_nano", "total_tokens", "requests", "unpriced_requests"))
AMOUNTS = (*(name for name in COLUMNS if name in _AMOUNTS), "cost_nano")
"""The columns that are added up."""


def event_values(event: Reading, recorded_at_ms: int) -> tuple[list[str], list[int]]:
    """The values of ``EVENT_TEXTS`` and ``EVENT_NUMBERS``."""
    texts = [
        event.event_id,
        event.port_id,
        event.provider,
        event.model,
        *event.texts.values(),
        event.feature,
        event.kind,
        event.billing_scope,
        plain(event.reported_cost),
        "",
        "",
    ]
    numbers = [
        event.occurred_at_us,
        recorded_at_ms,
        *event.counts.values(),
        event.counts["input_tokens"] + event.counts["output_tokens"],
        0,
        1,
        int(event.self_hosted),
        int(event.cache_hit),
    ]
    return texts, numbers


def price_values(
    event: Reading, price: Priced, currency: str
) -> tuple[list[str], list[int | None]]:
    """The values of ``PRICE_TEXTS`` and ``PRICE_NUMBERS``."""
    unpriced = int(price.cost_nano is None)
    estimated = int(event.estimated or price.estimated)
    return [currency, price.rate_id, price.status], [price.cost_nano, unpriced, estimated]


def row_values(event: Reading, recorded_at_ms: int, price: Priced, currency: str) -> dict[str, Any]:
    """The whole row by the names of ``COLUMNS``."""
    texts, numbers = event_values(event, recorded_at_ms)
    price_texts, price_numbers = price_values(event, price, currency)
    tags = dict(sorted(event.tags.items()))
    values = (*texts, *numbers, tags, *price_texts, *price_numbers)
    return dict(zip(COLUMNS, values, strict=True))


def row_digest(event: Reading, recorded_at_ms: int, price: Priced, currency: str) -> bytes:
    """``EVENT_BYTES`` over what was sent, then ``PRICE_BYTES`` over what it costs and why."""
    texts, numbers = event_values(event, recorded_at_ms)
    if event.tags:
        texts += [text for tag in sorted(event.tags.items()) for text in tag]
    sent = sha256(canonical(texts, numbers)).digest()[:EVENT_BYTES]
    return sent + sha256(canonical(*price_values(event, price, currency))).digest()[:PRICE_BYTES]


def canonical(texts: list[str], numbers: list[Any]) -> bytes:
    """The text that a digest is taken of."""
    parts = [f"{len(text)}:{text}" for text in texts]
    shown = ",".join([NO_NUMBER if number is None else str(number) for number in numbers])
    return f"{''.join(parts)}|{shown}".encode()


def plain(amount: Any) -> str:
    """A decimal without exponent and trailing zeros; ``""`` for None."""
    if amount is None:
        return ""
    text = f"{amount:f}"
    text = text.rstrip("0").removesuffix(".") if "." in text else text
    return "0" if text in ("-0", "") else text
