"""``tallyport forget``: a user leaves names, policies, states and the ledger; usage stays.

The order of side effects (a fault point lies between each pair):

1. Register the pseudonym: from here on sinks write it in the place of the id, also in the round
   that is under way.
2. Delete the user's name, in one transaction with the log of changes.
3. Delete the user's own policies, in another one.
4. Delete the user's states: the worker does so for own policies, the others get a tombstone here.
5. Put the pseudonym in the place of the id in the ledger, days marked before and after, and drop
   the rollups that had the id.
6. Drop the records of the user's policies that the ledger kept for a restore, once a sink has noted
   that the policies are gone.
7. Look whether anything is left.

Each step may be done twice, and a run that was cut short is simply run again.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import ConfigurationError, Refused, TallyportError
from pipeline.core.scopes import PERIODS, UNITS, is_wildcard, parse_scope, record_key
from pipeline.faults import point
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ledger.client import connect, ledger_address, ledger_errors
from pipeline.ledger.forgetting import (
    check_forgettable,
    drop_policy_records,
    entries_of,
    left_of,
    policies_in_force,
    policy_records,
    rename_user,
)
from pipeline.ledger.migrate import pending
from pipeline.ledger.pseudonyms import load_pseudonyms, remember_forgotten
from pipeline.settings import Settings
from pipeline.stream.flush import scope_home
from pipeline.stream.name_log import edit_name
from pipeline.stream.policy_log import PolicyEdit, PolicyView, edit_policies
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics

WORKER_WAIT_S = 5.0
"""A running worker deletes states of deleted policies within a second."""
RECORDER_WAIT_S = 60.0
"""A recorder notes a deletion within a second; a sink that starts again takes ten."""
RECORDERS_APART_S = 2.0
"""Each sink has a recorder: the last one notes a deletion so much after the first."""
POLL_S = 0.2
QUERY_TIMEOUT_S = 3_600


@dataclass
class Forgotten:
    """What was done for one user; ``left`` counts rows that still carry the id (0 when done)."""

    scope: str
    pseudonym: str
    name: bool
    policies: list[str]
    states: list[str]
    entries: int = 0
    days: int = 0
    left: int = 0

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def user_of(scope: str) -> str:
    """The id of ``user:ID``; raises ``ConfigurationError`` for every other scope."""
    if not scope.startswith("user:"):
        raise ConfigurationError(f"only users are forgotten: user:ID, not {scope!r}")
    internal = parse_scope(scope)
    if is_wildcard(internal):
        raise ConfigurationError("user:* is every user; name one")
    return internal.partition(":")[2]


async def forget_user(settings: Settings, scope: str, who: str) -> Forgotten:
    """Steps 1 to 7; ``who`` goes to the log of changes.

    Raises ``Refused`` when the ledger cannot be changed now, ``TallyportError`` when something is
    left of the user, no sink notes that the policies are gone, or a server cannot be used.
    """
    user_id = user_of(scope)
    await check_kafka(settings)
    address = ledger_address(settings, write=True)
    client = await asyncio.to_thread(connect, address, query_timeout_s=QUERY_TIMEOUT_S)
    try:
        with ledger_errors(address):
            return await _Forgetting(settings, client, user_id, who).run()
    finally:
        await asyncio.to_thread(client.close)


class _Forgetting:
    def __init__(self, settings: Settings, client: Client, user_id: str, who: str) -> None:
        self._kafka = client_kwargs(settings)
        self._topics = Topics(settings.topic_prefix)
        self._partitions = settings.partition_count
        self._ledger = client
        self._user_id = user_id
        self._scope = f"user:{user_id}"
        self._who = who
        self._keys = [record_key(self._scope, u, p) for u in UNITS for p in PERIODS]

    async def run(self) -> Forgotten:
        await asyncio.to_thread(self._check)
        pseudonym = await asyncio.to_thread(remember_forgotten, self._ledger, self._user_id)  # 1
        point("forget-registered")
        offset = await edit_name(  # 2
            self._kafka, self._topics, self._who, self._scope, lambda _: None
        )
        point("forget-name")
        deleted = await self._delete_policies()  # 3
        point("forget-policies")
        states = await self._delete_states(deleted)  # 4
        point("forget-states")
        found = Forgotten(self._scope, pseudonym, offset >= 0, deleted, states)
        found.entries = await asyncio.to_thread(entries_of, self._ledger, self._user_id)
        days = await asyncio.to_thread(rename_user, self._ledger, self._user_id, pseudonym)  # 5
        found.days = len(days)
        point("forget-entries")
        await self._drop_records()  # 6
        point("forget-records")
        found.left = await asyncio.to_thread(left_of, self._ledger, self._user_id)  # 7
        if found.left:
            raise TallyportError(
                f"{found.left} rows of the ledger still carry {self._scope}: stop sinks of older "
                "releases, if there are any, and run `tallyport forget` again"
            )
        return found

    def _check(self) -> None:
        if missing := pending(self._ledger):
            raise Refused(
                f"the ledger lacks {len(missing)} migrations (first {missing[0]}); "
                "run `tallyport migrate`"
            )
        check_forgettable(self._ledger)
        if self._user_id in load_pseudonyms(self._ledger).forgotten:
            raise Refused(f"{self._scope} is the pseudonym of a user who is forgotten")

    async def _delete_policies(self) -> list[str]:
        found: list[str] = []

        def decide(view: PolicyView) -> list[PolicyEdit]:
            found[:] = [key for key in self._keys if view.knows(key)]
            return [PolicyEdit(key, None) for key in found]

        await edit_policies(self._kafka, self._topics, self._who, decide)
        return found

    async def _delete_states(self, deleted: Iterable[str]) -> list[str]:
        """The keys of states that were there. Those of a wildcard are the worker's own matter
        again with the user's next event."""
        there = before = await self._states()
        deadline_s = monotonic() + WORKER_WAIT_S
        while set(deleted) & there and monotonic() < deadline_s:
            await asyncio.sleep(POLL_S)
            there = await self._states()
        if there:
            home = scope_home(self._scope, self._partitions)
            async with AIOKafkaProducer(**self._kafka, acks="all") as producer:
                for key in sorted(there):
                    await producer.send_and_wait(
                        self._topics.state, None, key.encode(), partition=home
                    )
        return sorted(before)

    async def _states(self) -> set[str]:
        keys = {key.encode() for key in self._keys}
        values: dict[bytes, bytes | None] = {}
        home = scope_home(self._scope, self._partitions)
        async for records in read_to_end(self._kafka, self._topics.state, [home]):
            values.update((r.key, r.value) for r in records if r.key in keys)
        return {key.decode() for key, value in values.items() if value is not None}

    async def _drop_records(self) -> None:
        """The recorders beside the sinks first note that the policies are gone: what one notes
        later would bring their keys back."""
        client, user_id = self._ledger, self._user_id
        if not await asyncio.to_thread(policy_records, client, user_id):
            return
        deadline_s = monotonic() + RECORDER_WAIT_S
        while await asyncio.to_thread(policies_in_force, client, user_id):
            if monotonic() > deadline_s:
                raise TallyportError(
                    f"no sink has noted in {RECORDER_WAIT_S:.0f} s that the policies of "
                    f"{self._scope} are gone, and the ledger still keeps them: see that a sink "
                    "runs, and run `tallyport forget` again"
                )
            await asyncio.sleep(POLL_S)
        await asyncio.sleep(RECORDERS_APART_S)
        await asyncio.to_thread(drop_policy_records, client, user_id)
