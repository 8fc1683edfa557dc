"""The publisher on a real broker: where records go, what is counted, what is missing."""

import subprocess
import sys

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import ConsumerRecord

from pipeline.stream.reader import read_to_end
from producers.kafka import KafkaExtraMissing, Publisher
from producers.partitions import home_partition

PARTITIONS = 4


@pytest.fixture
async def topic(kafka: str, topic_prefix: str) -> str:
    """A topic of its own with ``PARTITIONS`` partitions."""
    name = f"{topic_prefix}publisher"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        limits = {"max.message.bytes": "300000"}
        await admin.create_topics([NewTopic(name, PARTITIONS, 1, topic_configs=limits)])
    finally:
        await admin.close()
    return name


async def read_all(kafka: str, topic: str) -> list[ConsumerRecord]:
    client = {"bootstrap_servers": kafka}
    return [r async for records in read_to_end(client, topic) for r in records]


async def test_records_arrive_once_where_their_key_belongs(kafka: str, topic: str) -> None:
    async with Publisher({"bootstrap_servers": kafka}, topic, max_in_flight=50) as publisher:
        assert publisher.partitions == PARTITIONS
        for number in range(300):
            await publisher.send(b"%d" % number, b"port-%d" % (number % 7), [("h", b"1")])
        placed = await (await publisher.send(None, b"port-1", partition=3))
        await publisher.flush()
        assert (publisher.sent, publisher.failed, publisher.last_error) == (301, 0, None)
    assert placed.partition == 3
    records = await read_all(kafka, topic)
    assert sorted(int(r.value) for r in records if r.value) == list(range(300))
    for record in records:
        if record.value is not None:
            assert record.partition == home_partition(record.key, PARTITIONS)
            assert tuple(record.headers) == (("h", b"1"),)


async def test_batches_keep_the_order_of_each_key(kafka: str, topic: str) -> None:
    pairs = [(b"port-%d" % (n % 5), b"%06d" % n + b"x" * 100) for n in range(20_000)]
    async with Publisher({"bootstrap_servers": kafka}, topic, max_in_flight=3_000) as publisher:
        assert await publisher.send_many(iter(pairs)) == len(pairs)
        await publisher.flush()
        assert (publisher.sent, publisher.failed) == (len(pairs), 0)
    by_key: dict[bytes, list[bytes]] = {}
    for record in await read_all(kafka, topic):
        assert record.partition == home_partition(record.key, PARTITIONS)
        by_key.setdefault(record.key, []).append(record.value)
    assert by_key == {
        key: [value for k, value in pairs if k == key] for key in {key for key, _ in pairs}
    }


async def test_a_record_that_no_broker_takes_is_counted(kafka: str, topic: str) -> None:
    async with Publisher({"bootstrap_servers": kafka}, topic) as publisher:
        refused = await publisher.send(b"x" * 400_000, b"k")  # above the broker's limit
        await publisher.flush()
        assert (publisher.sent, publisher.failed) == (0, 1)
        assert publisher.last_error is refused.exception()
        too_large = await publisher.send(b"x" * 3_000_000, b"k")  # above the client's
        await publisher.flush()
        assert (publisher.sent, publisher.failed) == (0, 2)
        assert publisher.last_error is too_large.exception()


async def test_without_aiokafka_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiokafka", None)
    with pytest.raises(KafkaExtraMissing, match=r"tallyport\[all\]"):
        async with Publisher({"bootstrap_servers": "127.0.0.1:9"}, "t"):
            raise AssertionError("entered")


def test_importing_it_does_not_import_aiokafka() -> None:
    code = "import sys, producers.kafka, producers.simulator; print('aiokafka' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


async def test_it_must_be_entered_first() -> None:
    publisher = Publisher({"bootstrap_servers": "127.0.0.1:9"}, "t")
    with pytest.raises(RuntimeError, match="async with"):
        await publisher.send(b"")
