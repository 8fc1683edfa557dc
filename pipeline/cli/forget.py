"""``forget``: erase a user."""

import sys

import click

from pipeline.cli.context import command_line_user, run_async, settings
from pipeline.cli.output import as_json, print_json


@click.command()
@click.argument("scope", metavar="user:ID")
@click.option("--yes", is_flag=True, help="Do not ask; without a terminal nothing is asked.")
@as_json
def forget(scope: str, yes: bool, json_wanted: bool) -> None:
    """Erase a user: name, policies, states, and the id in the ledger.

    The ledger keeps every entry under a pseudonym, a keyed hash of the id, and later events of the
    user go there under the same one; amounts stay, and the audit still agrees. Topics keep the id
    until their retention, and so do months that were exported before. May be run again, also after
    it was interrupted. There is no way back.
    """
    from pipeline.ops.forget import forget_user, user_of

    user_of(scope)
    if not yes and sys.stdin.isatty():
        click.confirm(f"Forget {scope} for good?", abort=True, err=True)
    found = run_async(forget_user(settings(), scope, command_line_user()))
    if json_wanted:
        print_json(found.to_json())
        return
    click.echo(
        f"{found.scope} is forgotten: {found.entries:,} entries of {found.days:,} days now say "
        f"{found.pseudonym}; {len(found.policies)} policies and {len(found.states)} states deleted"
    )
