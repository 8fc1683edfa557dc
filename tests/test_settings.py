from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.core.errors import ConfigurationError
from pipeline.settings import Settings, load_settings, variable


def mistakes(environ: dict[str, str], dotenv: Path | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ, dotenv)
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


def test_defaults_are_the_contract_s() -> None:
    settings = load_settings({})
    assert (settings.kafka_port, settings.ledger_port, settings.api_port) == (9092, 8123, 8080)
    assert settings.api_host == "127.0.0.1"
    assert settings.health_port is None
    assert settings.data_dir == Path(".tallyport")
    assert settings.topic_prefix == ""
    assert settings.currency == "USD"
    assert (settings.max_event_age_days, settings.dedupe_days) == (7, 9)
    assert (settings.max_future_skew_s, settings.price_lead_s) == (300, 60)
    assert settings.usage_alert == Decimal(5)


@pytest.mark.parametrize(
    ("environ", "partitions", "replication"),
    [
        ({}, 4, 1),
        ({"TALLYPORT_KAFKA_BOOTSTRAP": "kafka:9092"}, 12, 3),
        ({"TALLYPORT_PARTITIONS": "7", "TALLYPORT_REPLICATION": "2"}, 7, 2),
    ],
)
def test_partition_counts_depend_on_who_runs_kafka(
    environ: dict[str, str], partitions: int, replication: int
) -> None:
    settings = load_settings(environ)
    assert (settings.partition_count, settings.replication_factor) == (partitions, replication)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings({}).api_port = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_copy_with_changes_is_checked_too() -> None:
    assert load_settings({}).replaced(api_port=0).api_port == 0
    with pytest.raises(ValidationError):
        load_settings({}).replaced(api_port=70_000)


def test_an_unknown_name_is_an_error_that_suggests_the_nearest() -> None:
    assert mistakes({"TALLYPORT_KAFKA_BOOTSRAP": "x:1"}) == [
        "TALLYPORT_KAFKA_BOOTSRAP is not a setting; did you mean TALLYPORT_KAFKA_BOOTSTRAP?"
    ]


@pytest.mark.parametrize("name", ["API_URL", "API_KEY", "SPOOL_DIR"])
def test_names_of_the_sdk_are_known(name: str) -> None:
    assert load_settings({f"TALLYPORT_{name}": "x"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TALLYPORT_SERVICE_HOST", "10.0.0.1"),
        ("TALLYPORT_API_SERVICE_HOST", "10.0.0.1"),
        ("TALLYPORT_API_SERVICE_PORT", "8080"),
        ("TALLYPORT_API_SERVICE_PORT_HTTP", "8080"),
        ("TALLYPORT_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("TALLYPORT_PORT_8080_TCP_PROTO", "tcp"),
        ("TALLYPORT_PORT", "tcp://10.0.0.1:8080"),
        ("TALLYPORT_API_PORT", "tcp://10.0.0.1:8080"),
    ],
)
def test_names_that_kubernetes_injects_are_ignored(name: str, value: str) -> None:
    assert load_settings({name: value}) == Settings()


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings({"PATH": "/bin", "KAFKA_BOOTSTRAP": "?"}) == Settings()


def test_an_empty_value_counts_as_not_set() -> None:
    assert load_settings({"TALLYPORT_API_PORT": "", "TALLYPORT_KAFKA_BOOTSTRAP": ""}) == Settings()


def test_all_mistakes_are_listed_at_once() -> None:
    found = mistakes(
        {
            "TALLYPORT_KAFKA_BOOTSTRAP": "kafka",
            "TALLYPORT_API_PORT": "65536",
            "TALLYPORT_CURRENCY": "euro",
            "TALLYPORT_DEDUPE_DAYS": "8",
            "TALLYPORT_NOPE": "1",
        }
    )
    assert len(found) == 5
    for name in ("KAFKA_BOOTSTRAP", "API_PORT", "CURRENCY", "DEDUPE_DAYS", "NOPE"):
        assert sum(line.startswith(f"TALLYPORT_{name} ") for line in found) == 1


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("kafka_bootstrap", "host"),
        ("kafka_bootstrap", "host:0"),
        ("kafka_bootstrap", "a:1,,b:2"),
        ("kafka_security_protocol", "TLS"),
        ("kafka_port", "-1"),
        ("kafka_port", "1.0"),
        ("kafka_port", "٣"),
        ("kafka_home", "/nowhere/at/all"),
        ("clickhouse_url", "clickhouse://h:9000"),
        ("clickhouse_url", "http://h:8123/a/b"),
        ("clickhouse_url", "http://h:99999"),
        ("ledger_port", "8_123"),
        ("api_host", "http://0.0.0.0"),
        ("health_port", "yes"),
        ("worker_cpu", "-1"),
        ("topic_prefix", "a b"),
        ("partitions", "0"),
        ("replication", "0"),
        ("currency", "usd"),
        ("max_event_age_days", "0"),
        ("max_future_skew_s", "-1"),
        ("price_lead_s", "1m"),
        ("usage_alert", "1e3"),
        ("usage_alert", "NaN"),
        ("usage_alert", "-5"),
        ("smtp_url", "mail.example"),
        ("mail_to", "nobody"),
        ("webhook_url", "ftp://x"),
    ],
)
def test_a_wrong_value_names_its_variable(name: str, bad: str) -> None:
    found = mistakes({variable(name): bad})
    assert [line.split(" ")[0] for line in found] == [variable(name)]


@pytest.mark.parametrize(
    ("name", "good", "value"),
    [
        ("kafka_bootstrap", "a:1, b:2", "a:1,b:2"),
        ("kafka_bootstrap", "[::1]:9092", "[::1]:9092"),
        ("kafka_port", "0", 0),
        ("clickhouse_url", "https://u:p%40@h:8443/db", "https://u:p%40@h:8443/db"),
        ("clickhouse_url", "http://h", "http://h"),
        ("health_port", "9100", 9100),
        ("worker_cpu", "0", 0),
        ("topic_prefix", "test-1.", "test-1."),
        ("usage_alert", "0", Decimal(0)),
        ("usage_alert", "12.50", Decimal("12.5")),
        ("smtp_url", "smtps://u:p@mail.example:465", "smtps://u:p@mail.example:465"),
    ],
)
def test_a_right_value_is_taken(name: str, good: str, value: object) -> None:
    assert getattr(load_settings({variable(name): good}), name) == value


def test_dedupe_horizon_follows_a_longer_event_age() -> None:
    found = mistakes({"TALLYPORT_MAX_EVENT_AGE_DAYS": "8"})
    assert found == [
        "TALLYPORT_DEDUPE_DAYS must be at least 10: two more than TALLYPORT_MAX_EVENT_AGE_DAYS"
    ]
    load_settings({"TALLYPORT_MAX_EVENT_AGE_DAYS": "8", "TALLYPORT_DEDUPE_DAYS": "10"})


def test_sasl_is_whole_or_absent() -> None:
    secure = {"TALLYPORT_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}
    assert len(mistakes(secure)) == 3
    assert mistakes({"TALLYPORT_KAFKA_SASL_PASSWORD": "hunter2"})[0].startswith(
        "TALLYPORT_KAFKA_SASL_PASSWORD needs TALLYPORT_KAFKA_SECURITY_PROTOCOL"
    )


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    environ = {"TALLYPORT_KAFKA_SECURITY_PROTOCOL": "SSL"}
    ca = tmp_path / "ca.pem"
    assert mistakes({**environ, "TALLYPORT_KAFKA_SSL_CAFILE": str(ca)}) == [
        f"TALLYPORT_KAFKA_SSL_CAFILE no file at {ca}"
    ]
    ca.write_text("")
    load_settings({**environ, "TALLYPORT_KAFKA_SSL_CAFILE": str(ca)})


def test_secrets_show_neither_in_repr_nor_in_errors() -> None:
    environ = {
        "TALLYPORT_CLICKHOUSE_URL": "http://user:hunter2@h:8123",
        "TALLYPORT_CRON_SECRET": "hunter2",
        "TALLYPORT_WEBHOOK_SECRET": "hunter2",
    }
    assert "hunter2" not in repr(load_settings(environ))
    for name in ("TALLYPORT_CLICKHOUSE_URL", "TALLYPORT_SMTP_URL", "TALLYPORT_WEBHOOK_URL"):
        assert "hunter2" not in mistakes({name: "nope://user:hunter2@h"})[0]


def test_environment_beats_dotenv(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("TALLYPORT_API_PORT=1\nexport TALLYPORT_LEDGER_PORT='2'\nOTHER=x # why\n")
    settings = load_settings({"TALLYPORT_API_PORT": "3"}, dotenv)
    assert (settings.api_port, settings.ledger_port) == (3, 2)


def test_a_missing_dotenv_is_empty(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path / ".env") == Settings()


def test_a_broken_dotenv_names_its_line(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("A=1\n'quote\nTALLYPORT_NOPE=1\n")
    found = mistakes({}, dotenv)
    assert any(line.startswith(f"{dotenv} line 2") for line in found)
    assert any("TALLYPORT_NOPE" in line for line in found)


def test_a_dotenv_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"\xff\xfe\x00")
    assert mistakes({}, dotenv) == [f"{dotenv} cannot be read: no UTF-8"]


def test_a_child_process_gets_the_same_settings() -> None:
    environ = {
        "TALLYPORT_KAFKA_BOOTSTRAP": "a:1",
        "TALLYPORT_USAGE_ALERT": "0.50",
        "TALLYPORT_DATA_DIR": "/x",
    }
    settings = load_settings(environ)
    assert load_settings(settings.environ()) == settings
