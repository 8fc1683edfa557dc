"""Who may write for which partitions: claims on one log, so that a new owner fences the old one.

A worker writes everything in transactions, under a name made anew for every assignment
(``stream.turns``). Whoever takes a partition over must fence the owners that may still write for
it, and so every owner first leaves its name here, one record per partition and owner. The order:

    1  start   a producer with a name of its own
    2  read    the claims on these partitions
    3  fence   their owners: what they left open is decided, what they still hold is never written
    4  claim   our own, and take the fenced ones back, in one transaction
    5  read    again; whoever claimed between 2 and 4 is fenced, too

A crash before 4 leaves the claims as they were. After it, whoever claimed in between is still on
the log for the next owner to fence. Whoever finds a claim after its own has lost, and stops.
"""

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.core.errors import CorruptRecord, Refused
from pipeline.stream.reader import end_offsets, read_to_end
from pipeline.stream.topics import Topics
from pipeline.stream.transaction import Outbox, Record
from pipeline.stream.turns import TurnProducer, fence

CLAIM_VERSION = b"2"
_READ_VERSIONS = (b"1", CLAIM_VERSION)  # 1: owners with the first of our two ids only


class LostOwnership(Refused):
    """Another worker has claimed the same partitions after this one."""


@dataclass(slots=True)
class _Claims:
    """Live claims on our places: key → owner; those ``before`` ours, and ``after``."""

    before: dict[bytes, str] = field(default_factory=dict[bytes, str])
    after: dict[bytes, str] = field(default_factory=dict[bytes, str])
    end_offset: int = 0


class Ownership:
    """The claims of one assignment: source partitions and merge partitions ("homes")."""

    def __init__(
        self, client: Mapping[str, Any], topics: Topics, sources: list[int], homes: list[int]
    ) -> None:
        self._client = client
        self._topics = topics
        self._places = {b"source|%d" % p for p in sources} | {b"home|%d" % p for p in homes}
        self._owner = topics.transactional_id(uuid.uuid4().hex)
        self._claimed_from = 0

    async def take(self) -> TurnProducer:
        """Shuts out every earlier owner; returns the producer that may write from now on.

        Raises ``LostOwnership`` when another worker claimed the partitions meanwhile.
        """
        producer = TurnProducer(self._client, self._owner, self._topics.worker_group)
        try:
            await producer.start()
            if self._places:
                found = await self._read(0)
                self._claimed_from = found.end_offset
                await self._fence(found.before.values())
                # Reading the tables may take longer than a transaction may stay open.
                await producer.commit(self._claim(found), another_follows=False)
                since = await self._read(found.end_offset)
                await self._fence(set(since.before.values()) - set(found.before.values()))
                self._refuse_after(since)
        except BaseException:
            await producer.close()
            raise
        return producer

    async def verify(self) -> None:
        """Raises ``LostOwnership`` when another worker has claimed a partition since ``take``."""
        self._refuse_after(await self._read(self._claimed_from))

    @staticmethod
    def _refuse_after(since: _Claims) -> None:
        if since.after:
            other = next(iter(since.after.values()))
            raise LostOwnership(f"worker {other} has taken the same partitions over")

    def _claim(self, found: _Claims) -> Outbox:
        outbox = Outbox()
        topic = self._topics.owners
        for key in found.before:
            outbox.add(topic, 0, Record(key, None))
        for place in sorted(self._places):
            outbox.add(topic, 0, Record(place + b"|" + self._owner.encode(), CLAIM_VERSION))
        return outbox

    async def _read(self, start_offset: int) -> _Claims:
        """The claims on our places from ``start_offset`` on, open transactions waited for."""
        client, topic = self._client, self._topics.owners
        end = await end_offsets(client, topic, [0], committed=False)
        claims = _Claims(end_offset=end[0])
        start = {0: start_offset}
        is_ours_seen = False
        async for records in read_to_end(client, topic, [0], start=start, end=end):
            for record in records:
                key = record.key or b""
                place, _, owner = key.rpartition(b"|")
                if place not in self._places:
                    continue
                if owner == self._owner.encode():
                    is_ours_seen = True
                elif record.value is None:
                    claims.before.pop(key, None)
                    claims.after.pop(key, None)
                else:
                    self._check(record.value, record.offset)
                    (claims.after if is_ours_seen else claims.before)[key] = owner.decode()
        return claims

    async def _fence(self, owners: Iterable[str]) -> None:
        await asyncio.gather(*(fence(self._client, owner) for owner in set(owners)))

    def _check(self, value: bytes, offset: int) -> None:
        if value not in _READ_VERSIONS:
            raise CorruptRecord(
                f"{self._topics.owners} partition 0 offset {offset}: a claim of version "
                f"{value!r}; this release reads {CLAIM_VERSION!r} and older"
            )
