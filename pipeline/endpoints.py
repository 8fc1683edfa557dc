"""``endpoints.json`` in the data folder: where the parts that run on this machine are found.

Each part is written by the process that serves it, under its pid, so that a second terminal can
tell what runs now from what a crash left behind. The file also holds the sink's password and is
readable by its owner only.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import ConfigurationError

FILE_NAME = "endpoints.json"
_LOCK_NAME = ".endpoints.lock"


@dataclass(frozen=True)
class Endpoints:
    """Addresses of the running parts; None where no live process serves one.

    ``kafka`` is ``HOST:PORT``, ``clickhouse_url`` and ``api_url`` are ``http://HOST:PORT``.
    ``sink_password`` belongs to the embedded ClickHouse. ``stale`` names the parts
    (``kafka``, ``clickhouse``, ``api``) that are in the file but whose process has ended.
    """

    kafka: str | None = None
    clickhouse_url: str | None = None
    sink_password: str | None = field(default=None, repr=False)
    api_url: str | None = None
    stale: tuple[str, ...] = ()


def endpoints_file(data_dir: Path) -> Path:
    return data_dir / FILE_NAME


def read_endpoints(data_dir: Path) -> Endpoints:
    """What runs on ``data_dir`` now; nothing when there is no file.

    Raises ``ConfigurationError`` when the file cannot be read as endpoints.
    """
    parts = _read(endpoints_file(data_dir))
    live = {name: part for name, part in parts.items() if _lives(part["pid"])}
    return Endpoints(
        kafka=live.get("kafka", {}).get("address"),
        clickhouse_url=live.get("clickhouse", {}).get("url"),
        sink_password=live.get("clickhouse", {}).get("sink_password"),
        api_url=live.get("api", {}).get("url"),
        stale=tuple(sorted(parts.keys() - live.keys())),
    )


def write_endpoints(
    data_dir: Path,
    *,
    kafka: str | None = None,
    clickhouse_url: str | None = None,
    sink_password: str | None = None,
    api_url: str | None = None,
    pid: int | None = None,
) -> None:
    """Record the parts that process ``pid`` (default: this one) serves; others stay as they are.

    Parts whose process has ended are dropped on the way.
    """
    owner = os.getpid() if pid is None else pid
    given: dict[str, dict[str, Any]] = {}
    if kafka is not None:
        given["kafka"] = {"address": kafka, "pid": owner}
    if clickhouse_url is not None:
        given["clickhouse"] = {"url": clickhouse_url, "pid": owner}
        if sink_password is not None:
            given["clickhouse"]["sink_password"] = sink_password
    if api_url is not None:
        given["api"] = {"url": api_url, "pid": owner}
    with _changing(data_dir) as parts:
        for name in [name for name, part in parts.items() if not _lives(part["pid"])]:
            del parts[name]
        parts.update(given)


def remove_endpoints(data_dir: Path, pid: int | None = None) -> None:
    """Forget the parts that process ``pid`` (default: this one) served."""
    owner = os.getpid() if pid is None else pid
    if not endpoints_file(data_dir).exists():
        return
    with _changing(data_dir) as parts:
        for name in [name for name, part in parts.items() if part["pid"] == owner]:
            del parts[name]


@contextmanager
def _changing(data_dir: Path) -> Generator[dict[str, dict[str, Any]]]:
    data_dir.mkdir(parents=True, exist_ok=True)
    path = endpoints_file(data_dir)
    with (data_dir / _LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        parts = _read(path)
        yield parts
        if parts:
            _replace(path, json.dumps(parts, indent=1) + "\n")
        else:
            path.unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    fd, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # made with mode 600
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    try:
        parts = json.loads(text)
        if all(isinstance(part["pid"], int) for part in parts.values()):
            return parts
    except (ValueError, TypeError, AttributeError, KeyError):
        pass
    raise ConfigurationError(f"{path} is damaged; stop what runs on this folder and remove it")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
