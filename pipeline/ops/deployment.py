"""Everything on one machine: embedded servers where none is configured, and the parts as children.

Owns the order in which things start and stop, and the addresses they get. Knows nothing of what
the parts do.
"""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pipeline.core.errors import ConfigurationError, TallyportError
from pipeline.endpoints import remove_endpoints, write_endpoints
from pipeline.ops.child_process import ChildProcess
from pipeline.ops.folder_lock import FolderLock
from pipeline.ops.kafka_server import HOST, KafkaServer
from pipeline.ops.loopback_ports import usable_port
from pipeline.processor import processor_to_stay_on
from pipeline.settings import Settings, variable
from pipeline.web.key_ring import open_ring

if TYPE_CHECKING:
    from pipeline.ops.rebuild_report import RebuildReport

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
WATCH_INTERVAL_S = 0.2
RESTARTS = 5
RESTART_WINDOW_S = 600.0
"""A part may end so often within this time and is started again; after that all ends."""
_POLL_S = 0.05

PARTS = ("worker", "sink", "api")
LEDGER = "ledger-server"

T = TypeVar("T")


class PartFailed(TallyportError):
    """A part did not become ready, or ended by itself; the message names its log."""

    def __init__(self, message: str, exit_status: int = TallyportError.exit_status) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class Deployment:
    """What ``tallyport up`` runs, as an object for ``up``, ``demo`` and tests.

    Use it as ``async with Deployment(settings) as deployment``: entering returns when all parts
    take work, leaving stops everything. ``settings`` is what a client of it needs: the given ones
    with the addresses filled in; ``parts`` leaves some of worker, sink and API out. ``restored``
    says what was restored where Kafka was empty and the ledger was not. Must be used from the main
    thread (see ``tether``).

    Raises ``ConfigurationError`` for a port in use and for what the API would refuse, ``Refused``
    while another one runs on the data folder, ``PartFailed`` or ``KafkaFailed`` when something
    does not come up.
    """

    def __init__(self, settings: Settings, parts: tuple[str, ...] = PARTS) -> None:
        self.settings = settings
        self._parts = parts
        self._restarted_at_s: list[float] = []
        self.children: dict[str, ChildProcess] = {}
        self.kafka_server: KafkaServer | None = None
        self.restored: RebuildReport | None = None
        self.kafka = settings.kafka_bootstrap or ""
        self.clickhouse_url = ""
        self.api_url = ""
        self._data_dir = settings.data_dir.absolute()
        self._lock = FolderLock(self._data_dir / "up.lock", "tallyport up")

    @property
    def ready_line(self) -> str:
        """The one line ``up`` prints."""
        return f"ready kafka={self.kafka} clickhouse={self.clickhouse_url} api={self.api_url}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start everything; on any failure, cancellation included, nothing is left running."""
        if "api" in self._parts:
            open_ring(self.settings)  # the API would refuse it too, with all else running by then
        self._lock.acquire()
        try:
            self._choose_ports()
            await _together(self._start_kafka(), self._start_ledger())
            await self._restore()
            await self._start_parts()
        except BaseException:
            self.kill()
            raise

    async def wait(self) -> None:
        """Returns never; starts parts that have ended again, and says so on standard error.

        Raises ``PartFailed`` when a server has ended, or parts too often.
        """
        while True:
            for ended in self._ended_parts():
                self._start_again(ended)
            await asyncio.sleep(WATCH_INTERVAL_S)

    async def stop(self) -> None:
        """End the parts, then the servers under them; each is killed when it takes too long."""
        await self._stop_children(PARTS[::-1])
        kafka = self.kafka_server
        if kafka is not None:
            kafka.terminate()
        await self._stop_children((LEDGER,))
        if kafka is not None:
            await asyncio.to_thread(kafka.stop)
        self._forget()

    def kill(self) -> None:
        """SIGKILL everything at once, as a power cut would."""
        for child in self.children.values():
            child.send(signal.SIGKILL)
        for child in self.children.values():
            child.kill()
        if self.kafka_server is not None:
            self.kafka_server.kill()
        self._forget()

    def launch(self, name: str) -> ChildProcess:
        """Start one part (again); does not wait. ``children[name]`` is its process."""
        child = ChildProcess(
            name,
            [sys.executable, "-m", "pipeline", name],
            self._log_file(name),
            env=child_environ(self._settings_of(name), os.environ),
            inherited=[self._lock.fileno()],
        )
        self.children[name] = child
        return child

    async def wait_ready(self, name: str, timeout_s: float = READY_TIMEOUT_S) -> str:
        """The part's ready line. Raises ``PartFailed`` when it ends or stays silent; with the
        status of wrong configuration when that is what it ended with."""
        child = self.children[name]
        deadline = asyncio.get_running_loop().time() + timeout_s
        while (line := child.ready_line()) is None:
            if (status := child.exit_status()) is not None:
                wrong = status == ConfigurationError.exit_status
                raise PartFailed(_ended(child), status if wrong else PartFailed.exit_status)
            if asyncio.get_running_loop().time() > deadline:
                raise PartFailed(f"{name} was not ready within {timeout_s:.0f} s{child.log_note()}")
            await asyncio.sleep(_POLL_S)
        return line

    def _settings_of(self, name: str) -> Settings:
        settings = self.settings
        if name == "worker":
            if settings.worker_cpu is None:
                return settings.replaced(worker_cpu=processor_to_stay_on())
        elif settings.health_port:  # one port, one process
            return settings.replaced(health_port=None)
        return settings

    def _choose_ports(self) -> None:
        settings = self.settings
        changes: dict[str, object] = {
            "data_dir": self._data_dir,
            "partitions": settings.partition_count,
            "replication": settings.replication_factor,
            "api_port": usable_port(settings.api_port, variable("api_port"), settings.api_host),
        }
        if settings.embedded_ledger:
            changes["ledger_port"] = usable_port(
                settings.ledger_port, variable("ledger_port"), HOST
            )
        self.settings = settings.replaced(**changes)

    async def _start_kafka(self) -> None:
        if self.settings.embedded_kafka:
            server = KafkaServer(
                self._data_dir / "kafka",
                self.settings.kafka_port,
                home=self.settings.kafka_home,
                log_file=self._log_file("kafka"),
            )
            self.kafka_server = server
            await _in_thread(server.prepare)
            server.launch()
            await asyncio.to_thread(server.wait_ready)
            self.kafka = server.bootstrap
            self.settings = self.settings.replaced(kafka_bootstrap=self.kafka)
            write_endpoints(self._data_dir, kafka=self.kafka)
        else:
            from pipeline.kafka import check_kafka

            await check_kafka(self.settings)
        from pipeline.stream.topics import create_or_check

        await create_or_check(self.settings)

    async def _start_ledger(self) -> None:
        if self.settings.embedded_ledger:
            self.launch(LEDGER)
            await self.wait_ready(LEDGER)
        from pipeline.ledger.client import ledger_address
        from pipeline.ledger.migrate import migrate_address

        address = ledger_address(self.settings, write=True)
        self.clickhouse_url = address.url
        await _in_thread(lambda: migrate_address(address))

    async def _restore(self) -> None:
        """Gives an empty Kafka what the ledger holds, before anything is counted."""
        from pipeline.ops.rebuild import rebuild, restore_is_due

        if "worker" in self._parts and await restore_is_due(self.settings):
            self.restored = await rebuild(self.settings)

    async def _start_parts(self) -> None:
        for name in self._parts:
            self.launch(name)
        if self._parts:
            lines = await _together(*(self.wait_ready(name) for name in self._parts))
            if "api" in self._parts:
                self.api_url = address_in(lines[self._parts.index("api")], "api")
                write_endpoints(self._data_dir, api_url=self.api_url)

    def _ended_parts(self) -> list[ChildProcess]:
        """Worker, sink and API, where they have ended; raises ``PartFailed`` for a server."""
        kafka = self.kafka_server
        if kafka is not None and (status := kafka.exit_status()) is not None:
            raise PartFailed(f"kafka ended {_how(status)}{kafka.log_note()}")
        ended = [child for child in self.children.values() if child.exit_status() is not None]
        for child in ended:
            if child.name not in PARTS:
                raise PartFailed(_ended(child))
        return ended

    def _start_again(self, child: ChildProcess) -> None:
        now_s = asyncio.get_running_loop().time()
        recent = [at_s for at_s in self._restarted_at_s if now_s - at_s < RESTART_WINDOW_S]
        if len(recent) >= RESTARTS:
            raise PartFailed(_ended(child))
        self._restarted_at_s = [*recent, now_s]
        told = f"{_ended(child)}; started again ({len(recent) + 1} of {RESTARTS})"
        print(f"tallyport: {told}", file=sys.stderr, flush=True)
        self.launch(child.name)

    async def _stop_children(self, names: tuple[str, ...]) -> None:
        children = [self.children[name] for name in names if name in self.children]
        for child in children:
            child.terminate()
        for child in children:
            await asyncio.to_thread(child.stop, STOP_TIMEOUT_S)

    def _forget(self) -> None:
        self.children.clear()
        self.kafka_server = None
        with contextlib.suppress(OSError):
            remove_endpoints(self._data_dir)
        self._lock.release()

    def _log_file(self, name: str) -> Path:
        return self._data_dir / "logs" / f"{name}.log"


def child_environ(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child that is to see exactly ``settings``.

    Settings at their default are passed as empty, which counts as not set, so that neither the
    parent's variables nor a ``.env`` decide in the child.
    """
    unset = {variable(name): "" for name in type(settings).model_fields}
    return {**environ, **unset, **settings.environ(), "PYTHONUNBUFFERED": "1"}


def address_in(line: str, name: str) -> str:
    """The value of ``name=`` in a ready line."""
    for word in line.split():
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    raise PartFailed(f"the ready line of {name} names no address: {line!r}")


async def _together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """All results; at the first failure the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _in_thread(work: Callable[[], object]) -> None:
    """Runs ``work()`` in a thread; when cancelled, first waits for it, so that nothing it started
    is left behind unseen."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _ended(child: ChildProcess) -> str:
    return f"{child.name} ended {_how(child.exit_status() or 0)}{child.log_note()}"


def _how(status: int) -> str:
    return f"with status {status}" if status >= 0 else f"by signal {-status}"
