"""``budgets``: the policies on Kafka, and what their states say."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipeline.cli.context import Kafka, command_line_user, on_kafka
from pipeline.cli.output import as_json, print_json, print_table
from pipeline.core.errors import ConfigurationError, InvalidField, TallyportError

if TYPE_CHECKING:
    from pipeline.core.policies import Policy
    from pipeline.stream.policy_log import PolicyView

_UNITS = click.Choice(["tokens", "cost"])
_PERIODS = click.Choice(["day", "week", "month", "rolling-30d"])
_COLUMNS = (
    "scope", "unit", "period", "enabled", "soft_cap", "hard_cap", "warn_threshold_pct", "on_stale",
    "extra",
)  # fmt: skip
_STATE_COLUMNS = ("scope", "unit", "period", "status", "used", "remaining", "hard_cap", "resets_at")

C = TypeVar("C", bound=Callable[..., Any])


def _budget_options(command: C) -> C:
    command = click.option("--period", type=_PERIODS, required=True, help="The budget's period.")(
        command
    )
    command = click.option("--unit", type=_UNITS, required=True, help="What is counted.")(command)
    return click.argument("scope")(command)


async def _load(kafka: Kafka) -> "PolicyView":
    from pipeline.stream.policy_log import load_policies

    return await load_policies(kafka.client, kafka.topics)


@click.group()
def budgets() -> None:
    """List, show and change budget policies.

    A SCOPE is all, org:ID, port:ID, group:ID or user:ID; with * as the ID it stands for each id of
    that kind that has no own policy for the same unit and period.
    """


@budgets.command("list")
@as_json
def list_(json_wanted: bool) -> None:
    """List every policy, and the records that are ignored because they are not valid."""
    from pipeline.core.policies import policy_fields

    view = on_kafka(_load)
    policies = [policy_fields(policy) for _, policy in sorted(view.policies.items())]
    invalid = [
        {
            "key": found.key.decode(errors="replace"),
            "offset": found.offset,
            "field": found.field,
            "rule": found.rule,
            "last_valid": policy_fields(found.last_valid) if found.last_valid else None,
        }
        for found in view.invalid
    ]
    if json_wanted:
        print_json({"policies": policies, "invalid": invalid})
        return
    print_table([_shown(fields) for fields in policies], _COLUMNS)
    for found in invalid:
        stays = "the last valid one stays" if found["last_valid"] else "no policy is in force"
        click.echo(
            f"not valid, {stays}: {found['key']} at offset {found['offset']}: "
            f"{found['field']}: {found['rule']}"
        )


def _shown(fields: Mapping[str, Any]) -> dict[str, Any]:
    extra = fields["extra"]
    return {**fields, "extra": extra and f"{extra['amount']} until {extra['until']}"}


@budgets.command()
@click.argument("scope")
@as_json
def show(scope: str, json_wanted: bool) -> None:
    """Show the policies on SCOPE and its states as the worker last published them."""
    from pipeline.core.budgets import state_fields
    from pipeline.core.policies import policy_fields, unset_policy
    from pipeline.core.scopes import parse_scope, wildcard_of

    wanted = parse_scope(scope)

    async def read(kafka: Kafka) -> tuple["PolicyView", list[dict[str, Any]]]:
        asked = await _states(kafka, wanted)
        return await _load(kafka), [state_fields(*record) for record in asked]

    view, states = on_kafka(read)
    names = {wanted, wildcard_of(wanted)}
    policies = [policy_fields(found) for found in view.policies.values() if found.scope in names]
    default = unset_policy(wanted, "tokens", "month")
    if not policies and default is not None:
        policies = [policy_fields(default)]
    if json_wanted:
        print_json({"scope": scope, "policies": policies, "states": states})
        return
    print_table([_shown(fields) for fields in policies], _COLUMNS)
    click.echo()
    print_table(states, _STATE_COLUMNS)


async def _states(kafka: Kafka, scope: str) -> list[Any]:
    """The states that count for ``scope`` now."""
    from pipeline.core.budgets import StateTable, is_heartbeat
    from pipeline.core.scopes import parse_key, wildcard_of
    from pipeline.stream.reader import read_to_end

    table = StateTable()
    names = {scope, wildcard_of(scope)}
    async for records in read_to_end(kafka.client, kafka.topics.state):
        for record in records:
            if record.key is None or is_heartbeat(record.key):
                continue
            if parse_key(record.key).scope in names:
                table.put(record.key, record.value)
    return table.asked([scope], int(time.time() * 1000))


@budgets.command("set")
@_budget_options
@click.option("--soft", help="Soft cap: tokens, or an amount like 2.50; 'none' removes it.")
@click.option("--hard", help="Hard cap; 0 blocks everything, 'none' removes it.")
@click.option("--warn-pct", type=click.IntRange(0, 100), help="Soft line in % of the hard cap.")
@click.option("--on-stale", type=click.Choice(["allow", "deny"]), help="When states are stale.")
@click.option("--enable/--disable", "enabled", default=None, help="Whether the policy acts.")
@click.option("--extra", nargs=2, metavar="AMOUNT UNTIL", help="Raise the hard cap until a time.")
@click.option("--notify", multiple=True, help="mailto: or https: address for alerts (repeatable).")
@as_json
def set_(scope: str, unit: str, period: str, json_wanted: bool, **given: Any) -> None:
    """Set the policy of one budget; what is not named stays as it is."""
    changes = _changes(unit, given)
    _change(scope, unit, period, changes, json_wanted)


def _changes(unit: str, given: Mapping[str, Any]) -> dict[str, object]:
    changes: dict[str, object] = {}
    for flag, field in (("soft", "soft_cap"), ("hard", "hard_cap")):
        if given[flag] is not None:
            changes[field] = None if given[flag] == "none" else _cap(f"--{flag}", given[flag], unit)
    for flag, field in (
        ("warn_pct", "warn_threshold_pct"),
        ("on_stale", "on_stale"),
        ("enabled", "enabled"),
    ):
        if given[flag] is not None:
            changes[field] = given[flag]
    if given["extra"]:
        amount, until = given["extra"]
        changes["extra"] = {"amount": _cap("--extra", amount, unit), "until": until}
    if given["notify"]:
        changes["notify"] = list(given["notify"])
    return changes


def _cap(flag: str, text: str, unit: str) -> int | str:
    if unit == "cost":
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigurationError(f"{flag}: must be a whole number of tokens, not {text!r}")
    return int(text)


def _change(
    scope: str, unit: str, period: str, changes: Mapping[str, object], json_wanted: bool
) -> None:
    from pipeline.core.policies import merge_partial, policy_fields
    from pipeline.core.scopes import parse_scope, record_key
    from pipeline.stream.policy_log import PolicyEdit, edit_policies

    internal = parse_scope(scope)
    key = record_key(internal, unit, period)
    changed: list[Policy] = []

    def decide(view: "PolicyView") -> list[PolicyEdit]:
        changed[:] = [merge_partial(internal, unit, period, view.policies.get(key), changes)]
        return [PolicyEdit(key, changed[0])]

    on_kafka(lambda kafka: edit_policies(kafka.client, kafka.topics, command_line_user(), decide))
    fields = policy_fields(changed[0])
    if json_wanted:
        print_json(fields)
    else:
        print_table([_shown(fields)], _COLUMNS)


@budgets.command()
@_budget_options
@as_json
def disable(scope: str, unit: str, period: str, json_wanted: bool) -> None:
    """Keep the policy but let it refuse nothing."""
    _change(scope, unit, period, {"enabled": False}, json_wanted)


@budgets.command()
@_budget_options
@as_json
def delete(scope: str, unit: str, period: str, json_wanted: bool) -> None:
    """Delete the policy of one budget; a wildcard policy applies again where there is one."""
    from pipeline.core.scopes import parse_scope, record_key
    from pipeline.stream.policy_log import PolicyEdit, edit_policies

    key = record_key(parse_scope(scope), unit, period)

    def decide(view: "PolicyView") -> list[PolicyEdit]:
        if not view.knows(key):
            raise TallyportError(f"there is no policy {key}")
        return [PolicyEdit(key, None)]

    on_kafka(lambda kafka: edit_policies(kafka.client, kafka.topics, command_line_user(), decide))
    if json_wanted:
        print_json({"deleted": key})
    else:
        click.echo(f"deleted {key}")


@budgets.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would change and write nothing.")
@as_json
def apply(file: Path, dry_run: bool, json_wanted: bool) -> None:
    """Write the policies of FILE, YAML or JSON: a list, or an object with `policies`.

    Policies that the file does not name stay as they are. All are checked before any is written.
    """
    from pipeline.core.policies import policy_fields
    from pipeline.stream.policy_log import PolicyEdit, edit_policies

    policies = _read_file(file)
    outcomes: list[str] = []

    def decide(view: "PolicyView") -> list[PolicyEdit]:
        outcomes[:] = [_outcome(view.policies.get(policy.key), policy) for policy in policies]
        changed = zip(outcomes, policies, strict=True)
        return [PolicyEdit(one.key, one) for outcome, one in changed if outcome != "unchanged"]

    async def work(kafka: Kafka) -> None:
        if dry_run:
            decide(await _load(kafka))
        else:
            await edit_policies(kafka.client, kafka.topics, command_line_user(), decide)

    on_kafka(work)
    changes = [
        {"change": outcome, **policy_fields(policy)}
        for outcome, policy in zip(outcomes, policies, strict=True)
    ]
    if json_wanted:
        print_json({"dry_run": dry_run, "policies": changes})
    else:
        print_table([_shown(change) for change in changes], ("change", *_COLUMNS))


def _read_file(file: Path) -> list["Policy"]:
    import yaml

    from pipeline.core.policies import parse_policy_file

    try:
        text = file.read_text("utf-8")
        found: object = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        return parse_policy_file(found)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: is not UTF-8") from error
    except (yaml.YAMLError, json.JSONDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{file}: {' '.join(str(error).split())}") from error
    except InvalidField as error:
        raise ConfigurationError(f"{file}: {error}") from error


def _outcome(current: "Policy | None", wanted: "Policy") -> str:
    if current is None:
        return "new"
    return "unchanged" if current == wanted else "changed"
