"""Reading and writing budget policies on Kafka (contract, sections 4 and 6)."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from pipeline.core.errors import TallyportError
from pipeline.core.policies import (
    InvalidPolicy,
    Policy,
    PolicyTable,
    policy_fields,
    policy_json,
)
from pipeline.core.scopes import parse_key
from pipeline.stream.change_log import ChangeLogError, ChangeTopics, Planned, commit_changes
from pipeline.stream.reader import open_follower, out_of_range, read_to_end

FETCH_MAX_WAIT_MS = 100

OnRecord = Callable[[int, bytes, bytes | None], None]
"""offset, key, value of one record; an empty key stands for none."""


class PolicyTopics(ChangeTopics, Protocol):
    """The full names of the topics that hold policies and their changes."""

    @property
    def policies(self) -> str: ...

    @property
    def registry(self) -> str: ...


class PolicyView(msgspec.Struct, frozen=True):
    """The policies in force by key, and the records that are ignored."""

    policies: dict[str, Policy]
    invalid: list[InvalidPolicy]

    def knows(self, key: str) -> bool:
        """Whether there is a record under the key, be it one that is not valid."""
        return key in self.policies or key.encode() in {found.key for found in self.invalid}


class PolicyLogError(TallyportError):
    """The policies could not be read or written."""


async def load_policies(client: Mapping[str, Any], topics: PolicyTopics) -> PolicyView:
    """Reads all policies once, to where the log ends at the call.

    ``client`` holds aiokafka's connection arguments. For an invalid record the last valid
    policy is that in the log, or, where compaction has dropped it, that in the registry.
    """
    table = PolicyTable()
    async for records in read_to_end(client, topics.registry):
        for record in records:
            table.seed(record.key or b"", record.value)
    async for records in read_to_end(client, topics.policies):
        for record in records:
            table.apply(record.offset, record.key, record.value)
    return PolicyView(table.policies, list(table.invalid.values()))


class PolicyEdit(NamedTuple):
    """A budget as it is to become; ``policy`` None deletes it."""

    key: str
    policy: Policy | None


async def edit_policies(
    client: Mapping[str, Any],
    topics: PolicyTopics,
    who: str,
    decide: Callable[[PolicyView], Iterable[PolicyEdit]],
) -> int:
    """Writes what ``decide`` makes of the policies in force, each with its entry in the log of
    changes; returns the offset of the last record, -1 when nothing was to be written.

    All of it is written or nothing, and nobody else writes between ``decide`` and that. What
    ``decide`` raises ends it. Raises ``InvalidField`` for a key that is not canonical, and
    ``PolicyLogError``.
    """

    async def plan() -> list[Planned]:
        view = await load_policies(client, topics)
        return [_planned(topics, view, edit) for edit in decide(view)]

    try:
        offsets = await commit_changes(client, topics, who, plan)
    except (ChangeLogError, KafkaError) as error:
        raise PolicyLogError(f"{topics.policies}: {error}") from error
    return offsets[-1] if offsets else -1


async def write_policies(
    client: Mapping[str, Any], topics: PolicyTopics, who: str, policies: Sequence[Policy]
) -> int:
    """Writes ``policies`` over what is there; returns the offset of the last one."""
    return await edit_policies(
        client, topics, who, lambda _: [PolicyEdit(policy.key, policy) for policy in policies]
    )


def _planned(topics: PolicyTopics, view: PolicyView, edit: PolicyEdit) -> Planned:
    parse_key(edit.key)
    before, after = view.policies.get(edit.key), edit.policy
    return Planned(
        topics.policies,
        edit.key.encode(),
        None if after is None else policy_json(after),
        "policy",
        None if before is None else policy_fields(before),
        None if after is None else policy_fields(after),
    )


class PolicyTail:
    """Follows ``budget.policies`` from its beginning and hands over each record in order.

    ``confirmed`` is done when everything that was there at the start has been handed over, and
    fails when following fails. An exception in the callback, or of the client, ends following:
    it is in ``confirmed`` or, later, raised by ``wait``.
    """

    def __init__(self, client: Mapping[str, Any], topic: str, on_record: OnRecord) -> None:
        self.confirmed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.position = 0
        self.polled_ms: int | None = None
        """When a fetch was last answered (wall clock); it changes while following works."""
        self._client = dict(client)
        self._tp = TopicPartition(topic, 0)
        self._on_record = on_record
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts following in a task; await ``confirmed`` for the records that are there."""
        self._task = asyncio.create_task(self._follow(), name=f"policy tail {self._tp.topic}")
        self._task.add_done_callback(self._ended)

    async def wait(self) -> None:
        """Returns when ``stop`` was called; raises what ended following otherwise."""
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.result()

    async def stop(self) -> None:
        """Stops following and closes the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self.confirmed.done():
            self.confirmed.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.confirmed.done():
            self.confirmed.set_exception(error)

    async def _follow(self) -> None:
        try:
            consumer = await open_follower(self._client, self._tp.topic, FETCH_MAX_WAIT_MS)
        except KafkaError as error:
            raise PolicyLogError(f"{self._tp.topic}: cannot be followed: {error}") from error
        try:
            end = (await consumer.end_offsets([self._tp]))[self._tp]
            while True:
                if self.position >= end and not self.confirmed.done():
                    self.confirmed.set_result(None)
                batches = await consumer.getmany(self._tp, timeout_ms=FETCH_MAX_WAIT_MS)
                for record in batches.get(self._tp, ()):
                    self._on_record(record.offset, record.key or b"", record.value)
                # Beyond the last record lie transaction markers and compacted offsets.
                self.position = await consumer.position(self._tp)
                self.polled_ms = consumer.last_poll_timestamp(self._tp)
        except OffsetOutOfRangeError as error:
            raise out_of_range(error, "the reader of policies") from error
        except KafkaError as error:
            raise PolicyLogError(f"{self._tp.topic}: cannot be followed: {error}") from error
        finally:
            await consumer.stop()
