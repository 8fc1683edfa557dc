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
                    assert answer.status_code == 200, answer.text
                await asyncio.sleep(POLL_S)
            lags = [
                float(line.split()[1])
                for line in (await client.get("/metrics")).text.splitlines()
                if line.startswith("tallyport_sink_lag_records{")
            ]
            assert lags == [0.0] * PARTITIONS

            since_s = time.monotonic()
            await priced(wide_api, b"block")
            while (answer := await client.get("/health/pipeline")).status_code == 200:
                assert time.monotonic() - since_s < TOLD_WITHIN_S
                await asyncio.sleep(POLL_S)
            assert "sink has not advanced" in answer.text
            assert wide_api.topics.priced in answer.text
