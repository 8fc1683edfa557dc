"""The jars of the embedded Kafka: fetched once by Maven coordinates, pinned by SHA-256.

``kafka-4.1.0.sha256`` lists every jar (``sha256  group:artifact:version``), the transitive
dependencies of ``org.apache.kafka:kafka_2.13`` and the slf4j binding included, so no dependency
is resolved at run time and nothing unpinned is ever loaded.
"""

import os
import sys
from importlib.resources import files
from pathlib import Path

from pipeline.core.errors import TallyportError
from pipeline.ops.maven_jars import PinnedJar, fetch_jars, have_jars, read_pins

KAFKA_VERSION = "4.1.0"
_OTHERWISE = (
    ", or set TALLYPORT_KAFKA_HOME to an unpacked Kafka or TALLYPORT_KAFKA_BOOTSTRAP to a "
    "running one"
)


def pinned_jars() -> list[PinnedJar]:
    """Every jar Kafka needs, in the order of the committed list."""
    return read_pins(
        files("pipeline.ops").joinpath(f"kafka-{KAFKA_VERSION}.sha256").read_text("utf-8")
    )


def cache_folder() -> Path:
    """Where the jars are kept: the user's cache, outside of any data folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tallyport" / f"kafka-{KAFKA_VERSION}"


def kafka_jars(folder: Path | None = None) -> Path:
    """The folder that holds all pinned jars; fetches them when it is not complete.

    Raises ``JarsUnavailable`` when a jar cannot be fetched or has another checksum.
    """
    folder, jars = folder or cache_folder(), pinned_jars()
    if not have_jars(jars, folder):
        print(f"fetching Apache Kafka {KAFKA_VERSION} (about 45 MB)", file=sys.stderr)
        fetch_jars(jars, folder, _OTHERWISE)
    return folder


def main() -> int:
    try:
        print(kafka_jars())
    except TallyportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
