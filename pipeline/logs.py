"""What a process says on stderr besides its errors."""

import logging
import sys

_QUIET = ("aiokafka", "kafka", "faust", "mode", "clickhouse_connect", "urllib3", "uvicorn", "jgo")


def configure(*, debug: bool = False, level: int = logging.INFO) -> None:
    """Send log lines to stderr: our own from ``level`` on, those of libraries with ``debug`` only.

    Libraries report a server that is away many times over, while the command that asked says it
    once and readably.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pipeline").setLevel(logging.DEBUG if debug else level)
    logging.getLogger("producers").setLevel(logging.DEBUG if debug else level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.INFO if debug else logging.CRITICAL + 1)
    logging.captureWarnings(debug)
