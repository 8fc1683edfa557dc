"""A plain Faust agent doing the job: decode, validate, price, a table write per port and per user.

``python -m pipeline.bench.plain_faust TASK``. It has Faust's own changelog topics and nothing of
ours beyond the job: no dedupe, no ledger.
"""

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import faust
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from pipeline.bench.job import Amounts, Job
from pipeline.bench.task import Measured, Task, answer, measured, task_of_this_process

START_TIMEOUT_S = 90.0


async def run(task: Task, scratch: Path) -> Measured:
    """Takes every event of the task; the time runs from the first to the last of them."""
    name = f"plain-faust-{time.time_ns()}"
    await _create_changelogs(task, name)
    app = faust.App(
        name,
        broker=f"kafka://{task.kafka}",
        store="memory://",
        web_enabled=False,
        autodiscover=False,
        topic_partitions=task.partitions,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        datadir=scratch,
    )
    ports = app.Table("ports", default=lambda: [0, 0, 0], partitions=task.partitions)
    users = app.Table("users", default=lambda: [0, 0, 0], partitions=task.partitions)
    events = app.topic(task.topic, value_serializer="raw")
    job = Job()
    begun = asyncio.Event()
    done: asyncio.Future[dict[str, float]] = asyncio.get_running_loop().create_future()

    @app.agent(events)
    async def count(stream: Any) -> None:
        taken, stopwatch = 0, None
        async for value in stream:
            if stopwatch is None:
                stopwatch = task.stopwatch()
                begun.set()
            usage = job.read(value)
            if usage is not None:
                for table, name in ((ports, usage.port_id), (users, usage.user_id)):
                    key = f"{name}|{usage.day}"
                    requests, tokens, cost_nano = table[key]
                    table[key] = [
                        requests + 1,
                        tokens + usage.tokens,
                        cost_nano + usage.cost_nano,
                    ]
            taken += 1
            if taken == task.events:
                done.set_result(stopwatch.read())

    await app.start()
    async with asyncio.timeout(START_TIMEOUT_S):
        await begun.wait()
    return measured(task.events, await done, [*_cells("port", ports), *_cells("user", users)])


def _cells(kind: str, table: Any) -> list[tuple[tuple[str, int], Amounts]]:
    cells: list[tuple[tuple[str, int], Amounts]] = []
    for key, (requests, tokens, cost_nano) in table.items():
        name, _, day = key.rpartition("|")
        cells.append(((f"{kind}:{name}", int(day)), (requests, tokens, cost_nano)))
    return cells


async def _create_changelogs(task: Task, name: str) -> None:
    # Faust would create them too late for its own check of their partition counts.
    admin = AIOKafkaAdminClient(bootstrap_servers=task.kafka)
    await admin.start()
    try:
        await admin.create_topics(
            [
                NewTopic(f"{name}-{table}-changelog", task.partitions, 1)
                for table in ("ports", "users")
            ]
        )
    finally:
        await admin.close()


async def _main(scratch: Path) -> None:
    answer(await run(task_of_this_process(), scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)  # Faust would flush for many seconds; the figure is taken


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_main(Path(folder)))
