"""Policies and rates that change while a chaos run is on, invalid ones among them."""

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from pipeline.core.scopes import record_key
from pipeline.stream.topics import Topics

PRICE_LEAD_S = 2
PAUSE_S = (0.5, 2.5)
RETRY_S = 0.3
REQUEST_TIMEOUT_MS = 3_000
SCOPES = (
    "all", "port:*", "port:harbor-7", "port:harbor-3", "port:quay|north:2", "user:*", "user:u001",
    "user:u017", "org:*", "org:northwind", "org:org:meridian", "group:team-ops", "group:*",
)  # fmt: skip
PERIODS = ("day", "week", "month", "rolling-30d")
MODELS = (("openai", "gpt-5-mini"), ("openai", "gpt-5"), ("anthropic", "claude-*"), ("acme", "*"))


class Changes:
    """Writes a policy or a rate every second or so.

    ``written`` counts them, ``rates`` are the ids of rates.
    """

    def __init__(self, client: Mapping[str, Any], topics: Topics, rng: Random) -> None:
        self.written = 0
        self._client = dict(client)
        self._topics = topics
        self._rng = rng
        self.rates: list[str] = []

    async def run(self) -> None:
        """Goes on until cancelled."""
        async with self._producer() as producer:
            for scope in SCOPES[:6]:
                await self._put(producer, self._topics.policies, *self._policy(scope))
            while True:
                topic, (key, value) = self._change()
                await self._put(producer, topic, key, value)
                await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    def _producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **self._client, acks="all", request_timeout_ms=REQUEST_TIMEOUT_MS, linger_ms=0
        )

    async def _put(
        self, producer: AIOKafkaProducer, topic: str, key: str, value: bytes | None
    ) -> None:
        """Sends it until it is acknowledged; twice the same does no harm."""
        while True:
            try:
                await producer.send_and_wait(topic, value, key.encode(), partition=0)
            except KafkaError:
                await asyncio.sleep(RETRY_S)
            else:
                self.written += 1
                return

    def _change(self) -> tuple[str, tuple[str, bytes | None]]:
        turn = self._rng.random()
        if turn < 0.40:
            return self._topics.rates, self._rate()
        scope = self._rng.choice(SCOPES)
        if turn < 0.55:
            key, _ = self._policy(scope)
            return self._topics.policies, (key, None)
        if turn < 0.65:
            key, _ = self._policy(scope)
            return self._topics.policies, (key, b'{"scope":"all","hard_cap":-1}')
        return self._topics.policies, self._policy(scope)

    def _policy(self, scope: str) -> tuple[str, bytes]:
        rng = self._rng
        unit, period = rng.choice(("tokens", "cost")), rng.choice(PERIODS)
        hard = rng.randrange(1, 10**7)
        body: dict[str, Any] = {"scope": scope, "unit": unit, "period": period}
        body["enabled"] = rng.random() < 0.9
        body["hard_cap"] = hard if unit == "tokens" else f"{hard / 10_000:.4f}"
        if rng.random() < 0.2:
            until = datetime.now(UTC) + timedelta(seconds=rng.randrange(2, 20))
            amount = 1_000 if unit == "tokens" else "0.5"
            body["extra"] = {"amount": amount, "until": until.isoformat()}
        return record_key(scope, unit, period), json.dumps(body).encode()

    def _rate(self) -> tuple[str, bytes]:
        rng = self._rng
        rate_id = f"chaos-{rng.getrandbits(48):012x}"
        turn = rng.random()
        provider, model = rng.choice(MODELS)
        body: dict[str, Any] = {"rate_id": rate_id, "provider": provider, "model": model}
        if turn < 0.15 and self.rates:  # known id, other content: never used
            body["rate_id"] = rate_id = rng.choice(self.rates)
        if turn > 0.85 and self.rates:
            body = {"rate_id": rate_id, "withdraws": rng.choice(self.rates)}
        elif turn > 0.65:
            body["multiplier"] = f"0.{rng.randrange(50, 99)}"
        else:
            cents = rng.randrange(1, 10**6)
            body["currency"] = "USD"
            body["per_million"] = {"input_tokens": f"{cents / 10_000:.4f}", "output_tokens": "9.9"}
        self.rates.append(rate_id)
        now = datetime.now(UTC)
        lead_s = rng.choice((PRICE_LEAD_S + 1, PRICE_LEAD_S + 4, 0, -rng.randrange(36 * 3_600)))
        if lead_s <= 0 and rng.random() < 0.8:  # without it the rate breaks the rule
            body["backdated"] = True
        body["effective_from"] = (now + timedelta(seconds=lead_s)).isoformat()
        body["published_at"] = now.isoformat()
        return rate_id, json.dumps(body).encode()
