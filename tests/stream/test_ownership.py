"""Claims on a real Kafka: whoever takes partitions over has shut out everyone before."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced

from pipeline.core.errors import CorruptRecord
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings
from pipeline.stream import transaction
from pipeline.stream.ownership import LostOwnership, Ownership
from pipeline.stream.reader import read_to_end
from pipeline.stream.topics import Topics, create_or_check
from pipeline.stream.transaction import FencedProducer, Outbox, Record
from pipeline.stream.turns import TurnProducer
from tests.decided import until_decided

FENCED = (ProducerFenced, InvalidProducerEpoch)
PARTITIONS = 3


class Log(NamedTuple):
    client: dict[str, Any]
    topics: Topics

    def claim(self, sources: list[int], homes: list[int]) -> Ownership:
        return Ownership(self.client, self.topics, sources, homes)


@pytest.fixture
async def log(kafka: str, topic_prefix: str) -> Log:
    settings = Settings(
        kafka_bootstrap=kafka, topic_prefix=topic_prefix, partitions=PARTITIONS, replication=1
    )
    await create_or_check(settings)
    return Log(client_kwargs(settings), Topics(topic_prefix))


@pytest.fixture
async def producers() -> AsyncIterator[list[TurnProducer]]:
    taken: list[TurnProducer] = []
    yield taken
    await asyncio.gather(*(producer.close() for producer in taken), return_exceptions=True)


def total(log: Log, partition: int, value: bytes) -> Outbox:
    outbox = Outbox()
    outbox.add(log.topics.totals, partition, Record(b"d|0", value))
    return outbox


async def totals(log: Log) -> list[bytes | None]:
    await until_decided(log.client, log.topics.totals)
    return [
        record.value
        async for records in read_to_end(log.client, log.topics.totals)
        for record in records
    ]


async def live_claims(log: Log) -> set[bytes]:
    found: dict[bytes, bytes | None] = {}
    async for records in read_to_end(log.client, log.topics.owners):
        found.update({record.key or b"": record.value for record in records})
    return {key.rpartition(b"|")[0] for key, value in found.items() if value is not None}


async def test_the_next_owner_shuts_out_the_one_before(
    log: Log, producers: list[TurnProducer]
) -> None:
    first = await log.claim([0, 1], [0]).take()
    producers.append(first)
    await first.commit(total(log, 0, b"first"), another_follows=False)
    second = await log.claim([1], []).take()
    producers.append(second)
    with pytest.raises(FENCED):
        await first.commit(total(log, 0, b"too late"), another_follows=False)
    await second.commit(total(log, 1, b"second"), another_follows=False)
    assert await totals(log) == [b"first", b"second"]


async def test_a_merge_partition_alone_shuts_out_its_former_owner(
    log: Log, producers: list[TurnProducer]
) -> None:
    first = await log.claim([0], [2]).take()
    producers.append(first)
    producers.append(await log.claim([], [2]).take())
    with pytest.raises(FENCED):
        await first.commit(total(log, 0, b"too late"), another_follows=False)
    assert await totals(log) == []


async def test_owners_of_other_partitions_are_left_alone(
    log: Log, producers: list[TurnProducer]
) -> None:
    first = await log.claim([0], [0]).take()
    producers.append(first)
    producers.append(await log.claim([1, 2], [1, 2]).take())
    await first.commit(total(log, 0, b"still"), another_follows=False)
    assert await totals(log) == [b"still"]


async def test_an_open_transaction_of_the_former_owner_is_decided(
    log: Log, producers: list[TurnProducer]
) -> None:
    first = await log.claim([0], []).take()
    producers.append(first)
    written = [b"whole %d" % number for number in range(3)]
    for value in written:
        await first.commit(total(log, 0, value), another_follows=True)
    # Both ids have begun their next transaction; what is sent in it is never committed.
    for turn in first._producers:  # pyright: ignore[reportPrivateUsage]
        await turn._producer.send_and_wait(  # pyright: ignore[reportPrivateUsage]
            log.topics.totals, b"half", b"d|1", partition=0
        )
    producers.append(await log.claim([0], []).take())
    assert await totals(log) == written


async def test_each_id_of_the_former_owner_is_shut_out(
    log: Log, producers: list[TurnProducer]
) -> None:
    first = await log.claim([0], []).take()
    producers.append(first)
    for value in (b"1", b"2"):
        await first.commit(total(log, 0, value), another_follows=True)
    producers.append(await log.claim([0], []).take())
    for turn in first._producers:  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(FENCED):
            await turn.commit(total(log, 0, b"too late"))
    assert await totals(log) == [b"1", b"2"]


async def test_of_many_at_once_one_goes_on(log: Log, producers: list[TurnProducer]) -> None:
    found = await asyncio.gather(
        *(log.claim([0, 1], [0, 1]).take() for _ in range(4)), return_exceptions=True
    )
    wrote: list[bytes] = []
    for number, one in enumerate(found):
        if isinstance(one, BaseException):
            assert isinstance(one, (LostOwnership, *FENCED)), one
            continue
        producers.append(one)
        try:
            await one.commit(total(log, 0, b"%d" % number), another_follows=False)
            wrote.append(b"%d" % number)
        except FENCED:
            pass
    assert len(wrote) == 1
    assert await totals(log) == wrote


async def test_claims_are_taken_back_once_their_owner_is_fenced(
    log: Log, producers: list[TurnProducer]
) -> None:
    for _ in range(3):
        producers.append(await log.claim([0], [1]).take())
    found: dict[bytes, bytes | None] = {}
    async for records in read_to_end(log.client, log.topics.owners):
        found.update({record.key or b"": record.value for record in records})
    assert sum(value is not None for value in found.values()) == 2
    assert await live_claims(log) == {b"source|0", b"home|1"}


async def test_a_claim_of_another_version_is_refused(log: Log) -> None:
    writer = FencedProducer(log.client, f"{log.topics.prefix}writer", "")
    await writer.start()
    outbox = Outbox()
    outbox.add(log.topics.owners, 0, Record(b"source|0|someone", b"9"))
    await writer.commit(outbox)
    await writer.close()
    with pytest.raises(CorruptRecord, match=r"owners partition 0 offset 0: a claim of version"):
        await log.claim([0], []).take()


async def test_a_fence_between_two_sends_is_one(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka tells the first of them so, and the second that it is not in a transaction."""
    first, second = (FencedProducer(log.client, f"{log.topics.prefix}both", "") for _ in range(2))
    await first.start()
    send = transaction.send_records

    async def fenced_meanwhile(producer: Any, *arguments: Any) -> Any:
        sent = await send(producer, *arguments)
        await asyncio.gather(*(future for future, _ in sent), return_exceptions=True)
        if not fences:
            fences.append(second)
            await second.start()
            late = await send(producer, log.topics.totals, 2, [Record(b"d|0", b"late")])
            await asyncio.gather(*(future for future, _ in late), return_exceptions=True)
        return sent

    fences: list[FencedProducer] = []
    monkeypatch.setattr(transaction, "send_records", fenced_meanwhile)
    outbox = total(log, 0, b"one")
    outbox.add(log.topics.totals, 1, Record(b"d|0", b"two"))
    try:
        with pytest.raises(ProducerFenced):
            await first.commit(outbox)
        assert await totals(log) == []
    finally:
        await asyncio.gather(first.close(), second.close(), return_exceptions=True)
