"""``tallyport bench stream --profile``: one worker on a backlog, its stack sampled by py-spy."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.backlog import fill
from pipeline.bench.contenders import ContenderFailed, check_peers
from pipeline.bench.stages import shares
from pipeline.bench.stream import Say
from pipeline.bench.task import Measured
from pipeline.bench.traffic import Load
from pipeline.bench.worker_run import run_worker
from pipeline.ops.deployment import Deployment
from pipeline.settings import Settings

SAMPLES_PER_S = 100


@dataclass(frozen=True, slots=True)
class Profile:
    """The shares of the stages in the worker's time, and what an event cost meanwhile."""

    load: Load
    measured: Measured
    shares: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """Figures as plain numbers."""
        cpu_us = self.measured.cpu_us
        return {
            "events_per_s": self.measured.events_per_s,
            "cpu_us": cpu_us,
            "broker_cpu_us": self.measured.broker_cpu_us,
            "stages": [
                {"stage": name, "share": share, "us": share * cpu_us}
                for name, share in self.shares.items()
            ],
        }


async def run(settings: Settings, load: Load, peers_python: Path, say: Say) -> Profile:
    """Samples from the first priced block to the last one.

    py-spy stands beside ``peers_python``; raises ``PeersMissing`` where it does not.
    """
    py_spy = peers_python.with_name("py-spy")
    check_peers(py_spy)
    with tempfile.TemporaryDirectory(prefix="tallyport-profile-") as folder:
        samples = Path(folder) / "samples"
        async with Deployment(settings, parts=()) as deployment:
            own = deployment.settings.replaced(topic_prefix="profile.")
            say(f"filling {load.events:,} events")
            await fill(own, load.made())
            say("the worker, with py-spy …")
            sampler = _Sampler(py_spy, samples)
            measured, _ = await run_worker(deployment, own, load.events, sampler.start)
            await sampler.wait()
        return Profile(load, measured, shares(samples.read_text("utf-8")))


class _Sampler:
    """py-spy on a process, until that ends."""

    def __init__(self, py_spy: Path, samples: Path) -> None:
        self._command = (str(py_spy), "record", "--format", "raw", "--threads",
                         "--rate", str(SAMPLES_PER_S), "--output", str(samples))  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, pid: int) -> None:
        """Begins; it goes on until the process ends."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            "--pid",
            str(pid),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def wait(self) -> None:
        """Raises ``ContenderFailed`` where it could not sample."""
        if self._process is None:
            return
        _, err = await self._process.communicate()
        if self._process.returncode:
            told = err.decode(errors="replace").strip()[-500:]
            raise ContenderFailed(f"py-spy ended with {self._process.returncode}: {told}")
