"""What every benchmark starts with: settings of its own, and a line that says how far it is."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.cli.context import settings

if TYPE_CHECKING:
    from pipeline.settings import Settings


@contextmanager
def own_settings() -> "Generator[Settings]":
    """The settings of this process, but on free ports and a data folder that is removed after."""
    with tempfile.TemporaryDirectory(prefix="tallyport-bench-") as folder:
        yield settings().on_its_own(Path(folder))


def say(line: str) -> None:
    """Tells whoever waits."""
    click.echo(line, err=True)
