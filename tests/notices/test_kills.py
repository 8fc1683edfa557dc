"""SIGKILL between every two steps of telling people: nobody is left out, nobody is told twice but
after a kill between sending and recording it, and then with the same ids."""

import asyncio
import os
import signal
import subprocess
import sys
import uuid
from typing import NamedTuple

from pipeline.notices.log import read_book
from pipeline.ops.tether import tethered
from pipeline.stream.topics import Topics, create_or_check_topics
from tests.group_members import forget_dead_members
from tests.ledger_fixture import ROOT
from tests.notices.mail_box import MailBox, mail_box
from tests.notices.receiver import Receiver, receiver

WAIT_S = 120.0


class Kill(NamedTuple):
    """Where the process is killed, how people are told, and how often that arrives in all."""

    point: str
    channel: str
    times: int


KILLS = (
    Kill("notice-found", "mail", 1),
    Kill("notice-claimed", "mail", 1),
    Kill("notice-sent", "mail", 2),
    Kill("notice-recorded", "mail", 1),
    Kill("notice-sent", "webhook", 2),
)


def spawn(environ: dict[str, str], fault: str) -> "subprocess.Popen[bytes]":
    outside = {name: text for name, text in os.environ.items() if name[:10] != "TALLYPORT_"}
    return subprocess.Popen(
        tethered([sys.executable, "-m", "tests.notices.teller"]),
        cwd=ROOT,
        env={**outside, **environ, "FAULT_POINT": fault},
    )


async def killed_and_started_again(kafka: str, kill: Kill) -> tuple[MailBox, Receiver]:
    topics = Topics(f"t{uuid.uuid4().hex[:10]}.")
    client = {"bootstrap_servers": kafka}
    await create_or_check_topics(client, topics, 1)
    with mail_box(MailBox()) as box, receiver(Receiver()) as at:
        mail = {
            "TALLYPORT_SMTP_URL": box.url,
            "TALLYPORT_MAIL_FROM": "tally@harbor.example",
            "TALLYPORT_MAIL_TO": "ops@harbor.example",
        }
        environ = {
            "TALLYPORT_KAFKA_BOOTSTRAP": kafka,
            "TALLYPORT_TOPIC_PREFIX": topics.prefix,
            **(mail if kill.channel == "mail" else {"TALLYPORT_WEBHOOK_URL": at.url}),
        }
        first = spawn(environ, kill.point)
        assert await asyncio.to_thread(first.wait, WAIT_S) == -signal.SIGKILL, kill
        await forget_dead_members(client, topics.notices_group)
        second = spawn(environ, "")
        try:
            async with asyncio.timeout(WAIT_S):
                while True:
                    book = await read_book(client, topics.notices)
                    if book.notices and not book.pending_count:
                        break
                    await asyncio.sleep(0.05)
        finally:
            second.kill()
            await asyncio.to_thread(second.wait, WAIT_S)
    return box, at


async def test_killed_between_every_two_steps(kafka: str) -> None:
    found = await asyncio.gather(*(killed_and_started_again(kafka, kill) for kill in KILLS))
    for kill, (box, at) in zip(KILLS, found, strict=True):
        ids = [str(one.mail["Message-ID"]) for one in box.taken]
        ids += [one.headers["webhook-id"] for one in at.posted]
        assert len(ids) == kill.times, kill
        assert len(set(ids)) == 1, kill
        assert len({one.body for one in at.posted}) <= 1, kill
