"""What decided a partition's events from an offset on, as the rules topic records it."""

import json
from typing import NamedTuple

from pipeline.core.errors import CorruptRecord


class Rules(NamedTuple):
    """In force from ``from_offset`` until the next record of the partition."""

    from_offset: int
    rates_next_offset: int
    book: str
    max_event_age_days: int
    dedupe_days: int
    max_future_skew_s: int
    price_lead_s: int
    currency: str


class RulesRecord(NamedTuple):
    """A record of the rules topic."""

    partition: int
    epoch: int
    rules: Rules


def read_rules(value: bytes, where: str) -> RulesRecord:
    """The rules of a record; raises ``CorruptRecord`` naming ``where``."""
    try:
        body = json.loads(value)
        rules = Rules(**{name: body[name] for name in Rules._fields})
        return RulesRecord(body["partition"], body["epoch"], rules)
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptRecord(f"{where}: not a record of the rules: {error}") from error
