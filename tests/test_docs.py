"""What the docs say exists, and what exists the docs say."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pipeline import metrics
from pipeline.cli.root import root
from pipeline.core.errors import ConfigurationError
from pipeline.settings import known_names, load_settings

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONTEXT = click.Context(root, info_name="tallyport")


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command by its full name, ``budgets set`` and such included."""
    for name in root.list_commands(CONTEXT):
        command = root.get_command(CONTEXT, name)
        assert command is not None, name
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {child}", found) for child, found in command.commands.items())


COMMANDS = dict(commands())


def flags(command: click.Command) -> set[str]:
    return {
        flag
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("-")
    } | {"--help"}


def lines_of_shell(markdown: str) -> Iterator[list[str]]:
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", markdown, re.M | re.DOTALL):
        if language in ("", "sh"):
            yield from (shlex.split(line) for line in block.splitlines() if line.strip())
    yield from (shlex.split(code) for code in re.findall(r"`((?:tallyport|make) [^`]*)`", markdown))


def command_of(words: list[str]) -> tuple[str, click.Command]:
    """The longest command that the words name."""
    name = " ".join(words[1:3]) if " ".join(words[1:3]) in COMMANDS else words[1]
    assert name in COMMANDS, " ".join(words)
    return name, COMMANDS[name]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_commands_in_the_docs_exist_with_their_flags(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), re.MULTILINE))
    for words in lines_of_shell(path.read_text("utf-8")):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "tallyport" and words[1:] != ["COMMAND", "--help"]:
            _, command = command_of(words)
            given = {word for word in words if word.startswith("--")}
            assert given <= flags(command), words


def test_every_command_is_documented() -> None:
    documented = {
        command_of(words)[0]
        for words in lines_of_shell(text("docs/commands.md"))
        if words[0] == "tallyport" and words[1] != "COMMAND"
    }
    groups = {name for name, command in COMMANDS.items() if isinstance(command, click.Group)}
    benches = ("stream", "scale", "latency", "http", "sdk", "recovery", "rebuild", "ledger")
    children = {f"bench {name}" for name in benches}
    assert documented >= COMMANDS.keys() - (groups - {"bench"}) - children
    for name in children:
        assert f"`{name}`" in text("docs/commands.md")


def test_flags_beside_a_command_belong_to_it() -> None:
    for line in text("docs/commands.md").splitlines():
        if not line.startswith("| `tallyport"):
            continue
        _, command = command_of(shlex.split(re.findall(r"`([^`]+)`", line)[0]))
        for flag in re.findall(r"(?<![\w-])--[a-z-]+", line):
            assert flag in flags(command), line


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, name
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.required:
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize(
    "name",
    ["topics", "migrate", "check", "emit", "watch", "usage", "audit", "rebuild", "demo", "bench"]
    + ["export", "forget"]
    + [name for name in sorted(COMMANDS) if name.startswith(("budgets ", "prices "))],
)
def test_commands_with_a_result_take_json(name: str) -> None:
    assert "--json" in flags(COMMANDS[name])


def test_settings_are_documented_one_for_one() -> None:
    rows = re.findall(r"^\| `(TALLYPORT_\w+)` \|", text("docs/settings.md"), re.MULTILINE)
    assert sorted(rows) == sorted(known_names())


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_settings_that_the_docs_mention_exist(path: Path) -> None:
    assert set(re.findall(r"TALLYPORT_[A-Z_]*[A-Z]", path.read_text("utf-8"))) <= known_names()


def test_defaults_in_the_docs_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| `TALLYPORT_(\w+)` \| `([^`]+)` \|", text("docs/settings.md"), re.MULTILINE
    )
    assert len(rows) >= 12
    settings = load_settings({})
    for name, default in rows:
        value = getattr(settings, name.lower())
        assert str("PLAINTEXT" if value is None else value) == default, name


def test_metrics_are_documented_one_for_one() -> None:
    pattern = r"^\| `(tallyport_\w+)` \| ([a-z, ]+) \|"
    rows = dict(re.findall(pattern, text("docs/metrics.md"), re.MULTILINE))
    assert sorted(rows) == metrics.names()
    owners = {name: ", ".join(metrics.OWNERS[name.removesuffix("_total")]) for name in rows}
    assert rows == owners


def test_every_metric_is_set_somewhere() -> None:
    code = "".join(
        path.read_text("utf-8")
        for path in (ROOT / "pipeline").rglob("*.py")
        if path.name != "metrics.py"
    )
    pattern = r"^([A-Z_]+) = _(?:counter|gauge|histogram)"
    defined = re.findall(pattern, text("pipeline/metrics.py"), re.MULTILINE)
    assert len(defined) == len(metrics.names())
    assert [name for name in defined if f"metrics.{name}" not in code] == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_within_the_repository_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
        if "://" not in target:
            assert (path.parent / target.split("#")[0]).exists(), target


def rows_under(heading: str, markdown: str) -> list[str]:
    """The first cell of each row of the table under a heading, without its backticks."""
    section = re.split(r"^## ", markdown.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


def test_fields_of_events_are_documented_one_for_one() -> None:
    from pipeline.core.event_fields import FIELDS

    page = text("docs/events.md")
    assert rows_under("Fields", page) == [*FIELDS]
    pattern = r"^\| `(\w+)` \| [^|]+ \| required \|"
    required = re.findall(pattern, page, re.MULTILINE)
    assert required == [name for name, rules in FIELDS.items() if rules.required]


def test_bounds_and_defaults_of_fields_are_those_of_the_code() -> None:
    from pipeline.core import event_fields
    from pipeline.core.event_codec import decode_event

    table = dict(
        re.findall(r"^\| `(\w+)` \| ([^|]+ \| [^|]+) \|", text("docs/events.md"), re.MULTILINE)
    )
    sent = dict.fromkeys(("event_id", "port_id", "provider", "model"), "x")
    event = decode_event(json.dumps({**sent, "occurred_at": "2026-11-22T10:15:00Z"}).encode())
    for name in event_fields.FIELDS:
        words, default = table[name].split(" | ")
        if default != "required":
            attribute = "audio_nano" if name == "audio_seconds" else name
            assert json.loads(default.strip("`")) == getattr(event, attribute), name
        if name in event_fields.COUNTERS:
            assert words == "integer, 0 to 10¹⁰"
        elif name in event_fields.OPTIONAL_TEXTS:
            assert words == f"string, to {event_fields.MAX_TEXT_CHARS}"
        elif name in event_fields.FLAGS:
            assert words == "boolean"
    assert event_fields.MAX_COUNT == 10**10
    for name in sent:
        assert table[name].startswith(f"string, 1 to {event_fields.MAX_ID_CHARS} |")
    assert table["feature"].startswith(f"string, to {event_fields.MAX_FEATURE_CHARS} |")
    for name, choices in (
        ("kind", event_fields.KINDS),
        ("billing_scope", event_fields.BILLING_SCOPES),
    ):
        assert tuple(re.findall(r"`(\w+)`", table[name].split(" | ")[0])) == choices


def test_reasons_for_a_rejection_are_documented_in_their_order() -> None:
    from pipeline.core.rejections import CORRECTION_REASONS, EVENT_REASONS

    page = text("docs/events.md")
    assert rows_under("Reasons for a rejection", page) == [*EVENT_REASONS]
    for reason in CORRECTION_REASONS:
        assert f"`{reason}`" in page


@pytest.mark.parametrize("name", ["README.md", "docs/events.md"])
def test_events_in_the_docs_are_valid(name: str) -> None:
    from pipeline.core.event_codec import decode_event
    from pipeline.core.events import Event

    page = text(name)
    examples = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for file in re.findall(r"^cat > events.ndjson <<EOF\n(.*?)^EOF$", page, re.M | re.DOTALL):
        examples += file.replace("$(date -u +%FT%TZ)", "2026-11-22T10:15:00Z").splitlines()
    assert examples
    for example in examples:
        assert isinstance(decode_event(example.encode()), Event), example


def test_the_policies_in_the_docs_are_valid() -> None:
    import yaml

    from pipeline.core.policies import parse_policy_file

    examples = re.findall(r"^```yaml\n(.*?)^```", text("docs/commands.md"), re.M | re.DOTALL)
    assert examples
    for example in examples:
        assert parse_policy_file(yaml.safe_load(example))


def test_a_setting_that_no_doc_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        load_settings({"TALLYPORT_NOT_IN_THE_DOCS": "1"})
