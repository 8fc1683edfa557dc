"""Who takes part in ``tallyport bench stream`` beside the worker, and how each is run."""

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.task import Measured, Task, read_answer
from pipeline.core.errors import TallyportError

RUN_TIMEOUT_S = 900.0
WORKER = "tallyport"
FLOOR = "floor"
PEERS_PYTHON = Path(__file__).parents[2] / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True, slots=True)
class Contender:
    """A module that answers a ``Task``.

    ``is_peer``: it runs in the peers' environment. ``takes_part``: it is so slow that it reads a
    topic of its own with the first events only.
    """

    name: str
    module: str
    variant: str = ""
    is_peer: bool = False
    takes_part: bool = False


OWN = (
    Contender(FLOOR, "pipeline.bench.floor"),
    Contender("plain_faust", "pipeline.bench.plain_faust", takes_part=True),
)
PEERS = (
    Contender("validated_floor", "pipeline.bench.floor", "validated"),
    Contender("quix_streams", "pipeline.bench.peers.quix_streams", is_peer=True),
    Contender("bytewax", "pipeline.bench.peers.bytewax_flow", is_peer=True),
    Contender("bytewax_recovery", "pipeline.bench.peers.bytewax_flow", "recovery", is_peer=True),
)


class ContenderFailed(TallyportError):
    """A contender did not finish, or its totals are not the floor's: there is no figure for it."""


class PeersMissing(TallyportError):
    """The peers' environment is not there; the message says how to make it."""

    def __init__(self, python: Path) -> None:
        super().__init__(
            "Quix Streams and Bytewax run in an environment of their own, which is not there "
            f"({python}); run `make peers`, or name its interpreter with --peers-python"
        )


def check_peers(python: Path) -> None:
    """Raises ``PeersMissing`` where there is no such interpreter."""
    if not os.access(python, os.X_OK):
        raise PeersMissing(python)


async def run_contender(
    contender: Contender, task: Task, peers_python: Path, environ: Mapping[str, str]
) -> Measured:
    """Runs it to its end; raises ``ContenderFailed`` when it fails or takes too long."""
    python = str(peers_python) if contender.is_peer else sys.executable
    process = await asyncio.create_subprocess_exec(
        python,
        "-m",
        contender.module,
        task.encode(),
        env=dict(environ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_TIMEOUT_S):
            out, err = await process.communicate()
    except BaseException as error:
        process.kill()
        await process.wait()
        if isinstance(error, TimeoutError):
            raise ContenderFailed(
                f"{contender.name} took more than {RUN_TIMEOUT_S:.0f} s"
            ) from error
        raise
    told = err.decode(errors="replace").strip()[-2000:]
    if process.returncode:
        raise ContenderFailed(f"{contender.name} ended with {process.returncode}: {told}")
    try:
        return read_answer(out.decode(errors="replace"))
    except ValueError as error:
        raise ContenderFailed(f"{contender.name} gave no answer: {told}") from error
