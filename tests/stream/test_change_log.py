"""Changes of policies and prices on a real Kafka: written with their record, or not at all."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from pipeline.core.errors import InvalidField
from pipeline.core.policies import Policy, policy_fields
from pipeline.core.rates import parse_rate
from pipeline.settings import Settings
from pipeline.stream.change_log import Change, read_changes
from pipeline.stream.policy_log import (
    PolicyEdit,
    PolicyView,
    edit_policies,
    load_policies,
    write_policies,
)
from pipeline.stream.rate_log import load_rates
from pipeline.stream.rate_publishing import RatesRefused, completed, publish_rates
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.decided import until_decided


@dataclass(frozen=True)
class Place:
    client: dict[str, Any]
    topics: Topics

    async def policies(self) -> dict[str, Policy]:
        await until_decided(self.client, self.topics.policies)
        return (await load_policies(self.client, self.topics)).policies

    async def changes(self, limit: int = 100) -> list[Change]:
        """All changes, oldest first."""
        await until_decided(self.client, self.topics.changes)
        page = await read_changes(self.client, self.topics.changes, limit)
        return [change for _, change in page.changes[::-1]]


@pytest.fixture
async def place(kafka: str, topic_prefix: str) -> Place:
    found = Place({"bootstrap_servers": kafka}, Topics(topic_prefix))
    await create_or_check_topics(found.client, found.topics, partitions=1)
    return found


def policy(hard_cap: int, scope: str = "port:a|b") -> Policy:
    return Policy(scope, "tokens", "month", hard_cap=hard_cap)


async def test_a_change_says_who_when_before_and_after(place: Place) -> None:
    await write_policies(place.client, place.topics, "ann", [policy(1), policy(5, "all")])
    await write_policies(place.client, place.topics, "bob", [policy(2)])
    await edit_policies(
        place.client, place.topics, "ann", lambda _: [PolicyEdit(policy(2).key, None)]
    )
    found = await place.changes()
    assert [(c.who, c.what, c.key, c.before, c.after) for c in found] == [
        ("ann", "policy", "port:a%7Cb|tokens|month", None, policy_fields(policy(1))),
        ("ann", "policy", "all|tokens|month", None, policy_fields(policy(5, "all"))),
        ("bob", "policy", policy(1).key, policy_fields(policy(1)), policy_fields(policy(2))),
        ("ann", "policy", policy(1).key, policy_fields(policy(2)), None),
    ]
    at = datetime.fromisoformat(found[0].at)
    assert abs((datetime.now(UTC) - at).total_seconds()) < 600
    assert await place.policies() == {"all|tokens|month": policy(5, "all")}


async def test_pages_join(place: Place) -> None:
    for number in range(5):
        await write_policies(place.client, place.topics, "ann", [policy(number)])
    await until_decided(place.client, place.topics.changes)
    caps: list[int] = []
    before: int | None = None
    while before != 0:
        page = await read_changes(place.client, place.topics.changes, 2, before)
        caps += [change.after["hard_cap"] for _, change in page.changes if change.after]
        before = page.before
    assert caps == [4, 3, 2, 1, 0]


async def test_what_the_decision_refuses_leaves_nothing(place: Place) -> None:
    def refuse(_: PolicyView) -> list[PolicyEdit]:
        raise InvalidField("hard_cap", "is too large")

    with pytest.raises(InvalidField):
        await edit_policies(place.client, place.topics, "ann", refuse)
    assert await edit_policies(place.client, place.topics, "ann", lambda _: []) == -1
    with pytest.raises(InvalidField):  # not canonical
        await edit_policies(
            place.client, place.topics, "ann", lambda _: [PolicyEdit("port:a|b|tokens|month", None)]
        )
    assert (await place.policies(), await place.changes()) == ({}, [])


async def test_writers_that_read_the_same_state_do_not_both_win(place: Place) -> None:
    """Each adds one to what it read; no increment may be lost."""

    def add_one(view: PolicyView) -> list[PolicyEdit]:
        current = view.policies.get(policy(0).key)
        return [PolicyEdit(policy(0).key, policy((current.hard_cap or 0) + 1 if current else 1))]

    await asyncio.gather(
        *(edit_policies(place.client, place.topics, f"w{n}", add_one) for n in range(3))
    )
    assert (await place.policies())[policy(0).key].hard_cap == 3
    changes = await place.changes()
    assert {change.who for change in changes} == {"w0", "w1", "w2"}
    for earlier, later in itertools.pairwise(changes):
        assert later.before == earlier.after


@pytest.mark.parametrize(
    ("fault", "is_there"),
    [("change-fenced", False), ("change-sent", False), ("change-committed", True)],
)
async def test_a_kill_on_the_way_leaves_both_records_or_none(
    place: Place, kafka: str, fault: str, is_there: bool
) -> None:
    ended = await asyncio.to_thread(_budgets_set, kafka, place.topics.prefix, fault)
    assert ended == -signal.SIGKILL
    # The next writer fences what was left open, so nobody waits for its time-out.
    await write_policies(place.client, place.topics, "next", [policy(9, "all")])
    assert ("port:x|tokens|month" in await place.policies()) is is_there
    assert ("port:x|tokens|month" in {c.key for c in await place.changes()}) is is_there


def _budgets_set(kafka: str, prefix: str, fault: str) -> int:
    environ = {
        **os.environ,
        "TALLYPORT_KAFKA_BOOTSTRAP": kafka,
        "TALLYPORT_TOPIC_PREFIX": prefix,
        "FAULT_POINT": fault,
    }
    words = ["budgets", "set", "port:x", "--unit", "tokens", "--period", "month", "--hard", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        env=environ,
        timeout=120,
        check=False,
        capture_output=True,
    )
    return done.returncode


async def test_rates_are_published_once_with_their_change(place: Place) -> None:
    topics = place.topics
    settings = Settings()
    given = {"provider": "acme", "model": "*", "per_million": {"input_tokens": "1"}}
    rate = parse_rate(completed({**given, "rate_id": "a"}, datetime.now(UTC), 60))
    limits: dict[str, Any] = {"lead_s": 60, "currency": settings.currency}
    assert len(await publish_rates(place.client, topics, "ann", [rate], **limits)) == 1
    assert await publish_rates(place.client, topics, "ann", [rate], **limits) == []
    late = parse_rate({**given, "rate_id": "b", "effective_from": "2026-01-01T00:00:00Z"})
    with pytest.raises(RatesRefused, match="b: effective_from must be at least 60 s"):
        await publish_rates(place.client, topics, "ann", [rate, late], **limits)
    await until_decided(place.client, topics.rates)
    found = await load_rates(place.client, topics.rates, 60)
    assert [used.rate.rate_id for used in found.used] == ["a"]
    [change] = await place.changes()
    assert (change.who, change.what, change.key, change.before) == ("ann", "price", "a", None)
    assert change.after is not None
    assert change.after["per_million"] == {"input_tokens": "1"}


def test_what_is_left_out_of_a_rate_is_filled_in() -> None:
    now = datetime(2026, 11, 22, 10, 0, 0, 500, tzinfo=UTC)
    whole = completed({"provider": "acme", "rate_id": None}, now, 60)
    assert whole["rate_id"].startswith("set-20261122T100000Z-")
    assert whole["effective_from"] == "2026-11-22T10:01:10Z"
    assert whole["published_at"] == "2026-11-22T10:00:00Z"
    assert completed({"backdated": True}, now, 60)["effective_from"] == "2026-11-22T10:00:00Z"
    assert completed({"rate_id": "x"}, now, 60)["rate_id"] == "x"
