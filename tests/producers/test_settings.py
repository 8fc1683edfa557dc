"""What a meter reads from the environment, and that nothing in it can stop a service."""

import logging
import warnings
from pathlib import Path

import pytest

from pipeline.settings import known_names
from producers import Meter
from producers.settings import KNOWN_NAMES, read_settings

KAFKA = {"TALLYPORT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}


def test_the_sdk_knows_every_setting_of_the_deployment() -> None:
    """A name that is new in pipeline.settings belongs into OTHER_NAMES of producers.settings."""
    assert known_names() == KNOWN_NAMES


def test_http_beats_kafka_beats_nothing() -> None:
    url = {"TALLYPORT_API_URL": "https://tally.example/base/"}
    assert read_settings({})[0].transport == "off"
    assert read_settings(KAFKA)[0].transport == "kafka"
    settings, mistakes = read_settings(KAFKA | url)
    assert (settings.transport, settings.api_url) == ("http", "https://tally.example/base")
    assert mistakes == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_URL", "tally.example"),
        ("API_URL", "http://x:0"),
        ("API_URL", "http://x:y"),
        ("KAFKA_BOOTSTRAP", "no port"),
    ],
)
def test_with_a_wrong_address_nothing_is_sent_elsewhere(name: str, value: str) -> None:
    settings, mistakes = read_settings(KAFKA | {f"TALLYPORT_{name}": value})
    assert settings.transport == "off"
    assert len(mistakes) == 1
    assert mistakes[0].startswith(f"TALLYPORT_{name} must")


def test_other_mistakes_count_as_not_set() -> None:
    given = {"ON_STALE": "perhaps", "CURRENCY": "dollars", "PRICE_LEAD_S": "soon"}
    settings, mistakes = read_settings(KAFKA | {f"TALLYPORT_{n}": v for n, v in given.items()})
    assert (settings.on_stale, settings.currency, settings.price_lead_s) == ("allow", "USD", 60)
    assert len(mistakes) == 3
    assert settings.transport == "kafka"


def test_an_unknown_name_suggests_the_nearest() -> None:
    _, mistakes = read_settings({"TALLYPORT_API_ULR": "http://x"})
    assert mistakes == ["TALLYPORT_API_ULR is not a setting; did you mean TALLYPORT_API_URL?"]


def test_names_that_kubernetes_injects_are_ignored() -> None:
    given = {
        "TALLYPORT_SERVICE_HOST": "10.0.0.1",
        "TALLYPORT_SERVICE_PORT_HTTP": "80",
        "TALLYPORT_PORT_80_TCP_ADDR": "10.0.0.1",
        "TALLYPORT_PORT": "tcp://10.0.0.1:80",
    }
    assert read_settings(given)[1] == []


def test_a_file_is_read_and_the_environment_wins(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text(
        "# ours\n"
        'export TALLYPORT_API_URL="http://from.file:8080"  # quoted\n'
        "TALLYPORT_API_KEY='a # b'\n"
        "TALLYPORT_TOPIC_PREFIX = test. # a comment\n"
        "TALLYPORT_ON_STALE=allow\n"
        'OTHER="not ours \\" at all"\n'
        "no assignment\n\n"
    )
    settings, mistakes = read_settings({"TALLYPORT_ON_STALE": "deny"}, dotenv)
    assert mistakes == []
    assert settings.api_url == "http://from.file:8080"
    assert settings.api_key == "a # b"
    assert settings.topic_prefix == "test."
    assert settings.on_stale == "deny"
    assert read_settings({}, tmp_path / "none")[1] == []
    dotenv.write_bytes(b"\xff\xfe")
    assert len(read_settings({}, dotenv)[1]) == 1


def test_secrets_do_not_show() -> None:
    given = {"TALLYPORT_API_KEY": "hidden", "TALLYPORT_KAFKA_SASL_PASSWORD": "hidden", **KAFKA}
    assert "hidden" not in repr(read_settings(given)[0])


class TestFromEnv:
    def test_off_allows_counts_and_warns_once(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        meter = Meter.from_env({})
        for _ in range(3):
            verdict = meter.check(port_id="a", estimated_tokens=10**9)
            assert (verdict.allowed, verdict.reason, verdict.freshness) == (
                True,
                "no-policy",
                "OFF",
            )
            with meter.guard(port_id="a", estimated_cost="1000") as call:
                call.record(port_id="a", provider="p", model="m")
        assert meter.stats.lost == {"off": 3}
        assert not meter.wait_ready(0.1)
        assert meter.flush(0.1)
        assert meter.close()
        (line,) = caplog.messages
        assert "TALLYPORT_API_URL" in line

    @pytest.mark.parametrize(
        "given",
        [
            {"TALLYPORT_API_URL": "nonsense"},
            {"TALLYPORT_KAFKA_BOOTSTRAP": "nonsense"},
            {"TALLYPORT_KAFKA_BOOTSTRAP": "127.0.0.1:9", "TALLYPORT_KAFKA_SECURITY_PROTOCOL": "X"},
            {"TALLYPORT_API_URL": "http://127.0.0.1:9", "TALLYPORT_SPOOL_DIR": "/dev/null/x"},
            {"TALLYPORT_ANYTHING": "1"},
        ],
    )
    def test_it_never_raises(
        self, given: dict[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            meter = Meter.from_env({"TALLYPORT_SPOOL_DIR": str(tmp_path), **given})
            meter.record(port_id="p", provider="p", model="m")
            assert meter.check(port_id="p").allowed
            meter.close(0)
        assert caplog.messages

    def test_without_the_extra_it_is_off_and_says_so(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "confluent_kafka", None)
        meter = Meter.from_env(KAFKA)
        assert meter.stats.freshness == "OFF"
        assert "tallyport[kafka]" in caplog.text
