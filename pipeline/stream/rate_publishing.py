"""New rates: completed, checked against the log as it is, and written with who wrote them."""

import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from pipeline.core.errors import ConfigurationError
from pipeline.core.rates import Rate, RateLog, RateSet, encode_rate, rate_record
from pipeline.stream.change_log import ChangeLogError, ChangeTopics, Planned, commit_changes
from pipeline.stream.rate_log import RateLogError, load_rates

ARRIVAL_MARGIN_S = 10
"""A rate that is to apply soon still has to reach Kafka, whose clock may differ a little."""


class RateTopics(ChangeTopics, Protocol):
    """The full names of the topics that hold rates and their changes."""

    @property
    def rates(self) -> str: ...


class RatesRefused(ConfigurationError):
    """Rates that would not be used if they were written; one line for each."""


def completed(record: Mapping[str, Any], now: datetime, lead_s: int) -> dict[str, Any]:
    """``record`` with the fields that may be left out: id, start and date of publication.

    Without ``effective_from`` a rate begins as soon as the lead time allows, a backdated one now.
    """
    now = now.astimezone(UTC).replace(microsecond=0)
    earliest = now + timedelta(seconds=lead_s + ARRIVAL_MARGIN_S)
    defaults = {
        "rate_id": f"set-{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}",
        "effective_from": rfc3339(now if record.get("backdated") is True else earliest),
        "published_at": rfc3339(now),
    }
    given = {name: value for name, value in record.items() if value is not None}
    return {**defaults, **given}


def rfc3339(moment: datetime) -> str:
    """A time in UTC, without a fraction where it is zero."""
    text = moment.astimezone(UTC).isoformat(timespec="auto" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


async def publish_rates(
    client: Mapping[str, Any],
    topics: RateTopics,
    who: str,
    rates: Sequence[Rate],
    *,
    lead_s: int,
    currency: str,
    dry_run: bool = False,
) -> list[int]:
    """Writes those of ``rates`` that are not there yet, all or none; their offsets.

    Raises ``RatesRefused`` for what would not be used, and ``RateLogError`` when the log cannot
    be read or written, or when a rate came too late to be used after all.
    """

    async def plan() -> list[Planned]:
        there = await load_rates(client, topics.rates, lead_s, currency)
        _refuse(rates, there, lead_s, currency)
        known = {used.rate.rate_id for used in there.used}
        return [_planned(topics.rates, rate) for rate in rates if rate.rate_id not in known]

    if dry_run:
        await plan()
        return []
    try:
        offsets = await commit_changes(client, topics, who, plan)
    except (ChangeLogError, KafkaError) as error:
        raise RateLogError(f"topic {topics.rates} cannot be written: {error}") from error
    if offsets:
        there = await load_rates(client, topics.rates, lead_s, currency)
        _check_used(there, set(offsets))
    return offsets


def _planned(topic: str, rate: Rate) -> Planned:
    key = rate.rate_id.encode()
    return Planned(topic, key, encode_rate(rate), "price", None, rate_record(rate))


def _refuse(rates: Sequence[Rate], there: RateSet, lead_s: int, currency: str) -> None:
    log = RateLog(currency)
    for used in there.used:
        log.feed(used.offset, used.rate.rate_id.encode(), encode_rate(used.rate), 0, 0)
    now_ms = int(time.time() * 1000)
    refused: list[str] = []
    for offset, rate in enumerate(rates, there.next_offset):
        found = log.feed(offset, rate.rate_id.encode(), encode_rate(rate), now_ms, lead_s)
        if found is not None:
            refused.append(f"{rate.rate_id}: {found.detail}")
    if refused:
        raise RatesRefused("\n".join(refused))


def _check_used(there: RateSet, offsets: set[int]) -> None:
    unused = [
        f"{item.rate_id} at offset {item.offset} is not used: {item.detail}"
        for item in there.ignored
        if item.offset in offsets
    ]
    if unused:
        raise RateLogError("\n".join(unused))
