"""A TCP proxy between a part and a server, which a test can stall, cut, or let lose answers."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self, cast

CHUNK_BYTES = 64 * 1024
ENDS_WITHIN_S = 10.0


class TcpProxy:
    """Listens on ``port`` and passes everything on to ``target_port``, both on loopback.

    After ``stall`` nothing passes, in either direction, and connections stay open; ``held_bytes``
    is what has come since. While ``swallowing`` requests pass and their answers are lost;
    ``swallow_from`` begins that with the first request that holds these bytes. While ``refusal``
    is set it is the answer to everything that is sent, and ``refused`` counts those answers.
    ``cut`` ends every connection.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self.port = port
        self.swallowing = False
        self.swallow_from = b""
        self.refusal = b""
        self.refused = 0
        self.swallowed_bytes = 0
        self.held_bytes = 0
        self._target_port = target_port
        self._running = asyncio.Event()
        self._running.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.resume()
        self.cut()
        await self._server.wait_closed()
        if self._serving:  # cancelled with the loop, each would be logged as an error
            await asyncio.wait(self._serving, timeout=ENDS_WITHIN_S)

    def stall(self) -> None:
        """Nothing passes from now on."""
        self._running.clear()

    def resume(self) -> None:
        """What was held back passes, and everything after it."""
        self._running.set()

    def cut(self) -> None:
        """Ends every connection, without what was on its way."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with contextlib.suppress(OSError):
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers |= {writer, to_writer}
            try:
                await asyncio.gather(
                    self._pass(reader, to_writer, answers=writer),
                    self._pass(to_reader, writer),
                )
            finally:
                self._writers -= {writer, to_writer}
                to_writer.transport.abort()
        writer.transport.abort()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        answers: asyncio.StreamWriter | None = None,
    ) -> None:
        """``answers`` is where the answers go, when these are requests."""
        while data := await source.read(CHUNK_BYTES):
            if not self._running.is_set():
                self.held_bytes += len(data)
            await self._running.wait()
            if answers is not None and self.refusal:
                answers.write(self.refusal)
                await answers.drain()
                answers.close()
                self.refused += 1
                break
            if answers is not None and self.swallow_from and self.swallow_from in data:
                self.swallowing = True
            if answers is None and self.swallowing:
                self.swallowed_bytes += len(data)
                continue
            sink.write(data)
            await sink.drain()
        sink.close()
