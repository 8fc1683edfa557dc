"""The jars of the embedded Kafka: fetched once by Maven coordinates, pinned by SHA-256.

``kafka-4.1.0.sha256`` lists every jar (``sha256  group:artifact:version``), the transitive
dependencies of ``org.apache.kafka:kafka_2.13`` and the slf4j binding included, so no dependency
is resolved at run time and nothing unpinned is ever loaded.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import TallyportError

KAFKA_VERSION = "4.1.0"
DOWNLOADS_AT_ONCE = 4
ATTEMPTS = 3


class JarsUnavailable(TallyportError):
    """The jars of the embedded Kafka are not there and could not be fetched."""


class PinnedJar(NamedTuple):
    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artifact}-{self.version}.jar"

    @property
    def coordinates(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def pinned_jars() -> list[PinnedJar]:
    """Every jar Kafka needs, in the order of the committed list."""
    text = files("pipeline.ops").joinpath(f"kafka-{KAFKA_VERSION}.sha256").read_text("utf-8")
    jars: list[PinnedJar] = []
    for line in text.splitlines():
        sha256, coordinates = line.split()
        group, artifact, version = coordinates.split(":")
        jars.append(PinnedJar(group, artifact, version, sha256))
    return jars


def cache_folder() -> Path:
    """Where the jars are kept: the user's cache, outside of any data folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tallyport" / f"kafka-{KAFKA_VERSION}"


def kafka_jars(folder: Path | None = None) -> Path:
    """The folder that holds all pinned jars; fetches them when it is not complete.

    A folder appears under its final name only when every checksum was right, so one that exists
    with all files in their sizes is taken as it is. Safe to call from several processes at once.
    Raises ``JarsUnavailable`` when a jar cannot be fetched or has another checksum.
    """
    folder = folder or cache_folder()
    if _complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_name(f"{folder.name}.lock")):
        if not _complete(folder):
            print(f"fetching Apache Kafka {KAFKA_VERSION} (about 45 MB)", file=sys.stderr)
            _fetch_into(folder)
    return folder


def _complete(folder: Path) -> bool:
    return all((folder / jar.filename).is_file() for jar in pinned_jars())


@contextmanager
def _exclusive(path: Path) -> Generator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_into(folder: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        jars = staging / "jars"
        jars.mkdir()
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            for done in [pool.submit(_fetch, jar, staging, jars) for jar in pinned_jars()]:
                done.result()
        if folder.exists():
            shutil.rmtree(folder)
        jars.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(jar: PinnedJar, repository: Path, target: Path) -> None:
    problem = ""
    for _ in range(ATTEMPTS):
        try:
            path = _download(jar, repository)
        except Exception as error:  # jgo and requests raise many kinds; all mean "not fetched"
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found == jar.sha256:
            path.rename(target / jar.filename)
            return
        problem = f"its SHA-256 is {found}, expected {jar.sha256}"
        path.unlink()
    raise JarsUnavailable(
        f"could not fetch {jar.coordinates} for the embedded Kafka ({problem}); check the network, "
        "or set TALLYPORT_KAFKA_HOME to an unpacked Kafka or TALLYPORT_KAFKA_BOOTSTRAP to a "
        "running one"
    )


def _download(jar: PinnedJar, repository: Path) -> Path:
    context = _maven(repository)
    artifact = context.project(jar.group, jar.artifact).at_version(jar.version).artifact()
    cached: Path = artifact.cached_path
    cached.unlink(missing_ok=True)  # what a broken download left would be taken as it is
    return Path(artifact.resolve())


def _maven(repository: Path) -> Any:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise JarsUnavailable(
            "the embedded Kafka needs the extra: pip install 'tallyport[all]'"
        ) from error
    logging.getLogger("jgo").setLevel(logging.ERROR)
    return MavenContext(resolver=PythonResolver(), repo_cache=repository, local_repos=[])


def main() -> int:
    try:
        print(kafka_jars())
    except TallyportError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
