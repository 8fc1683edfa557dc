"""The processor that a process stays on.

A worker's commit is a dozen short exchanges with its broker. The scheduler moves a process that
sleeps and wakes that often between processors, and on a small machine each move costs more than
the work in between.
"""

import os

from pipeline.core.errors import ConfigurationError
from pipeline.settings import variable


def processor_to_stay_on() -> int | None:
    """The last processor that this process may use.

    None where it may use only one, or where the system does not tell.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1] if len(usable) > 1 else None


def stay_on(processor: int) -> None:
    """Keeps this process, and every thread it starts from now on, on ``processor``.

    Raises ``ConfigurationError`` where that processor cannot be used.
    """
    try:
        os.sched_setaffinity(0, {processor})
    except (AttributeError, OSError) as error:
        raise ConfigurationError(
            f"{variable('worker_cpu')}: this process cannot stay on processor {processor}: {error}"
        ) from error
