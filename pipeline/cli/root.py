"""The command line: names and summaries here, each command's code loaded when it is called."""

import importlib
import os
import sys
import traceback
from typing import Any, NamedTuple

import click

from pipeline.core.errors import TallyportError


class _Entry(NamedTuple):
    module: str
    summary: str


_COMMANDS = {
    "up": _Entry("running", "Run everything on this machine."),
    "demo": _Entry("running", "Show the whole thing in about a minute, audited at the end."),
    "worker": _Entry("running", "Run the worker: price, count and publish budget states."),
    "sink": _Entry("running", "Run the ledger sink: priced events into ClickHouse."),
    "api": _Entry("running", "Run the HTTP API."),
    "ledger-server": _Entry("running", "Run the embedded ClickHouse."),
    "topics": _Entry("setup", "Create or check the Kafka topics."),
    "migrate": _Entry("setup", "Apply or report the ClickHouse migrations."),
    "check": _Entry("check", "Validate the settings and reach every configured server."),
    "emit": _Entry("events", "Send events from a file or stdin."),
    "watch": _Entry("watch", "Follow budget states live."),
    "budgets": _Entry("budgets", "List, show and change budget policies."),
    "prices": _Entry("prices", "List, change and explain prices."),
    "usage": _Entry("usage", "Show what was used."),
    "void": _Entry("corrections", "Take back events that should not have been counted."),
    "amend": _Entry("corrections", "Correct the counts of an event."),
    "reprice": _Entry("corrections", "Correct the price of events."),
    "keys": _Entry("keys", "Create, list and revoke API keys."),
    "audit": _Entry("audit", "Recount the events and compare tables, states and ledger."),
    "replay-rejected": _Entry("replay", "Resend rejected records after a fix."),
    "report": _Entry("report", "Print or mail the weekly report; list what was sent."),
    "rebuild": _Entry("rebuild", "Restore the tables from the ledger into an empty Kafka."),
    "export": _Entry("export", "Write months of the ledger to Parquet files, and drop them."),
    "forget": _Entry("forget", "Erase a user: name, policies, states, the id in the ledger."),
    "bench": _Entry("bench", "Run the benchmarks."),
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = importlib.import_module(f"pipeline.cli.{entry.module}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        _accept_debug(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"tallyport {version('tallyport')}")
        ctx.exit()


@click.group(
    cls=_Group, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def root() -> None:
    """Meters AI usage, prices every event exactly and stops runaway bills before the next call."""


def _accept_debug(command: click.Command) -> None:
    """Let ``--debug`` stand after the command's name as well; ``run`` reads it from the line."""
    if not any(parameter.name == "debug" for parameter in command.params):
        option = click.Option(
            ["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error."
        )
        command.params.append(option)
    if isinstance(command, click.Group):
        for child in command.commands.values():
            _accept_debug(child)


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit status. Errors are one line on stderr."""
    debug = "--debug" in arguments
    _quiet_libraries(debug)
    try:
        result: Any = root.main(arguments, prog_name="tallyport", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        return _close_stdout()
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted", 1, debug)
    except click.UsageError as error:
        return _fail(_usage_message(error, arguments), 2, debug)
    except click.ClickException as error:
        return _fail(error.format_message(), 1, debug)
    except TallyportError as error:
        return _fail(str(error), error.exit_status, debug)
    except ModuleNotFoundError:
        raise
    except Exception as error:
        return _fail(_readable(error), 1, debug)
    return result if isinstance(result, int) else 0


def _quiet_libraries(debug: bool) -> None:
    import logging

    if not debug:
        logging.getLogger().addHandler(logging.NullHandler())


def _usage_message(error: click.UsageError, arguments: list[str]) -> str:
    where = error.ctx.command_path if error.ctx else _command_path(arguments)
    message = " ".join(error.format_message().split())
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        message = "a command is missing"
    return f"{message.rstrip('.')} (see {where} --help)"


def _command_path(arguments: list[str]) -> str:
    """The command that a line calls: the reader of options does not say whose they are."""
    path = "tallyport"
    command: click.Command = root
    for word in arguments:
        if not isinstance(command, click.Group):
            break
        found = command.get_command(click.Context(command), word)
        if found is not None:
            path, command = f"{path} {word}", found
    return path


def _readable(error: Exception) -> str:
    """One line for an error that nobody turned into one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, TimeoutError):
        text = "a server did not answer in time"
    else:
        text = f"{type(error).__name__}: {text}"
    return f"{text[:500]} (--debug shows where)"


def _fail(message: str, status: int, debug: bool) -> int:
    if debug and sys.exc_info()[0] is not None:
        traceback.print_exc()
    for line in message.splitlines():
        print(f"tallyport: {line}", file=sys.stderr)
    return status


def _close_stdout() -> int:
    """The reader of our output went away, as ``head`` does: no error, and no second one at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
