"""``tallyport bench stream --trouble``: one worker on backlogs with trouble, beside a clean one.

Each kind has a topic of its own in each round. Its rate is that of all records of the topic, and
counts only when each of them ended as it had to.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.bench.backlog import drop, fill
from pipeline.bench.contenders import ContenderFailed
from pipeline.bench.stream import Say
from pipeline.bench.task import Measured
from pipeline.bench.traffic import Load
from pipeline.bench.troubled import CLEAN, TROUBLES, Fates, Trouble
from pipeline.bench.worker_run import run_worker
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings
from pipeline.stream.tables import TableView


@dataclass(frozen=True, slots=True)
class TroubleBench:
    """What the worker measured in each round, by kind of trouble; the clean run is one of them."""

    load: Load
    rounds: list[dict[str, Measured]] = field(default_factory=list[dict[str, Measured]])

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers; ``to_clean`` is the median of the ratios within a round."""
        return {"events": self.load.events, "kinds": [self._row(name) for name in self.rounds[0]]}

    def _row(self, name: str) -> dict[str, object]:
        found = [one[name] for one in self.rounds]
        ratios = [one[name].events_per_s / one[CLEAN.name].events_per_s for one in self.rounds]
        return {
            "trouble": name,
            "events_per_s": statistics.median(one.events_per_s for one in found),
            "cpu_s_per_million": statistics.median(one.cpu_us for one in found),
            "peak_mb": statistics.median(one.peak_mb for one in found),
            "to_clean": statistics.median(ratios),
        }


async def run(
    settings: Settings,
    load: Load,
    rounds: int,
    say: Say,
    troubles: Sequence[Trouble] = TROUBLES,
) -> TroubleBench:
    """Runs the clean one and ``troubles`` in every round.

    Raises ``ContenderFailed`` when a record ended otherwise than it must.
    """
    bench = TroubleBench(load)
    async with Deployment(settings, parts=()) as deployment:
        for number in range(rounds):
            found: dict[str, Measured] = {}
            for kind, trouble in enumerate((CLEAN, *troubles)):
                found[trouble.name] = await _run(deployment, f"t{number}.{kind}.", load, trouble)
                rate = found[trouble.name].events_per_s
                say(f"round {number + 1}: {trouble.name}: {rate:,.0f} events/s")
            bench.rounds.append(found)
    return bench


async def _run(deployment: Deployment, prefix: str, load: Load, trouble: Trouble) -> Measured:
    settings = deployment.settings.replaced(topic_prefix=prefix)
    await fill(settings, trouble.spoil(load.made()))
    found, tables = await run_worker(deployment, settings, load.events)
    _check(trouble, load.events, tables)
    await drop(settings)
    return found


def _check(trouble: Trouble, events: int, tables: dict[int, TableView]) -> None:
    positions = [table.position for table in tables.values()]
    ended = Fates(
        sum(position.rejected for position in positions),
        sum(position.duplicates for position in positions),
        sum(position.unpriced for position in positions),
    )
    accepted = sum(position.accepted for position in positions)
    due = trouble.fates(events)
    if ended != due or accepted != events - due.rejected - due.duplicates:
        raise ContenderFailed(
            f"{trouble.name}: {accepted} accepted and {ended}, but {due} were due"
        )
