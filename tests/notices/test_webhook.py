"""Webhooks at a real receiver; the signature checked with code of its own."""

import base64
import hashlib
import hmac
import json
import threading
import time

import pytest

from pipeline.core.webhook_signature import webhook_key
from pipeline.notices import webhook
from pipeline.notices.mail import NotSent
from pipeline.notices.notice import Message
from pipeline.notices.webhook import Webhooks, is_forbidden
from pipeline.ops.loopback_ports import free_port
from tests.notices.certificates import Certificate
from tests.notices.receiver import Posted, Receiver, receiver

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
MESSAGE = Message("s", "t", "h", {"type": "budget.hard_cap", "data": {"name": "ü<b>"}})


def is_signed(posted: Posted, key: bytes) -> bool:
    """The specification: HMAC-SHA256 over ``id.timestamp.body``, one of the space-separated v1."""
    signed = (
        f"{posted.headers['webhook-id']}.{posted.headers['webhook-timestamp']}.".encode()
        + posted.body
    )
    right = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    given = posted.headers["webhook-signature"].split(" ")
    return any(hmac.compare_digest(one, f"v1,{right}") for one in given)


async def test_a_signed_post_arrives() -> None:
    now_s = int(time.time())
    with receiver(Receiver()) as at:
        await Webhooks(SECRET).send(MESSAGE, f"{at.url}/hook?x=1", "abc", now_s)
        await Webhooks(SECRET).send(MESSAGE, at.url, "abc", now_s + 60)
    first, second = at.posted
    assert first.path == "/hook?x=1"
    assert json.loads(first.body) == MESSAGE.data
    assert first.headers["content-type"] == "application/json"
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "msg_abc"
    assert first.headers["webhook-timestamp"] == str(now_s)
    assert is_signed(first, KEY)
    assert is_signed(second, KEY)
    assert not is_signed(first, KEY[::-1])
    assert first.headers["webhook-signature"] != second.headers["webhook-signature"]


async def test_the_specification_s_own_example() -> None:
    # From the reference libraries of Standard Webhooks.
    key = webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    found = webhook.signature(
        key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_without_prefix_is_the_key_itself() -> None:
    assert webhook_key("hunter2") == b"hunter2"
    assert webhook_key(SECRET) == KEY


async def test_without_a_secret_it_is_not_signed() -> None:
    with receiver(Receiver()) as at:
        await Webhooks(None).send(MESSAGE, at.url, "abc", 1)
    assert "webhook-signature" not in at.posted[0].headers


async def test_over_tls_the_certificate_counts(certificate: Certificate) -> None:
    with receiver(Receiver(), certificate.server) as at:
        await Webhooks(SECRET, certificate.trusting).send(MESSAGE, at.url, "abc", 1)
        with pytest.raises(NotSent, match="certificate"):
            await Webhooks(SECRET).send(MESSAGE, at.url, "abc", 1)
    assert len(at.posted) == 1


@pytest.mark.parametrize(
    ("status", "for_good"),
    [(500, False), (404, False), (429, False), (410, True), (302, True), (307, True)],
)
async def test_what_is_no_success(status: int, for_good: bool) -> None:
    with receiver(Receiver(), None) as elsewhere, receiver(Receiver(statuses=[status])) as at:
        at.headers["location"] = elsewhere.url
        with pytest.raises(NotSent, match=str(status)) as failed:
            await Webhooks(SECRET).send(MESSAGE, at.url, "abc", 1)
    assert failed.value.for_good is for_good
    assert elsewhere.posted == []


async def test_a_receiver_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "POST_TIMEOUT_S", 0.3)
    done = threading.Event()
    with receiver(Receiver(wait=lambda: (done.wait(60), None)[1])) as at:
        with pytest.raises(NotSent, match="did not answer"):
            await Webhooks(SECRET).send(MESSAGE, at.url, "abc", 1)
        done.set()


async def test_the_next_address_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiver(Receiver()) as at:

        async def resolved(_: object) -> list[str]:
            return ["::1", "127.0.0.1"]

        monkeypatch.setattr(webhook, "_resolved", resolved)
        await Webhooks(SECRET).send(MESSAGE, at.url, "abc", 1)
    assert len(at.posted) == 1


async def test_nobody_there() -> None:
    with pytest.raises(NotSent, match=r"refused|failed"):
        await Webhooks(SECRET).send(MESSAGE, f"http://127.0.0.1:{free_port()}", "abc", 1)
    with pytest.raises(NotSent, match=r"nowhere\.invalid"):
        await Webhooks(SECRET).send(MESSAGE, "http://nowhere.invalid/", "abc", 1)


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254", "0.0.0.0", "::",
     "224.0.0.1", "255.255.255.255", "240.0.0.1", "fd00:ec2::254", "100.100.100.200",
     "192.0.0.192", "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "2001:0:5db8:d822::5601:5601"],
)  # fmt: skip
async def test_addresses_that_are_not_posted_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_forbidden(address)
    if "%" not in address:
        host = f"[{address}]" if ":" in address else address
        with pytest.raises(NotSent, match="is not posted to") as refused:
            await Webhooks(None).send(MESSAGE, f"http://{host}:9/latest", "abc", 1)
        assert refused.value.for_good


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "93.184.216.34", "::1", "2606::1"])
def test_addresses_that_are(address: str) -> None:
    assert not is_forbidden(address)


async def test_a_head_without_an_end_is_an_answer_that_failed() -> None:
    headers = {"X-Long": "x" * 2 * webhook.MAX_ANSWER_BYTES}
    with receiver(Receiver(headers=headers)) as at, pytest.raises(NotSent, match="limit"):
        await Webhooks(SECRET).send(MESSAGE, at.url, "abc", 1)
