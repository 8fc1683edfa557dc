"""The policies in force, as one worker knows them, handed on to whoever has accounts.

Every worker reads all policies. The last valid one of each key is also kept in the registry topic,
because compaction may drop it once a later record of that key is invalid; the worker that owns the
first merge partition writes it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.structs import ConsumerRecord

from pipeline import metrics
from pipeline.core.errors import CorruptRecord, InvalidField
from pipeline.core.policies import Policy, PolicyTable, parse_policy, policy_json
from pipeline.stream.policy_log import PolicyTail
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics

OnPolicy = Callable[[Policy | str], None]
"""The policy now in force, or the key that lost its own."""


class PolicyBoard:
    """Owns the tail of ``budget.policies``. ``on_change`` hears of every change in order."""

    def __init__(
        self,
        client: dict[str, Any],
        topics: Topics,
        registrar: AIOKafkaProducer,
        keeps_registry: Callable[[], bool],
        on_change: OnPolicy,
    ) -> None:
        self._client = client
        self._topics = topics
        self._registrar = registrar
        self._keeps_registry = keeps_registry
        self._on_change = on_change
        self._table = PolicyTable()
        self._registered: dict[str, bytes | None] = {}
        self.tail = PolicyTail(client, topics.policies, self._on_record)

    def policies(self) -> Iterable[Policy]:
        """Every policy in force."""
        return self._table.policies.values()

    async def start(self) -> None:
        """Reads the registry and all policies; returns when the end has been reached."""
        async for records in read_to_end(self._client, self._topics.registry):
            for record in records:
                self._check_registered(record)
                self._table.seed(record.key or b"", record.value)
                self._registered[(record.key or b"").decode(errors="replace")] = record.value
        await self.tail.start()
        await self.tail.confirmed

    async def stop(self) -> None:
        """Stops following."""
        await self.tail.stop()

    async def keep_registry(self) -> None:
        """Brings the registry up to date where it is this worker's to keep."""
        if not self._keeps_registry():
            return
        valid = {policy.key: policy_json(policy) for policy in self._table.policies.values()}
        gone = {key: None for key, value in self._registered.items() if value and key not in valid}
        for key, value in {**valid, **gone}.items():
            if self._registered.get(key) != value:
                await self._registrar.send_and_wait(
                    self._topics.registry, value, key.encode(), partition=0
                )
                self._registered[key] = value

    def _check_registered(self, record: ConsumerRecord) -> None:
        """Only workers write there, and only what is valid: anything else cannot be trusted."""
        try:
            if record.value is not None:
                parse_policy(record.key or b"", record.value)
        except InvalidField as error:
            raise CorruptRecord(
                f"{self._topics.registry} partition 0 offset {record.offset}: no policy: {error}"
            ) from error

    def _on_record(self, offset: int, key: bytes, value: bytes | None) -> None:
        changed = self._table.apply(offset, key, value)
        metrics.POLICIES_INVALID.set(len(self._table.invalid))
        if changed is not None:
            self._on_change(changed)
