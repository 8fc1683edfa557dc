"""``keys``: who may use the HTTP API."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from pipeline.cli.context import command_line_user, settings
from pipeline.cli.output import as_json, print_json, print_table
from pipeline.core.errors import ConfigurationError

_ROLES = click.Choice(["ingest", "read", "admin"])
_COLUMNS = ("name", "role", "ports", "rate", "user_rate", "id", "created_at", "created_by")
_REVOKED_COLUMNS = (*_COLUMNS, "revoked_at", "revoked_by")


@click.group()
def keys() -> None:
    """Create, list and revoke API keys, in the file that TALLYPORT_API_KEYS_FILE names.

    A running API takes a changed file up within a second.
    """


def _file() -> Path:
    found = settings().api_keys_file
    if found is None:
        raise ConfigurationError(
            "TALLYPORT_API_KEYS_FILE is not set; set it to where the keys are to be kept"
        )
    return found


@keys.command()
@click.argument("name")
@click.option("--role", type=_ROLES, required=True, help="What it may do.")
@click.option("--port-id", "ports", multiple=True, help="Only this port (repeatable).")
@click.option("--rate", metavar="N/min", help="At most so many requests; also /s and /h.")
@click.option("--user-rate", metavar="N/min", help="At most so many checks for one user.")
@as_json
def create(name: str, json_wanted: bool, **given: Any) -> None:
    """Make a key called NAME and show it, this once.

    ingest may send events and spans, and ask for checks, states and prices; read may see everything
    there is to see; admin may do all of it and change policies and prices.
    """
    from pipeline.web.key_file import create_key

    key, text = create_key(
        _file(), name, given.pop("role"), who=command_line_user(), now=datetime.now(UTC), **given
    )
    if json_wanted:
        print_json({"key": text, **key.shown()})
    else:
        click.echo(text)
        click.echo("Keep it now: only a hash of it is stored.", err=True)


@keys.command("list")
@click.option("--all", "with_revoked", is_flag=True, help="Revoked keys as well.")
@as_json
def list_(with_revoked: bool, json_wanted: bool) -> None:
    """List the keys, never their secrets."""
    from pipeline.web.key_file import read_keys

    path = _file()
    found = [
        key.shown()
        for key in (read_keys(path) if path.exists() else ())
        if with_revoked or key.is_active
    ]
    if json_wanted:
        print_json({"keys": found})
        return
    rows = [{**fields, "ports": ", ".join(fields["ports"]) or "all"} for fields in found]
    print_table(rows, _REVOKED_COLUMNS if with_revoked else _COLUMNS)


@keys.command()
@click.argument("name")
@as_json
def revoke(name: str, json_wanted: bool) -> None:
    """Take the key called NAME (or with that id) out of use."""
    from pipeline.web.key_file import revoke_key

    key = revoke_key(_file(), name, who=command_line_user(), now=datetime.now(UTC))
    if json_wanted:
        print_json(key.shown())
    else:
        click.echo(f"revoked {key.name} ({key.id})")
