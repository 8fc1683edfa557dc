"""Topics on a real Kafka: created as specified, checked afterwards, recognised when recreated."""

import asyncio
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from pipeline.core.errors import ConfigurationError, Refused
from pipeline.kafka import check_kafka, client_kwargs
from pipeline.ops.loopback_ports import free_port
from pipeline.settings import Settings
from pipeline.stream.topic_identity import TopicMissing, topic_id, topic_ids
from pipeline.stream.topics import SPECS, Topics, create_or_check, create_or_check_topics
from tests.tcp_proxy import TcpProxy


@pytest.fixture
def settings(kafka: str, topic_prefix: str) -> Settings:
    return Settings(kafka_bootstrap=kafka, topic_prefix=topic_prefix, partitions=3, replication=1)


async def _create(client: dict[str, Any], topic: NewTopic) -> None:
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        answer = await admin.create_topics([topic])
        assert [row[1] for row in answer.topic_errors] == [0]
        async with asyncio.timeout(60):
            while (await admin.describe_topics([topic.name]))[0]["error_code"] != 0:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def _delete(client: dict[str, Any], topic: str) -> None:
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        await admin.delete_topics([topic])
        async with asyncio.timeout(60):
            while topic in await admin.list_topics():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def test_all_topics_are_created_once_with_their_configuration(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    assert set(await create_or_check(settings)) == set(topics.names)
    assert await create_or_check(settings) == []

    admin = AIOKafkaAdminClient(**client_kwargs(settings))
    await admin.start()
    try:
        described = {t["topic"]: t for t in await admin.describe_topics(topics.names)}
        [answer] = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics.names]
        )
    finally:
        await admin.close()
    configs = {row[3]: {entry[0]: entry[1] for entry in row[4]} for row in answer.resources}
    for name, spec in topics.specs.items():
        assert len(described[name]["partitions"]) == (1 if spec.single else 3)
        assert spec.config(1).items() <= configs[name].items()
    assert configs[topics.events]["message.timestamp.type"] == "LogAppendTime"
    assert configs[topics.events]["retention.ms"] == str(14 * 86_400_000)
    assert configs[topics.rates]["retention.ms"] == "-1"
    assert configs[topics.state]["cleanup.policy"] == "compact"


async def test_a_connection_that_is_lost_is_made_again(settings: Settings) -> None:
    address = str(settings.kafka_bootstrap)
    async with TcpProxy(int(address.rpartition(":")[2])) as proxy:
        proxy.refusal = b"nothing a broker would say"
        through = settings.replaced(kafka_bootstrap=f"127.0.0.1:{proxy.port}")
        creating = asyncio.create_task(create_or_check(through))
        while not proxy.refused and not creating.done():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        proxy.refusal = b""
        assert set(await creating) == set(Topics(settings.topic_prefix).names)
        assert proxy.refused


async def test_the_attribute_names_lead_to_the_full_names(topic_prefix: str) -> None:
    topics = Topics(topic_prefix)
    assert {getattr(topics, attribute) for attribute in SPECS} == set(topics.names)
    assert topics.events == f"{topic_prefix}usage.events"
    assert topics.transactional_id("a") == f"{topic_prefix}tallyport-worker-a"


async def test_another_partition_count_is_refused_with_what_to_do(settings: Settings) -> None:
    await create_or_check(settings)
    with pytest.raises(ConfigurationError) as refused:
        await create_or_check(settings.replaced(partitions=5))
    message = str(refused.value)
    assert message.startswith(f"topics {settings.topic_prefix}usage.events, ")
    assert "have 3 partitions instead of 5: set TALLYPORT_PARTITIONS=3" in message
    assert message.count("TALLYPORT_TOPIC_PREFIX") == 1
    assert "budget.policies" not in message  # always one partition, so nothing is wrong with it


@pytest.mark.parametrize(
    ("attribute", "config", "named"),
    [
        ("events", {"cleanup.policy": "delete"}, "message.timestamp.type=CreateTime"),
        (
            "events",
            {"cleanup.policy": "compact", "message.timestamp.type": "LogAppendTime"},
            "cleanup.policy=compact",
        ),
        ("totals", {"cleanup.policy": "delete"}, "cleanup.policy=delete"),
    ],
)
async def test_another_configuration_is_refused(
    settings: Settings, attribute: str, config: dict[str, str], named: str
) -> None:
    client = client_kwargs(settings)
    topics = Topics(settings.topic_prefix)
    name = getattr(topics, attribute)
    await _create(client, NewTopic(name, 3, 1, topic_configs=config))
    with pytest.raises(Refused) as refused:
        await create_or_check_topics(client, topics, 3)
    assert f"topic {name} has {named}" in str(refused.value)
    assert "kafka-configs --alter" in str(refused.value)


async def test_a_recreated_topic_has_another_id(settings: Settings) -> None:
    client = client_kwargs(settings)
    name = f"{settings.topic_prefix}identity"
    with pytest.raises(TopicMissing):
        await topic_id(client, name)
    await _create(client, NewTopic(name, 2, 1))
    first = await topic_id(client, name)
    assert await topic_id(client, name) == first
    assert first.int != 0
    await _delete(client, name)
    await _create(client, NewTopic(name, 2, 1))
    assert await topic_id(client, name) != first


async def test_ids_of_several_topics_come_in_one_answer(settings: Settings) -> None:
    client = client_kwargs(settings)
    topics = Topics(settings.topic_prefix)
    await create_or_check(settings)
    found = await topic_ids(client, [*topics.names, f"{settings.topic_prefix}none"])
    assert set(found) == set(topics.names)
    assert len(set(found.values())) == len(topics.names)


async def test_reachability_is_one_line(settings: Settings) -> None:
    await check_kafka(settings)
    nobody = f"127.0.0.1:{free_port()}"
    with pytest.raises(Exception, match="cannot be used") as failed:
        await check_kafka(settings.replaced(kafka_bootstrap=nobody), timeout_s=3)
    assert nobody in str(failed.value)
    assert "\n" not in str(failed.value)


async def test_without_any_address_the_error_says_what_to_set(tmp_path: Any) -> None:
    with pytest.raises(ConfigurationError, match="TALLYPORT_KAFKA_BOOTSTRAP"):
        client_kwargs(Settings(data_dir=tmp_path))
