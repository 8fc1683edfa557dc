"""Sending corrections and learning what became of them."""

import asyncio
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaProducer
from clickhouse_connect.driver.client import Client

from pipeline.core.corrections import Correction
from pipeline.core.home import home_partition
from pipeline.corrections.entries import reached
from pipeline.corrections.progress import read_progress
from pipeline.ledger.log_reading import read_log
from pipeline.stream.reader import end_offsets, read_to_end, record_ends
from pipeline.stream.topic_identity import topic_id
from pipeline.stream.topics import Topics

POLL_S = 0.2


def correction_json(correction: Correction, run: str) -> bytes:
    """A correction as a record's value; ``run`` marks those that were sent together."""
    body: dict[str, Any] = {
        name: value
        for name in ("correction_id", "port_id", "event_id", "kind", "reason", "rate_id")
        if (value := getattr(correction, name))
    }
    if correction.counts:
        body["counts"] = correction.counts
    if "audio_nano" in correction.counts:
        counts = dict(correction.counts)
        audio_nano = counts.pop("audio_nano")
        seconds = f"{audio_nano // 10**9}.{audio_nano % 10**9:09d}"
        body["counts"] = {**counts, "audio_seconds": seconds}
    if correction.day:
        body["occurred_at"] = f"{correction.day}T00:00:00Z"
    body["run"] = run
    return json.dumps(body, ensure_ascii=False).encode()


class Dispatch:
    """One run's way to ``usage.corrections`` and back."""

    def __init__(self, kafka: Mapping[str, Any], topics: Topics, partitions: int) -> None:
        self._kafka = kafka
        self._topics = topics
        self._partitions = partitions
        self._run = uuid.uuid4().hex
        self._next_offsets: dict[int, int] = {}
        self._rejected_from: dict[int, int] = {}
        self.sent = 0

    async def begin(self) -> None:
        """Notes where rejected records end now."""
        everywhere = range(self._partitions)
        self._rejected_from = await end_offsets(self._kafka, self._topics.rejected, everywhere)

    async def send(self, producer: AIOKafkaProducer, corrections: Iterable[Correction]) -> None:
        """Sends a page; returns when the broker has acknowledged all of it."""
        futures = [
            await producer.send(
                self._topics.corrections,
                correction_json(correction, self._run),
                correction.port_id.encode(),
                partition=home_partition(correction.port_id, self._partitions),
            )
            for correction in corrections
        ]
        for future in futures:
            written = await future
            next_offset = self._next_offsets.get(written.partition, 0)
            self._next_offsets[written.partition] = max(next_offset, written.offset + 1)
        self.sent += len(futures)

    async def resolved(self, client: Client) -> None:
        """Returns once what was sent is resolved, and what came of it is in the ledger."""
        corrections_id = str(await topic_id(self._kafka, self._topics.corrections))
        while True:
            progress = await read_progress(self._kafka, self._topics, corrections_id)
            done = progress.next_offsets
            if all(done.get(p, 0) >= offset for p, offset in self._next_offsets.items()):
                break
            await asyncio.sleep(POLL_S)
        log = await read_log(self._kafka, self._topics.epoch)
        epoch = 0 if log is None else log.epoch
        # What is resolved stands on the partition of the same number, its port's home.
        ends = await record_ends(self._kafka, self._topics.resolved)
        waited_for = {p: end for p, end in ends.items() if p in self._next_offsets}
        while True:
            held = await asyncio.to_thread(reached, client, self._topics.resolved, epoch)
            if all(held.get(p, 0) >= end for p, end in waited_for.items()):
                return
            await asyncio.sleep(POLL_S)

    async def refusals(self) -> list[dict[str, str]]:
        """Those of this run that were rejected: correction_id, reason, detail."""
        found: list[dict[str, str]] = []
        async for records in read_to_end(
            self._kafka, self._topics.rejected, start=self._rejected_from
        ):
            for record in records:
                headers = dict(record.headers)
                if headers.get("source-topic") != self._topics.corrections.encode():
                    continue
                body = _body(record.value)
                if body.get("run") == self._run:
                    named = (str(body.get("correction_id")), "reason", "detail")
                    reason, detail = (headers[name].decode() for name in named[1:])
                    found.append({"correction_id": named[0], "reason": reason, "detail": detail})
        return found


def _body(value: bytes | None) -> dict[str, Any]:
    try:
        body = json.loads(value or b"")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
