"""Jars from Maven Central, each pinned by its SHA-256.

A list of pins has a line per jar, ``sha256  group:artifact:version[:classifier]``; no dependency is
resolved, so nothing that is not pinned is ever fetched.
"""

import fcntl
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline.core.errors import TallyportError

DOWNLOADS_AT_ONCE: Final = 4
ATTEMPTS: Final = 3


class JarsUnavailable(TallyportError):
    """A jar is not there and could not be fetched."""


class PinnedJar(NamedTuple):
    group: str
    artifact: str
    version: str
    sha256: str
    classifier: str = ""

    @property
    def filename(self) -> str:
        return f"{'-'.join(filter(None, self[1:3] + self[4:]))}.jar"

    @property
    def coordinates(self) -> str:
        return ":".join(filter(None, self[:3] + self[4:]))


def read_pins(text: str) -> list[PinnedJar]:
    """The jars of a list of pins, in its order."""
    jars: list[PinnedJar] = []
    for line in text.splitlines():
        sha256, coordinates = line.split()
        group, artifact, version, *classifier = coordinates.split(":")
        jars.append(PinnedJar(group, artifact, version, sha256, *classifier))
    return jars


def have_jars(jars: Sequence[PinnedJar], folder: Path) -> bool:
    """Whether ``folder`` holds all of them."""
    return all((folder / jar.filename).is_file() for jar in jars)


def fetch_jars(jars: Sequence[PinnedJar], folder: Path, otherwise: str = "") -> None:
    """Makes ``folder``, with all ``jars`` in it; ``otherwise`` says what to do when that fails.

    A folder appears under its final name only when every checksum was right, so one that exists
    with all files is taken as it is. Safe to call from several processes at once.

    Raises:
        JarsUnavailable: a jar cannot be fetched or has another checksum.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.with_name(f"{folder.name}.lock")):
        if not have_jars(jars, folder):
            _fetch_into(jars, folder, otherwise)


@contextmanager
def _exclusive(path: Path) -> Generator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch_into(pins: Sequence[PinnedJar], folder: Path, otherwise: str) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        jars = staging / "jars"
        jars.mkdir()
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool:
            for done in [pool.submit(_fetch, pin, staging, jars, otherwise) for pin in pins]:
                done.result()
        if folder.exists():
            shutil.rmtree(folder)
        jars.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fetch(jar: PinnedJar, repository: Path, target: Path, otherwise: str) -> None:
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
        f"could not fetch {jar.coordinates} ({problem}); check the network{otherwise}"
    )


def _download(jar: PinnedJar, repository: Path) -> Path:
    context = _maven(repository)
    artifact = (
        context.project(jar.group, jar.artifact).at_version(jar.version).artifact(jar.classifier)
    )
    cached: Path = artifact.cached_path
    cached.unlink(missing_ok=True)  # what a broken download left would be taken as it is
    return Path(artifact.resolve())


def _maven(repository: Path) -> Any:
    try:
        from jgo.maven import MavenContext, PythonResolver
    except ImportError as error:
        raise JarsUnavailable(
            "jars are fetched by the extra: pip install 'tallyport[all]'"
        ) from error
    logging.getLogger("jgo").setLevel(logging.ERROR)
    return MavenContext(resolver=PythonResolver(), repo_cache=repository, local_repos=[])
