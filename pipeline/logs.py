"""What a process says on stderr besides its errors."""

import logging
import sys

_OURS = ("pipeline", "producers")


def configure(*, debug: bool = False, level: int = logging.INFO) -> None:
    """Send log lines to stderr: our own from ``level`` on, those of libraries with ``debug`` only.

    Libraries report a server that is away many times over, while the command that asked says it
    once and readably. What they say is filtered where it is written, as some of them set the
    levels of their loggers themselves.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if not debug:
        handler.addFilter(_is_ours)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if debug else level)
    logging.captureWarnings(capture=True)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] in _OURS
