"""The SDK over the real API and straight to Kafka, with a real worker that counts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from producers import BudgetExceeded, Meter
from tests.producers.sides import until

CAP, ESTIMATE = 1_000, 100


@pytest.fixture
async def deployment(kafka: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Deployment]:
    settings = Settings(
        kafka_bootstrap=kafka,
        topic_prefix=topic_prefix,
        data_dir=tmp_path,
        ledger_port=0,
        api_port=0,
        partitions=2,
        replication=1,
    )
    async with Deployment(settings, parts=("worker", "api")) as running:
        yield running


def calls_until_refused(meter: Meter) -> int:
    calls = 0
    asked: dict[str, Any] = {"port_id": "a", "provider": "acme", "model": "m"}
    try:
        while True:
            with meter.guard(**asked, estimated_tokens=ESTIMATE) as call:
                call.record(input_tokens=ESTIMATE)
                calls += 1
    except BudgetExceeded:
        return calls


async def test_capped_over_http_and_seen_over_kafka(deployment: Deployment, tmp_path: Path) -> None:
    settings = deployment.settings
    policy = {"scope": "port:*", "unit": "tokens", "period": "month", "hard_cap": CAP}
    topics = Topics(settings.topic_prefix)
    await write_policies(client_kwargs(settings), topics, "test", [policy_from_object(policy)])
    spool = {"TALLYPORT_SPOOL_DIR": str(tmp_path / "spool")}
    over_http = {"TALLYPORT_API_URL": deployment.api_url, **spool}
    to_kafka = {
        "TALLYPORT_KAFKA_BOOTSTRAP": settings.kafka_bootstrap or "",
        "TALLYPORT_TOPIC_PREFIX": settings.topic_prefix,
        **spool,
    }

    def use() -> None:
        with Meter.from_env(over_http) as one, Meter.from_env(to_kafka) as other:
            assert one.wait_ready(30)
            assert other.wait_ready(30)
            until(lambda: one.check(port_id="a").reason == "ok", "the policy over HTTP")
            until(lambda: other.check(port_id="a").reason == "ok", "the policy over Kafka")
            # One process with upper bounds goes over nothing.
            assert calls_until_refused(one) == CAP // ESTIMATE
            assert one.flush(30)
            until(lambda: other.check(port_id="a").used == CAP, "the other process to see it")
            assert other.check(port_id="a").reason == "hard-cap-exceeded"
            until(lambda: one.stats.held == 0, "heartbeats to contain every call")
            assert one.check(port_id="a").used == CAP

    await asyncio.to_thread(use)
