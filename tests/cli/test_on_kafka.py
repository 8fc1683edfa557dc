"""The commands that talk to Kafka, against a real one."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.cli.conftest import Command, Ended
from tests.producers.states import record, state

OnKafka = Callable[..., Ended]


@pytest.fixture
def on_kafka(tallyport: Command, kafka: str, topic_prefix: str) -> OnKafka:
    """Runs a command on topics of its own."""
    given = {
        "KAFKA_BOOTSTRAP": kafka,
        "TOPIC_PREFIX": topic_prefix,
        "PARTITIONS": "2",
        "REPLICATION": "1",
    }

    def call(*arguments: str, stdin: str = "") -> Ended:
        return tallyport(*arguments, stdin=stdin, **given)

    created = call("topics", "--json")
    assert created.status == 0, created.err
    assert len(json.loads(created.out)["created"]) == len(json.loads(created.out)["topics"])
    return call


def told(ended: Ended) -> Any:
    assert ended.status == 0, ended.err
    return json.loads(ended.out)


def event(**changes: object) -> str:
    return json.dumps(
        {
            "event_id": "e1",
            "occurred_at": datetime.now(UTC).isoformat(),
            "port_id": "harbor-7",
            "provider": "openai",
            "model": "gpt-5",
            **changes,
        }
    )


def test_emit_sends_what_is_valid_and_names_the_rest(on_kafka: OnKafka, tmp_path: Path) -> None:
    lines = [event(), "", "{", event(event_id="e2", input_tokens=-1), event(event_id="e3")]
    (tmp_path / "events.ndjson").write_text("\n".join(lines))
    ended = on_kafka("emit", "events.ndjson")
    assert ended.status == 1
    assert ended.out == "sent 2, rejected 2, failed 0\n"
    assert [line.split(": ")[:2] for line in ended.err.splitlines()] == [
        ["line 3", "malformed-json"],
        ["line 4", "out-of-range"],
    ]
    report = told(on_kafka("emit", "--json", stdin=event(event_id="e4")))
    assert report == {"sent": 1, "rejected": 0, "failed": 0, "rejections": []}


def test_budgets_are_set_changed_listed_and_deleted(on_kafka: OnKafka, tmp_path: Path) -> None:
    budget = ("port:harbor-7", "--unit", "tokens", "--period", "month")
    first = told(on_kafka("budgets", "set", *budget, "--hard", "9000", "--json"))
    assert (first["hard_cap"], first["soft_cap"], first["enabled"]) == (9000, None, True)
    second = told(on_kafka("budgets", "set", *budget, "--soft", "10", "--json"))
    assert (second["hard_cap"], second["soft_cap"]) == (9000, 10)
    assert told(on_kafka("budgets", "disable", *budget, "--json"))["enabled"] is False
    assert on_kafka("budgets", "set", *budget, "--hard", "5").status == 2
    (tmp_path / "budgets.yaml").write_text(
        "- {scope: all, unit: cost, period: month, hard_cap: '12.50'}\n"
    )
    for dry_run, change in ((True, "new"), (False, "new"), (False, "unchanged")):
        flags = ["--dry-run"] if dry_run else []
        applied = told(on_kafka("budgets", "apply", "budgets.yaml", *flags, "--json"))
        assert [policy["change"] for policy in applied["policies"]] == [change]
    listed = told(on_kafka("budgets", "list", "--json"))
    assert [(p["scope"], p["hard_cap"]) for p in listed["policies"]] == [
        ("all", "12.5"),
        ("port:harbor-7", 9000),
    ]
    assert listed["invalid"] == []
    assert told(on_kafka("budgets", "show", "port:other", "--json"))["policies"][0]["soft_cap"] == (
        100_000
    )
    assert on_kafka("budgets", "delete", *budget).status == 0
    gone = on_kafka("budgets", "delete", *budget)
    assert (gone.status, gone.err) == (
        1,
        "tallyport: there is no policy port:harbor-7|tokens|month\n",
    )


def test_a_file_with_a_mistake_changes_nothing(on_kafka: OnKafka, tmp_path: Path) -> None:
    (tmp_path / "budgets.json").write_text(
        '[{"scope":"all","unit":"cost","period":"day","hard_cap":"1"},'
        '{"scope":"all","unit":"cost","period":"week","hardcap":"1"}]'
    )
    ended = on_kafka("budgets", "apply", "budgets.json")
    assert ended.status == 2
    assert "policies[1].hardcap" in ended.err
    assert told(on_kafka("budgets", "list", "--json"))["policies"] == []


def test_prices_are_set_listed_explained_and_withdrawn(on_kafka: OnKafka, tmp_path: Path) -> None:
    model = ("--provider", "acme", "--model", "m-1")
    price = ("--per-million", "input_tokens=0.50", "--id", "acme-1", "--backdated")
    assert on_kafka("prices", "set", *model, *price).status == 0
    explained = told(on_kafka("prices", "explain", *model, "--json"))
    assert (explained["status"], explained["rate_id"]) == ("priced", "acme-1")
    other = on_kafka("prices", "set", *model, "--per-unit", "request=1", "--id", "acme-1")
    assert (other.status, "other content" in other.err) == (2, True)
    assert on_kafka("prices", "withdraw", "acme-1", "--backdated").status == 0
    unknown = on_kafka("prices", "withdraw", "acme-2")
    assert unknown.status == 2
    assert unknown.err == "tallyport: withdraws names 'acme-2', which is not in use\n"
    early = on_kafka("prices", "set", *model, *price[:2], "--effective-from", "2026-01-01")
    assert (early.status, early.err[:35]) == (2, "tallyport: effective_from must be a")
    assert early.err.endswith(" or later), or give --backdated\n")
    (tmp_path / "list.csv").write_text(
        "provider,model,input_micro_per_million,effective_from\n"
        "acme,m-2,50000,2100-01-01T00:00:00Z\n"
    )
    for _ in range(2):
        imported = told(on_kafka("prices", "import", "list.csv", "--json"))
        assert imported["rates"][0]["per_million"] == {"input_tokens": "0.05"}
    listed = told(on_kafka("prices", "list", "--json"))
    assert len(listed["used"]) == 3
    assert listed["unused"] == []


def test_a_list_without_dates_is_imported_once(on_kafka: OnKafka, tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    file.write_text("provider,model,input_per_million\nacme,m-1,1\nacme,m-2,2\n")
    first = told(on_kafka("prices", "import", "list.csv", "--json"))["rates"]
    assert [one["change"] for one in first] == ["new", "new"]
    file.write_text("provider,model,input_per_million\nacme,m-1,1\nacme,m-2,3\n")
    for change in ("new", "unchanged"):
        time.sleep(1.1)  # the ids are made of times in whole seconds
        again = told(on_kafka("prices", "import", "list.csv", "--json"))["rates"]
        assert [one["change"] for one in again] == ["unchanged", change]
        assert again[0]["rate_id"] == first[0]["rate_id"]
    assert len(told(on_kafka("prices", "list", "--json"))["used"]) == 3
    known = first[0]["rate_id"]
    file.write_text(f"rate_id,provider,model,input_per_million\n{known},acme,m-1,9\n")
    other = on_kafka("prices", "import", "list.csv")
    assert (other.status, "other content" in other.err) == (2, True)


def test_watch_once_shows_the_newest_states(
    on_kafka: OnKafka, kafka: str, topic_prefix: str
) -> None:
    assert on_kafka("watch", "--once", "--json").out == ""
    producer = Producer({"bootstrap.servers": kafka})
    for version, used in ((1, 10), (2, 20)):
        key, value = record(state("port:a", used=used, hard=100), version)
        producer.produce(f"{topic_prefix}budget.state", value, key, partition=0)
    assert producer.flush(30) == 0
    shown = told(on_kafka("watch", "--once", "--json"))
    assert (shown["scope"], shown["used"]) == ("port:a", 20)


def test_topics_refuse_another_partition_count(
    tallyport: Command, on_kafka: OnKafka, kafka: str, topic_prefix: str
) -> None:
    del on_kafka
    ended = tallyport(
        "topics",
        KAFKA_BOOTSTRAP=kafka,
        TOPIC_PREFIX=topic_prefix,
        PARTITIONS="3",
        REPLICATION="1",
    )
    assert ended.status == 2
    assert ended.err.count("TALLYPORT_PARTITIONS=2") == 1


def test_topics_print_needs_no_kafka(tallyport: Command) -> None:
    printed = told(tallyport("topics", "--print", "--json", TOPIC_PREFIX="x."))
    assert {topic["topic"] for topic in printed["topics"]} >= {"x.usage.events", "x.budget.state"}
    assert {grant["part"] for grant in printed["acls"]} >= {"worker", "sink", "api", "audit"}
    shown = {(one["part"], one["operation"], one["name"]) for one in printed["acls"]}
    assert shown >= {
        ("watch and SDK", "Read", "x.budget.state"),
        ("watch and SDK", "Read", "x.pricing.rates"),
        ("watch and SDK", "Read", "tallyport-sdk"),
        ("forget", "Write", "x.budget.state"),
        ("forget", "Write", "x.tallyport-change"),
    }
    assert [group["group"] for group in printed["groups"]] == [
        "x.tallyport-worker",
        "x.tallyport-sink",
        "x.tallyport-notices",
    ]
