"""One sink process: the shipped sink on the in-memory log and the in-memory ledger.

Where a run has corrections the shipped resolver runs beside it, as in ``tallyport sink``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from pipeline.corrections.resolver import Resolver
from pipeline.ledger import sink
from pipeline.ledger.client import ledger_errors
from pipeline.ledger.sink_status import SinkStatus
from pipeline.ledger.sink_watch import until_first_ends
from pipeline.ledger.writer import LedgerWriter
from pipeline.settings import Settings
from tests.sim import resolver
from tests.sim.client import SimulatedConsumer
from tests.sim.ledger import SimulatedClient, SimulatedLedger
from tests.sim.worker import TOPICS
from tests.sim.world import World


def settings() -> Settings:
    """The settings of every simulated sink."""
    return Settings(
        kafka_bootstrap="simulated:9092", clickhouse_url="http://simulated:8123/tallyport"
    )


class SimulatedWriter(LedgerWriter):
    """The shipped writer, connected to a simulated ledger."""

    def __init__(self, ledger: SimulatedLedger) -> None:
        super().__init__(settings())
        self._ledger = ledger

    def _connected(self) -> Any:
        with ledger_errors(self._address):
            self._ledger.check_up()
        return SimulatedClient(self._ledger)


class SimulatedSink:
    """``ended`` says how the process ended: ``killed``, ``stopped`` or the error's text."""

    def __init__(
        self,
        world: World,
        ledger: SimulatedLedger,
        name: str,
        on_ended: Callable[["SimulatedSink"], None],
        *,
        resolves: bool,
    ) -> None:
        self.world = world
        self._ledger = ledger
        self.process = world.loop.start_process(name)
        self.ended: str | None = None
        self.error: BaseException | None = None
        self._on_ended = on_ended
        self._resolves = resolves
        self._stop = asyncio.Event()
        world.loop.spawn(self.process, self._main())

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.alive:
            self.ended = "killed"
            self.world.kill(self.process)
            self._on_ended(self)

    def stop(self) -> None:
        """SIGTERM."""
        self._stop.set()

    async def _main(self) -> None:
        try:
            await self._serve()
            self.ended = self.ended or "stopped"
        except Exception as error:
            self.ended = self.ended or f"{type(error).__name__}: {error}"
            self.error = error
        self.world.loop.kill(self.process)
        self._on_ended(self)

    def _beside(self, is_owner: Callable[[], bool]) -> list[Awaitable[None]]:
        if not self._resolves:
            return []
        return [Resolver(resolver.settings(self.world.knobs.partitions), is_owner).run()]

    async def _serve(self) -> None:
        """What ``run_sink`` does, but for watching itself and rolling up."""
        kafka = {"simulation": self.world}
        consumer = SimulatedConsumer(
            **kafka,
            group_id=TOPICS.sink_group,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=100,
        )
        writer = SimulatedWriter(self._ledger)
        loop = sink._Sink(kafka, consumer, writer, TOPICS, lambda: None, SinkStatus())  # type: ignore[arg-type]
        try:
            await consumer.start()
            consumer.subscribe([TOPICS.priced], listener=loop)
            await until_first_ends(loop.run(self._stop), *self._beside(loop.holds_first_partition))
        finally:
            loop.close()
            await consumer.stop()
