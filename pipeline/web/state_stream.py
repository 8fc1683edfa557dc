"""``GET /v1/state/stream``: budget states as server-sent events.

A new subscriber gets ``reset``, every state, a heartbeat of each partition and ``synced``; then
changes as they come. One that comes back with ``Last-Event-ID`` gets what it missed, then
``synced``. Who names scopes is told of these and nothing else. Who cannot be brought up to date
that way is sent ``reset`` and everything anew.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline import metrics
from pipeline.core.windows import format_ms
from pipeline.web.gate import Caller
from pipeline.web.state_feed import StateFeed, heartbeat_fields
from pipeline.web.state_ring import Entry, Position, StateRing, key_of

CHUNK = 500
SEND_TIMEOUT_S = 30.0
KEEP_ALIVE_S = 15.0


class Subscription:
    """What one caller has been told, and what comes next."""

    def __init__(
        self,
        feed: StateFeed,
        caller: Caller,
        may_go_on: Callable[[Caller], bool],
        last_event_id: str | None,
        scopes: frozenset[str] | None = None,
    ) -> None:
        self._feed = feed
        self._may_go_on = may_go_on
        self._caller = caller
        self._scopes = scopes
        self._last_event_id = last_event_id
        self._beats: dict[int, int] = {}
        self.closing = False

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The events, several at a time; they end with the process or the caller's rights."""
        while self._goes_on:
            ring = self._feed.ring
            if ring is None:
                await self._feed.wait_news(KEEP_ALIVE_S)
                yield b": not ready\n\n"
                continue
            async with contextlib.aclosing(self._follow(ring)) as parts:
                async for part in parts:
                    yield part
            if not self._goes_on:
                return
            self._last_event_id = None
            metrics.STREAM_RESYNCS.inc()

    async def _follow(self, ring: StateRing) -> AsyncGenerator[bytes]:
        """Ends when the subscriber has to start anew."""
        resumed = ring.resume(self._last_event_id or "", time.time())
        position = ring.end if resumed is None else resumed
        if resumed is None:
            entries = self._everything()  # as of ``position``: nothing was awaited in between
            self._beats.clear()
            yield _event("reset", b"{}")
            for start in range(0, len(entries), CHUNK):
                chunk = entries[start : start + CHUNK]
                yield b"".join(_event("state", entry.data) for entry in chunk)
        is_synced = False
        while self._goes_on and self._feed.ring is ring:
            entries = ring.since(position, CHUNK)
            if entries is None:
                return
            position = ring.after(position, CHUNK, entries)
            parts = self._changes(ring, entries, position)
            if position.place == ring.end.place:
                parts += self._heartbeats()
                if not is_synced:
                    is_synced = True
                    parts.append(self._synced(ring, position))
            if parts:
                yield b"".join(parts)
            elif not await self._wait():
                yield b": still here\n\n"

    @property
    def _goes_on(self) -> bool:
        return not self.closing and self._may_go_on(self._caller)

    def _everything(self) -> list[Entry]:
        return [
            Entry(partition or 0, 0, key_of(record), record)
            for record, partition in self._feed.mirror.everything()
            if self._is_told(record.state.scope)
        ]

    def _is_told(self, scope: str) -> bool:
        return (self._scopes is None or scope in self._scopes) and self._caller.may_see(scope)

    def _changes(self, ring: StateRing, entries: list[Entry], position: Position) -> list[bytes]:
        latest = {entry.key: entry for entry in entries}
        visible = [e for e in latest.values() if self._is_told(e.key.scope)]
        if not visible:
            return []
        parts = [
            _event("deleted" if entry.record is None else "state", entry.data)
            for entry in visible[:-1]
        ]
        last = visible[-1]
        event_id = ring.event_id(position.offsets, time.time())
        return [*parts, _event("deleted" if last.record is None else "state", last.data, event_id)]

    def _heartbeats(self) -> list[bytes]:
        mirror = self._feed.mirror
        parts: list[bytes] = []
        for partition in sorted(mirror.partitions):
            as_of_ms = mirror.as_of_ms(partition)
            if as_of_ms and self._beats.get(partition) != as_of_ms:
                self._beats[partition] = as_of_ms
                body = heartbeat_fields(mirror, partition)
                parts.append(_event("heartbeat", msgspec.json.encode(body)))
        return parts

    def _synced(self, ring: StateRing, position: Position) -> bytes:
        as_of_ms = self._feed.mirror.as_of_ms()
        body = {
            "as_of": format_ms(as_of_ms) if as_of_ms else None,
            "partitions": len(position.offsets),
        }
        return _event(
            "synced", msgspec.json.encode(body), ring.event_id(position.offsets, time.time())
        )

    async def _wait(self) -> bool:
        """Whether something new came before it was time to show that we are still here."""
        started_s = time.monotonic()
        await self._feed.wait_news(KEEP_ALIVE_S)
        return time.monotonic() - started_s < KEEP_ALIVE_S


class Streams:
    """All open streams, and a bound on their number.

    ``may_go_on`` says, as long as a stream is open, whether its caller still has the rights that
    it began with.
    """

    def __init__(self, feed: StateFeed, most: int, may_go_on: Callable[[Caller], bool]) -> None:
        self._feed = feed
        self._may_go_on = may_go_on
        self._most = most
        self._open: set[Subscription] = set()
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether no further one is taken."""
        return self._is_closed or len(self._open) >= self._most

    def open(
        self, caller: Caller, last_event_id: str | None, scopes: frozenset[str] | None = None
    ) -> Response:
        """The answer that follows the states for a caller, of ``scopes`` alone where given."""
        subscription = Subscription(self._feed, caller, self._may_go_on, last_event_id, scopes)
        return _EventStream(self, subscription)

    def enter(self, subscription: Subscription) -> None:
        subscription.closing = self._is_closed
        self._open.add(subscription)
        metrics.STREAM_CLIENTS.set(len(self._open))

    def leave(self, subscription: Subscription) -> None:
        self._open.discard(subscription)
        metrics.STREAM_CLIENTS.set(len(self._open))

    def close(self) -> None:
        """Lets every stream end by itself, so that the process can."""
        self._is_closed = True
        for subscription in self._open:
            subscription.closing = True
        self._feed.wake()


class _EventStream(Response):
    """Sends events until the client is gone, or takes none for ``SEND_TIMEOUT_S``."""

    media_type = "text/event-stream"

    def __init__(self, streams: Streams, subscription: Subscription) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        self._streams.enter(self._subscription)
        sending = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await send(start)
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.leave(self._subscription)
            self._subscription.closing = True
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._subscription.chunks()) as chunks:
            async for chunk in chunks:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(name: str, data: bytes, event_id: str | None = None) -> bytes:
    lines: Iterable[bytes] = (b"event: " + name.encode(), b"data: " + data)
    if event_id is not None:
        lines = (b"id: " + event_id.encode(), *lines)
    return b"\n".join(lines) + b"\n\n"
