"""``tallyport`` commands with low priority, for work that whoever asks for it must not wait for."""

import json
import sys
from asyncio import create_subprocess_exec
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ops.tether import tethered

_NICENESS = 10
_START = (
    f"import os, runpy; os.nice({_NICENESS}); runpy.run_module('pipeline', run_name='__main__')"
)


def in_background(*arguments: str) -> list[str]:
    """``tallyport ARGUMENTS`` as a command with low priority."""
    return [sys.executable, "-c", _START, *arguments]


async def begin(command: Sequence[str], environ: Mapping[str, str] | None = None) -> Process:
    """Starts ``command`` tied to this process, its output to be read; words go as UTF-8.

    Without ``environ`` it has this process's own.
    """
    words = [word.encode("utf-8", "surrogateescape") for word in tethered([*command])]
    return await create_subprocess_exec(
        *words, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environ
    )


def report_in(printed: bytes) -> dict[str, Any] | None:
    """The JSON object that a command has printed; None where it is none."""
    try:
        found = json.loads(printed)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
