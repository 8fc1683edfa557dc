"""``/health/pipeline`` on a real Kafka, with a worker and a sink that the test plays."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.web.api_process import ApiProcess

PARTITIONS = 12
TRANSACTIONS = 5
PAUSE_S = 15.0
POLL_S = 0.2
TOLD_WITHIN_S = 11.0
"""The contract's ten seconds, and one for the question."""
WAIT_S = 60.0
TRIES = 4
"""One may be slow because this process, Kafka or the API was kept from running."""


@pytest.fixture
def wide_api(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[ApiProcess]:
    process = ApiProcess(kafka, topic_prefix, tmp_path, partitions=PARTITIONS)
    with process.running():
        yield process


async def priced(api: ApiProcess, value: bytes | None) -> dict[TopicPartition, int]:
    """A transaction that reaches every partition, aborted without a ``value``.

    Returns the offsets after its records; its markers stand behind them.
    """
    tps = [TopicPartition(api.topics.priced, partition) for partition in range(api.partitions)]
    async with AIOKafkaProducer(**api.client, transactional_id=f"{api.prefix}test") as producer:
        await producer.begin_transaction()
        for tp in tps:
            await producer.send_and_wait(tp.topic, value or b"x", partition=tp.partition)
        await (producer.abort_transaction if value is None else producer.commit_transaction)()
    async with AIOKafkaConsumer(**api.client) as consumer:
        return {tp: end - 1 for tp, end in (await consumer.end_offsets(tps)).items()}


async def taken(api: ApiProcess, offsets: dict[TopicPartition, int]) -> None:
    """As a sink commits: behind the last record that it has seen."""
    async with AIOKafkaConsumer(**api.client, group_id=api.topics.sink_group) as consumer:
        consumer.assign([*offsets])
        await consumer.commit(offsets)


async def test_a_pause_is_no_stall_and_a_record_that_waits_is_one(wide_api: ApiProcess) -> None:
    with wide_api.counted_for():
        async with httpx.AsyncClient(base_url=wide_api.url, timeout=30) as client:
            done = await priced(wide_api, b"block")
            await taken(wide_api, done)
            for _ in range(TRANSACTIONS - 1):
                await priced(wide_api, None)
            until_s = time.monotonic() + PAUSE_S
            while time.monotonic() < until_s:
                for path in ("/health/pipeline", "/health/ready"):
                    answer = await client.get(path)
                    told = answer.json().get("problems", [])
                    # That is of a machine that stands still, and no stall.
                    assert [one for one in told if "has not answered for" not in one] == []
                await asyncio.sleep(POLL_S)
            lags = [
                float(line.split()[1])
                for line in (await client.get("/metrics")).text.splitlines()
                if line.startswith("tallyport_sink_lag_records{")
            ]
            assert lags == [0.0] * PARTITIONS

            for _ in range(TRIES):
                if (told_s := await told_after_s(wide_api, client)) < TOLD_WITHIN_S:
                    break
            assert told_s < TOLD_WITHIN_S


async def told_after_s(api: ApiProcess, client: httpx.AsyncClient) -> float:
    """How long after a record came that then waits a stall is told of; it is taken in the end."""

    async def told_is(wanted: bool) -> None:
        async with asyncio.timeout(WAIT_S):
            while True:
                told = (await client.get("/health/pipeline")).text
                if ("sink has not advanced for" in told and api.topics.priced in told) is wanted:
                    return
                await asyncio.sleep(POLL_S)

    waiting = await priced(api, b"block")
    since_s = time.monotonic()
    await told_is(True)
    told_s = time.monotonic() - since_s
    await taken(api, waiting)
    await told_is(False)
    return told_s
