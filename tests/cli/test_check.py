"""``check`` finds what the parts would find when they start, or when they want to send a mail."""

import json
import socket
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline.web.key_file import create_key
from tests.cli.conftest import Command, Ended
from tests.notices.mail_box import MailBox, mail_box
from tests.web.api_process import ApiProcess

SENDER = "tally@harbor.example"
NOBODY = "127.0.0.1:1"


def found(ended: Ended, what: str) -> str:
    """The one line about ``what``."""
    [line] = [one for one in ended.out.splitlines() if one.startswith(what)]
    return line


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    create_key(path, "ada", "admin", who="tests", now=datetime.now(UTC))
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port where something else listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_mail_server_is_logged_in_at(tallyport: Command) -> None:
    with mail_box(MailBox(), login=True) as box:
        at = f"127.0.0.1:{box.port}"
        good = tallyport("check", SMTP_URL=f"smtp://tally:p%3Ass%40word@{at}", MAIL_FROM=SENDER)
        assert (good.status, found(good, "smtp")) == (0, f"smtp {at}: ok")
        wrong = tallyport("check", SMTP_URL=f"smtp://tally:wrong@{at}", MAIL_FROM=SENDER)
        assert wrong.status == 1
        assert "refuses the login: 535" in found(wrong, "smtp")
        assert "wrong" not in wrong.out
        plain = tallyport("check", SMTP_URL=f"smtp+starttls://{at}", MAIL_FROM=SENDER)
        assert plain.status == 1
        assert "STARTTLS" in found(plain, "smtp")


def test_a_mail_server_that_is_away(tallyport: Command) -> None:
    away = tallyport("check", SMTP_URL=f"smtp://{NOBODY}", MAIL_FROM=SENDER)
    assert (away.status, "refused" in found(away, "smtp")) == (1, True)
    no_host = tallyport("check", SMTP_URL="smtp://no-such-host.invalid", MAIL_FROM=SENDER)
    assert no_host.status == 1
    assert "no-such-host.invalid" in found(no_host, "smtp")


def test_mail_needs_a_sender_and_a_server(tallyport: Command) -> None:
    for given in ({"SMTP_URL": f"smtp://{NOBODY}"}, {"MAIL_TO": SENDER}, {"MAIL_FROM": SENDER}):
        ended = tallyport("check", **given)
        assert ended.status == 2
        told = "mail needs both TALLYPORT_SMTP_URL and TALLYPORT_MAIL_FROM"
        assert found(ended, "settings") == f"settings: {told}"


def test_a_keys_file(tallyport: Command, keys: Path) -> None:
    good = tallyport("check", API_KEYS_FILE=str(keys), API_PORT="0")
    assert (good.status, found(good, "settings")) == (0, "settings: ok")
    key = json.loads(keys.read_text())["keys"][0]
    for text, told in (
        ("{", "is damaged"),
        (json.dumps({"keys": [{**key, "role": "king"}]}), "role"),
        (json.dumps({"keys": [{**key, "rate": "often"}]}), "rate"),
        (json.dumps({"keys": [{"id": "x"}]}), "name"),
    ):
        keys.write_text(text)
        damaged = tallyport("check", API_KEYS_FILE=str(keys), API_PORT="0")
        assert damaged.status == 2
        assert f"keys file {keys} is damaged" in found(damaged, "settings")
        assert told in found(damaged, "settings")
    missing = tallyport("check", API_KEYS_FILE=f"{keys}.not", API_PORT="0")
    assert missing.status == 2
    assert f"TALLYPORT_API_KEYS_FILE no file at {keys}.not" in found(missing, "settings")
    folder = tallyport("check", API_KEYS_FILE=str(keys.parent), API_PORT="0")
    assert folder.status == 2


def test_where_the_api_listens(tallyport: Command, keys: Path, taken_port: int) -> None:
    with_keys = {"API_KEYS_FILE": str(keys)}
    everywhere = tallyport("check", API_HOST="0.0.0.0", API_PORT="0")
    assert everywhere.status == 2
    assert "must be a loopback address" in found(everywhere, "settings")
    assert tallyport("check", API_HOST="0.0.0.0", API_PORT="0", **with_keys).status == 0
    unknown = tallyport("check", API_HOST="no-such-host.invalid", API_PORT="0", **with_keys)
    assert unknown.status == 1
    assert "port 0 on no-such-host.invalid cannot be had" in found(unknown, "api")
    foreign = tallyport("check", API_HOST="192.0.2.7", API_PORT="0", **with_keys)
    assert foreign.status == 1
    assert "port 0 on 192.0.2.7 cannot be had" in found(foreign, "api")
    taken = tallyport("check", API_PORT=str(taken_port))
    assert taken.status == 1
    assert f"port {taken_port} on 127.0.0.1 is in use" in found(taken, "api")


def test_an_address_that_is_wrong_is_not_told_as_missing(tallyport: Command) -> None:
    ended = tallyport("check", KAFKA_BOOTSTRAP="127.0.0.1")
    assert ended.status == 2
    assert "must be HOST:PORT" in found(ended, "settings")
    assert "clickhouse: none configured" in ended.err
    assert "kafka: none configured" not in ended.err


def test_the_api_that_the_sdk_sends_to(tallyport: Command, kafka: str, tmp_path: Path) -> None:
    what = "TALLYPORT_API_URL"
    wrong = tallyport("check", API_URL="nowhere")
    assert wrong.status == 2
    assert f"{what} must be a URL" in found(wrong, "settings")
    away = tallyport("check", API_URL=f"http://{NOBODY}")
    assert away.status == 1
    assert found(away, what) == f"{what} {NOBODY}: cannot be reached: Connection refused"
    folder = tmp_path / "api"
    folder.mkdir()
    keys = folder / "keys.json"
    created = create_key(keys, "ocr", "ingest", who="tests", now=datetime.now(UTC))
    settings = {"TALLYPORT_API_KEYS_FILE": str(keys)}
    api = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", folder, settings)
    with api.running():
        for key, told in (
            (created[1], "ok"),
            ("another", "does not admit TALLYPORT_API_KEY"),
            ("", "asks for a key: TALLYPORT_API_KEY is not set"),
            ("k\u20ac", "TALLYPORT_API_KEY has characters that no key has"),
        ):
            ended = tallyport("check", API_URL=api.url, API_KEY=key)
            at = api.url.removeprefix("http://")
            assert found(ended, what) == f"{what} {at}: {told}"
            assert ended.status == (0 if told == "ok" else 1)


def test_an_api_that_runs_there_already_is_fine(
    tallyport: Command, kafka: str, tmp_path: Path
) -> None:
    api = ApiProcess(kafka, f"t{uuid.uuid4().hex[:10]}.", tmp_path / "api")
    (tmp_path / "api").mkdir()
    with api.running():
        port = api.url.rpartition(":")[2]
        running = tallyport("check", API_PORT=port)
        assert (running.status, found(running, "api")) == (0, f"api 127.0.0.1:{port}: ok")
