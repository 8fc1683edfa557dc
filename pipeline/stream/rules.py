"""Which price version and settings decided from which source offset on.

Whatever decides an event's fate is recorded before it decides: when a flush uses another price
version or another setting than the one before it, a record goes to the rules topic in the same
transaction. An auditor that reads only the input needs nothing else of ours.
"""

from hashlib import blake2b

import msgspec

from pipeline.core.prices import PriceVersion
from pipeline.stream.context import StreamContext


def encode_rules(context: StreamContext, prices: PriceVersion) -> bytes:
    """What decides now, as canonical JSON without the partition and offset."""
    rates_next_offset, book_digest = prices.key
    settings = context.settings
    return msgspec.json.encode(
        {
            "epoch": context.epoch,
            "rates_next_offset": rates_next_offset,
            "book": book_digest,
            "max_event_age_days": settings.max_event_age_days,
            "dedupe_days": settings.dedupe_days,
            "max_future_skew_s": settings.max_future_skew_s,
            "price_lead_s": settings.price_lead_s,
            "currency": settings.currency,
        }
    )


def rules_digest(rules: bytes) -> bytes:
    """16 bytes that stand for ``rules`` in a table's position."""
    return blake2b(rules, digest_size=16).digest()


def rules_record(rules: bytes, partition: int, from_offset: int) -> bytes:
    """The record: ``rules`` hold for ``partition`` from ``from_offset`` on."""
    body = msgspec.json.decode(rules)
    return msgspec.json.encode({"partition": partition, "from_offset": from_offset, **body})
