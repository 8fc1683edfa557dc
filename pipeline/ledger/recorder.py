"""Keeps policies and rates in the ledger, so that a Kafka that is lost can be given them back.

The ledger itself says what is kept already, so a recorder may die at any moment, and several may
run: a record that is written twice replaces itself.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from clickhouse_connect.driver.client import Client

from pipeline.core.errors import TallyportError
from pipeline.core.policies import Policy, PolicyTable, policy_json
from pipeline.core.restored import first_timestamp_ms, parse_restored_from
from pipeline.ledger.client import LedgerError, connect, ledger_address, ledger_errors
from pipeline.ledger.log_reading import read_log
from pipeline.ledger.manifests import LogEpoch
from pipeline.ledger.registers import (
    Register,
    append_policies,
    append_rates,
    known_policies,
    known_rates,
)
from pipeline.settings import Settings
from pipeline.stream.reader import ReadTimedOut, read_to_end
from pipeline.stream.topics import Topics

POLL_S = 0.5
BATCH_RECORDS = 5_000
FAILURES_MAX = 12
"""So many failures in a row end it; a round that succeeds starts the count again."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 20.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


class RegisterRecorder:
    """Follows ``budget.policies`` and ``pricing.rates`` of one deployment."""

    def __init__(self, settings: Settings, kafka: dict[str, Any]) -> None:
        self._settings = settings
        self._kafka = kafka
        self._topics = Topics(settings.topic_prefix)
        self._failures = 0

    async def run(self) -> None:
        """Records until cancelled; raises ``TallyportError`` when it keeps failing."""
        while True:
            try:
                await self._follow(await self._wait_for_log())
            except (LedgerError, KafkaError, ReadTimedOut) as error:
                self._failures += 1
                if self._failures > FAILURES_MAX:
                    raise TallyportError(
                        f"policies and rates could not be kept in the ledger {FAILURES_MAX} times "
                        f"in a row; the last failure: {error}"
                    ) from error
                wait_s = min(BACKOFF_FIRST_S * 2 ** (self._failures - 1), BACKOFF_MAX_S)
                _log.warning("%s; keeping policies and rates again in %.1f s", error, wait_s)
                await asyncio.sleep(wait_s)

    async def _wait_for_log(self) -> LogEpoch:
        """While a restore runs, a policy that is not there yet is no policy that was deleted."""
        while True:
            log = await read_log(self._kafka, self._topics.epoch)
            if log is not None and log.ready:
                return log
            await asyncio.sleep(POLL_S)

    async def _follow(self, log: LogEpoch) -> None:
        async with _Ledger(self._settings) as ledger:
            rates = RateChanges(log, await ledger.ask(known_rates))
            policies = PolicyChanges(log, await ledger.ask(known_policies))
            async for records in read_to_end(self._kafka, self._topics.registry):
                policies.seed(records)
            next_offsets = {
                self._topics.rates: await self._read(self._topics.rates, rates.take),
                self._topics.policies: await self._read(self._topics.policies, policies.take),
            }
            policies.note_gone(next_offsets[self._topics.policies])
            takers = {self._topics.rates: rates.take, self._topics.policies: policies.take}
            consumer = AIOKafkaConsumer(
                **self._kafka,
                isolation_level="read_committed",
                enable_auto_commit=False,
                auto_offset_reset="none",
                fetch_max_wait_ms=int(POLL_S * 1000),
            )
            try:
                await consumer.start()
                consumer.assign([TopicPartition(topic, 0) for topic in next_offsets])
                for topic, offset in next_offsets.items():
                    consumer.seek(TopicPartition(topic, 0), offset)
                while True:
                    await ledger.write(append_rates, rates.new())
                    await ledger.write(append_policies, policies.new())
                    self._failures = 0
                    found = await consumer.getmany(timeout_ms=int(POLL_S * 1000))
                    for tp, records in found.items():
                        takers[tp.topic](records)
            finally:
                await consumer.stop()

    async def _read(self, topic: str, take: Callable[[Sequence[ConsumerRecord]], None]) -> int:
        """Hands over what is there now; returns the offset to go on at."""
        next_offset = 0
        async for records in read_to_end(self._kafka, topic):
            take(records)
            next_offset = records[-1].offset + 1
        return next_offset


class RateChanges:
    """The records of rates that the ledger lacks, whether they are used or not."""

    def __init__(self, log: LogEpoch, known: set[tuple[int, int]]) -> None:
        self._log = log
        self._known = known
        self._new: list[Register] = []

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            whence = parse_restored_from(record.headers)
            place = (whence.epoch, whence.offset) if whence else (self._log.epoch, record.offset)
            if place not in self._known:
                self._known.add(place)
                arrived_ms = first_timestamp_ms(record.headers, record.timestamp)
                key, value = record.key or b"", record.value or b""
                self._new.append(Register(*place, arrived_ms, key, value))

    def new(self) -> list[Register]:
        """What has to be written; it is then no longer new."""
        new, self._new = self._new, []
        return new


class PolicyChanges:
    """What came into force under the keys of policies, where the ledger says otherwise."""

    def __init__(self, log: LogEpoch, known: dict[bytes, bytes]) -> None:
        self._log = log
        self._known = known
        self._table = PolicyTable()
        self._changed: dict[bytes, Register] = {}

    def seed(self, records: Sequence[ConsumerRecord]) -> None:
        """Takes records of the registry, before any of the policies' own."""
        for record in records:
            self._table.seed(record.key or b"", record.value)

    def take(self, records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            changed = self._table.apply(record.offset, record.key, record.value)
            if isinstance(changed, Policy):
                self._note(changed.key.encode(), policy_json(changed), record)
            elif changed is not None:
                self._note(changed.encode(), b"", record)

    def note_gone(self, end_offset: int) -> None:
        """Notes the keys of the ledger that the whole topic, up to ``end_offset``, lacks.

        Their tombstones have been compacted away.
        """
        in_force = {key.encode() for key in self._table.policies}
        now_ms = int(time.time() * 1000)
        for key, value in self._known.items():
            if value and key not in in_force and key not in self._changed:
                self._changed[key] = Register(self._log.epoch, end_offset, now_ms, key, b"")

    def new(self) -> list[Register]:
        """What has to be written; it is then no longer new."""
        changed, self._changed = self._changed, {}
        new = [r for r in changed.values() if self._known.get(r.key, b"") != r.value]
        self._known.update((r.key, r.value) for r in new)
        return new

    def _note(self, key: bytes, value: bytes, record: ConsumerRecord) -> None:
        place = (self._log.epoch, record.offset, record.timestamp)
        self._changed[key] = Register(*place, key=key, value=value)


class _Ledger:
    """A connection that writes, used from one task."""

    def __init__(self, settings: Settings) -> None:
        self._address = ledger_address(settings, write=True)
        self._client: Client

    async def __aenter__(self) -> Self:
        self._client = await asyncio.to_thread(connect, self._address)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._client.close)

    async def ask(self, question: Callable[[Client], T]) -> T:
        """The answer to ``question(client)``."""
        return await asyncio.to_thread(self._guarded, question)

    async def write(
        self, append: Callable[[Client, Sequence[Register]], None], registers: list[Register]
    ) -> None:
        """Writes ``registers`` in batches; nothing where there are none."""
        for start in range(0, len(registers), BATCH_RECORDS):
            batch = registers[start : start + BATCH_RECORDS]
            await self.ask(lambda client, batch=batch: append(client, batch))

    def _guarded(self, question: Callable[[Client], T]) -> T:
        with ledger_errors(self._address):
            return question(self._client)
