"""Worker, sink and API with a mail server and a receiver of webhooks: who is told what, once."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer

from pipeline.core.policies import policy_from_object
from pipeline.kafka import client_kwargs
from pipeline.notices.book import BEGUN, NoticeBook
from pipeline.notices.log import begun_json
from pipeline.notices.scheduled_audit import AGREED, DIFFERS, ScheduledAudit
from pipeline.ops.deployment import Deployment, child_environ
from pipeline.reports.figures import last_week
from pipeline.settings import Settings
from pipeline.stream.policy_log import write_policies
from pipeline.stream.topics import Topics
from tests.ledger_fixture import ROOT
from tests.notices.mail_box import MailBox, Taken, mail_box
from tests.notices.receiver import Receiver, receiver

WAIT_S = 120.0
SECRET = "s3cret ü"
PRICED = {"provider": "openai", "model": "gpt-5", "kind": "llm"}


@dataclass
class Running:
    deployment: Deployment
    box: MailBox
    hook: Receiver

    @property
    def settings(self) -> Settings:
        return self.deployment.settings

    async def use(self, *events: dict[str, Any]) -> None:
        topics = Topics(self.settings.topic_prefix)
        async with AIOKafkaProducer(**client_kwargs(self.settings)) as producer:
            for event in events:
                value = json.dumps(event).encode()
                await producer.send_and_wait(topics.events, value, event["port_id"].encode())

    async def policy(self, **fields: Any) -> None:
        topics = Topics(self.settings.topic_prefix)
        client = client_kwargs(self.settings)
        await write_policies(client, topics, "test", [policy_from_object(fields)])

    def subjects(self, receiver: str) -> list[str]:
        return [str(one.mail["Subject"]) for one in self.box.to(receiver)]

    async def post(self, path: str, **headers: Any) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self.deployment.api_url, timeout=120) as client:
            return await client.post(path, headers=headers)

    async def get(self, path: str) -> Any:
        async with httpx.AsyncClient(base_url=self.deployment.api_url, timeout=120) as client:
            answer = await client.get(path)
            assert answer.status_code == 200, answer.text
            return answer.json() if answer.text.startswith("{") else answer.text

    def command(self, *arguments: str, **changed: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *arguments],
            cwd=ROOT,
            env=child_environ(self.settings.replaced(**changed), os.environ),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def event(name: str, days_ago: int = 0, **fields: Any) -> dict[str, Any]:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    known = {"event_id": name, "occurred_at": at.isoformat(), "port_id": "harbor-7", **PRICED}
    return {**known, **fields}


async def until(condition: Callable[[], bool], what: str) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    assert condition(), what


@pytest.fixture
async def running(kafka: str, topic_prefix: str, tmp_path: Path) -> AsyncIterator[Running]:
    with mail_box(MailBox()) as box, receiver(Receiver()) as hook:
        settings = Settings(
            kafka_bootstrap=kafka,
            topic_prefix=topic_prefix,
            data_dir=tmp_path,
            ledger_port=0,
            api_port=0,
            partitions=2,
            replication=1,
            smtp_url=box.url,
            mail_from="tally@harbor.example",
            mail_to="ops@harbor.example",
            webhook_url=hook.url,
            cron_secret=SECRET,
            usage_alert="0.5",  # pyright: ignore[reportArgumentType]
        )
        async with Deployment(settings) as deployment:
            yield Running(deployment, box, hook)


@pytest.mark.usefixtures("one_day")
async def test_everybody_is_told_once(running: Running) -> None:
    async with httpx.AsyncClient(base_url=running.deployment.api_url, timeout=120) as client:
        named = await client.put("/v1/names/port:harbor-7", json={"display_name": "Seven <7>"})
        assert named.is_success, named.text
    await running.policy(
        scope="port:harbor-7", unit="tokens", period="month", soft_cap=1_000, hard_cap=2_000,
        notify=["mailto:owner@harbor.example", f"{running.hook.url}/owner"],
    )  # fmt: skip
    await _soft_then_hard(running)
    await _usage_and_unpriced(running)
    await _rejected(running)
    await _report(running)
    await _nothing_again_after_a_restart(running)
    await _visible(running)
    await _audited(running)


async def _soft_then_hard(running: Running) -> None:
    owner = "owner@harbor.example"
    await running.use(event("e1", input_tokens=500))
    await running.use(event("e2", input_tokens=600, user_id="u<b>1"))
    await until(lambda: len(running.subjects(owner)) == 1, "a mail for the soft line")
    told = "Seven <7> (port:harbor-7) is over its soft line: 1,100 tokens of 1,000 tokens"
    assert told in running.subjects(owner)[0]
    await until(lambda: len(_posted_to_owner(running)) == 1, "the same by webhook")
    await running.use(event("e3", input_tokens=1_000), event("e4", input_tokens=5_000))
    await until(lambda: len(running.subjects(owner)) == 2, "a mail for the hard cap")
    assert "has reached its hard cap" in running.subjects(owner)[1]
    await until(lambda: len(_posted_to_owner(running)) == 2, "both by webhook")
    posted = [json.loads(body) for body in _posted_to_owner(running)]
    assert [one["type"] for one in posted] == ["budget.soft_line", "budget.hard_cap"]
    assert posted[1]["data"]["state"]["scope"] == "port:harbor-7"
    assert not [one for one in running.subjects("ops@harbor.example") if "cap" in one]


async def _usage_and_unpriced(running: Running) -> None:
    await running.use(
        event("e5", output_tokens=1_000_000),  # 10 dollars
        event("e6", provider="acme", model="m <i>", input_tokens=1),
        event("e7", billing_scope="user", output_tokens=10, days_ago=1),
    )
    told = running.subjects
    ops = "ops@harbor.example"
    await until(lambda: any("AI usage has reached USD" in one for one in told(ops)), "usage alert")
    await until(lambda: "No price for acme m <i>" in told(ops), "unpriced model")
    (unpriced,) = [one for one in running.box.to(ops) if "No price" in str(one.mail["Subject"])]
    assert "acme m &lt;i&gt;" in unpriced.text("html")


async def _rejected(running: Running) -> None:
    topics = Topics(running.settings.topic_prefix)
    async with AIOKafkaProducer(**client_kwargs(running.settings)) as producer:
        for number in range(30):
            await producer.send_and_wait(topics.events, b"{", f"k{number}".encode())
    ops = "ops@harbor.example"
    told = running.subjects
    await until(lambda: any("records rejected" in one for one in told(ops)), "rejected records")
    (mail,) = [one for one in running.box.to(ops) if "rejected" in str(one.mail["Subject"])]
    assert "malformed-json" in mail.text("plain")


async def _report(running: Running) -> None:
    assert (await running.post("/v1/reports/weekly")).status_code == 401
    wrong = await running.post("/v1/reports/weekly", **{"X-Cron-Secret": "wrong"})
    assert wrong.status_code == 401
    first = await running.post("/v1/reports/weekly", **{"X-Cron-Secret": SECRET.encode()})
    assert first.status_code == 200, first.text
    week = last_week(datetime.now(UTC).date()).isoformat()
    assert first.json() == {"week": week, "status": "sent"}
    again = await running.post(f"/v1/reports/weekly?secret={SECRET}")
    assert again.json() == {"week": week, "status": "already-sent"}
    (mail,) = [one for one in running.box.taken if f"the week of {week}" in _subject(one)]
    assert mail.mail.get_content_type() == "multipart/alternative"
    assert "Rolling 30 days  USD 10." in mail.text("plain")
    assert "Cost of the rolling 30 days" in mail.text("html")
    assert "Seven <7> (port:harbor-7)" in mail.text("plain")
    assert "of 2,000 tokens per month\n    The hard cap is reached.\n" in mail.text("plain")
    assert "Seven &lt;7&gt; (port:harbor-7)" in mail.text("html")


async def _nothing_again_after_a_restart(running: Running) -> None:
    # What is under way would still come, and what is not recorded as sent is sent again.
    async with asyncio.timeout(WAIT_S):
        while (await running.get("/v1/notices"))["deliveries"]["pending"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    before = len(running.box.taken), len(running.hook.posted)
    ids = [str(one.mail["Message-ID"]) for one in running.box.taken]
    assert len(set(ids)) == len(ids)
    running.deployment.children["api"].kill()
    running.deployment.launch("api")
    line = await running.deployment.wait_ready("api")
    running.deployment.api_url = line.removeprefix("ready api=")
    await running.use(event("e8", input_tokens=1, port_id="harbor-8"))
    await running.policy(
        scope="port:harbor-8", unit="tokens", period="day", hard_cap=1,
        notify=["mailto:other@harbor.example"],
    )  # fmt: skip
    await until(lambda: running.subjects("other@harbor.example") != [], "the next alert")
    assert len(running.box.taken) - len(running.box.to("other@harbor.example")) == before[0]
    assert len(running.hook.posted) == before[1]


async def _visible(running: Running) -> None:
    told = await running.get("/v1/notices?limit=2")
    assert len(told["notices"]) == 2
    assert told["deliveries"]["dead"] == 0
    assert "tallyport_notices_dead 0.0" in await running.get("/metrics")
    rows = json.loads(await asyncio.to_thread(running.command, "report", "notices", "--json"))
    owner = [row for row in rows if row["to"] == "mailto:owner@harbor.example"]
    assert [row["status"] for row in owner] == ["sent", "sent"]
    assert "other@harbor.example" in await asyncio.to_thread(running.command, "report", "notices")
    today = datetime.now(UTC).date().isoformat()
    asked = ("report", "weekly", "--week", today, "--json")
    report = json.loads(await asyncio.to_thread(running.command, *asked))
    assert report["top_users"][0]["user_id"] == "u<b>1"
    assert report["rolling_30_days"]["unpriced_requests"] == 1
    seven = report["budgets"][0]
    assert (seven["scope"], seven["hard_cap"]) == ("port:harbor-7", 2_000)
    wire = (await running.get("/v1/usage/ports/harbor-7?unit=tokens"))["forecast"]
    assert (seven["forecast"], wire["outlook"]) == (wire, "reached")
    alone = await asyncio.to_thread(
        running.command, "report", "weekly", kafka_bootstrap="127.0.0.1:9"
    )
    assert "Budgets are not in this report: they could not be read from Kafka.\n" in alone
    assert "Rolling 30 days  USD 10." in alone
    page = running.settings.data_dir / "report.html"
    await asyncio.to_thread(running.command, "report", "weekly", "--html", str(page), "--mail")
    assert "u<b>1" not in page.read_text()
    assert len([one for one in running.box.taken if "the week of" in _subject(one)]) == 2


async def _audited(running: Running) -> None:
    """The audit as the schedule starts it: all agrees, then a state that nobody counted."""
    command = (sys.executable, "-m", "pipeline", "audit", "--json", "--wait", "60")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in child_environ(running.settings, {}).items():
            patch.setenv(name, value)
        assert await _outcome(command) == AGREED
        topics = Topics(running.settings.topic_prefix)
        key = b"port:harbor-8|tokens|day"
        async with AIOKafkaProducer(**client_kwargs(running.settings)) as producer:
            for partition in range(2):
                await producer.send_and_wait(topics.state, b"{}", key, partition=partition)
        assert await _outcome(command) == DIFFERS


async def _outcome(command: tuple[str, ...]) -> str:
    book = NoticeBook()
    book.apply(BEGUN.encode(), begun_json(1))
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    (draft,) = await ScheduledAudit(1, command).look(book, now_ms)
    return draft.type


def _posted_to_owner(running: Running) -> list[bytes]:
    return [one.body for one in running.hook.posted if one.path == "/owner"]


def _subject(one: Taken) -> str:
    return str(one.mail["Subject"])
