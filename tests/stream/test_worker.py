"""One worker as the outside sees it: fates, rejected records, states, policies and prices."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from pipeline.careful_records import CUT_FROM, MAX_RECORD_BYTES
from pipeline.core.blocks import ROW_COLUMNS
from tests.compressed_batches import Blanks, Given, send_zstd
from tests.processes import peak_kib
from tests.stream.worker_deployment import (
    INPUT_NANO,
    PARTITIONS,
    RATE,
    SETTING_S,
    WorkerDeployment,
    event,
    home_of,
    nanos,
)

ADDED = ["reason", "detail", "source-topic", "source-partition", "source-offset"]
MIB = 1024 * 1024


def day_start(days: int = 0) -> str:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")


def in_seconds(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


@pytest.fixture(scope="module")
def served(
    kafka: str, empty_ledger_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerDeployment]:
    """One worker for all tests here; each test takes ids of its own."""
    prefix = f"t{uuid.uuid4().hex[:10]}."
    deployment = WorkerDeployment(
        kafka, prefix, empty_ledger_url, tmp_path_factory.mktemp("served")
    )
    asyncio.run(deployment.prepare())
    try:
        asyncio.run(deployment.start_worker().wait_ready())
        yield deployment
    finally:
        deployment.end_all()


@pytest.fixture
async def fresh(
    kafka: str, empty_ledger_url: str, topic_prefix: str, tmp_path: Path
) -> AsyncIterator[WorkerDeployment]:
    """Topics of its own; the test starts the workers."""
    deployment = WorkerDeployment(kafka, topic_prefix, empty_ledger_url, tmp_path)
    await deployment.prepare()
    try:
        yield deployment
    finally:
        deployment.end_all()


def text(**changes: Any) -> bytes:
    return json.dumps(event(1, event_id=uuid.uuid4().hex, **changes)).encode()


def without(name: str) -> bytes:
    return text(**{name: None})


CLOUD = [("content-type", b"application/cloudevents+json")]
BINARY = [("ce_specversion", b"0.3"), ("ce_id", b"1")]
REFUSED: list[tuple[str, bytes | None, bytes | None, list[tuple[str, Any]]]] = [
    ("too-large", b"k", b" " * 65_537, []),
    ("too-large", b"\xff\x00", text(tags={"a": "x" * 65_536}), [("h", b"\xfe")]),
    ("bad-cloudevent", b"k", b"no json", CLOUD),
    ("bad-cloudevent", b"k", text(), BINARY),
    ("bad-cloudevent", b"k", b"[]", [("content-type", b"application/cloudevents-batch+json")]),
    ("malformed-json", None, None, []),
    ("malformed-json", b"k", None, [("trace", b"1"), ("trace", b"2"), ("empty", b"")]),
    ("malformed-json", b"", b"", [("none", None)]),
    ("malformed-json", b"k", b'{"port_id": "\xff"}', []),
    ("not-an-object", b"k", b"[1, 2]", [("reason", b"mine"), ("source-offset", b"x")]),
    ("missing-field", b"k", without("provider"), []),
    ("wrong-type", b"k", text(input_tokens="12"), []),
    ("out-of-range", b"k", text(kind="video"), []),
    ("bad-timestamp", b"k", text(occurred_at="2026-11-22T10:00:00"), []),
    ("inconsistent-tokens", b"k", text(cached_input_tokens=10**9), []),
    ("too-old", b"k", text(occurred_at=in_seconds(-8 * 86_400)), []),
    ("in-the-future", b"k", text(occurred_at=in_seconds(6 * 3600)), []),
]


def is_refused_copy(record: ConsumerRecord, source: str, partition: int, offset: int) -> bool:
    headers = dict(record.headers[-5:])
    return (
        headers["source-topic"] == source.encode()
        and headers["source-partition"] == str(partition).encode()
        and headers["source-offset"] == str(offset).encode()
    )


async def test_rejected_records_keep_every_byte(served: WorkerDeployment) -> None:
    # Judged where they are to be judged: at the home of the port that the last ones name.
    partition = home_of("port-1")
    topic = served.topics.events
    offsets = [
        await served.put_bytes(topic, key, value, partition, headers)
        for _, key, value, headers in REFUSED
    ]
    await served.settled()
    found = await served.read(served.topics.rejected)
    for offset, (reason, key, value, headers) in zip(offsets, REFUSED, strict=True):
        (copy,) = (r for r in found if is_refused_copy(r, topic, partition, offset))
        assert (copy.key, copy.value) == (key, value), reason
        assert list(copy.headers[:-5]) == headers, reason
        assert [name for name, _ in copy.headers[-5:]] == ADDED
        added = dict(copy.headers[-5:])
        assert added["reason"].decode() == reason
        assert added["detail"]
    assert {reason for reason, *_ in REFUSED} == set(reasons_of_section_5())
    await served.assert_exact()


def reasons_of_section_5() -> list[str]:
    first = ["too-large", "bad-cloudevent", "malformed-json", "not-an-object", "missing-field"]
    then = ["wrong-type", "out-of-range", "bad-timestamp", "inconsistent-tokens"]
    return [*first, *then, "too-old", "in-the-future"]


async def test_misrouted_events_go_home_and_count_once(served: WorkerDeployment) -> None:
    one = event(2, port_id="lost-port", event_id="lost", user_id="lost-user")
    home = home_of("lost-port")
    forged = ("forwarded-from", b"0/0/1")
    headers = [("trace", b"\x00\xff"), forged]
    body = json.dumps(one, indent=1).encode()
    topic = served.topics.events
    offset = await served.put_bytes(topic, b"other key", body, 1 - home, headers)
    await served.put_bytes(topic, b"other key", body, 1 - home, headers)
    served.sent.append(one)
    await served.settled()
    log = await served.read(topic)
    (source,) = (r for r in log if (r.partition, r.offset) == (1 - home, offset))
    copies = [r for r in log if r.partition == home and r.value == body]
    whence = f"{1 - home}/{offset}/{source.timestamp}".encode()
    assert len(copies) == 2
    assert copies[0].key == b"other key"
    assert copies[0].headers[0] == headers[0]
    assert copies[0].headers[-1] == ("forwarded-from", whence)
    fates = await served.fates()
    assert fates[1 - home][offset] == "forwarded"
    assert [fates[home][copy.offset] for copy in copies] == ["row", "duplicate"]
    (row,) = [
        dict(zip(ROW_COLUMNS, row, strict=True))
        for block in await served.blocks()
        for row in block.rows
        if row[0] == "lost"
    ]
    assert row["recorded_at_ms"] == source.timestamp
    assert row["source_offset"] == copies[0].offset
    await served.assert_exact()


@pytest.mark.usefixtures("one_day")
async def test_the_first_of_duplicates_wins(served: WorkerDeployment) -> None:
    await served.set_policy(scope="port:twice", unit="tokens", period="day")
    first = event(3, port_id="twice", event_id="same", input_tokens=7, output_tokens=0)
    await served.publish([first])
    await served.publish(
        [
            first | {"input_tokens": 900, "occurred_at": in_seconds(-86_400)},
            first | {"user_id": "somebody else"},
        ],
        counted=False,
    )
    other_port = first | {"port_id": "twice-more"}
    await served.publish([other_port])
    await served.settled()
    await served.state_is("port:twice|tokens|day", used=7)
    assert (await served.assert_exact())["duplicate"] >= 2


@pytest.mark.usefixtures("one_day")
async def test_unpriced_events_count_tokens_and_are_told(served: WorkerDeployment) -> None:
    for unit in ("tokens", "cost"):
        await served.set_policy(scope="port:dear", unit=unit, period="day")
    unpriced = event(4, port_id="dear", event_id="u", model="nobody-knows", output_tokens=0)
    priced = event(5, port_id="dear", event_id="p", input_tokens=100, output_tokens=0)
    await served.publish([unpriced, priced])
    tokens = unpriced["input_tokens"] + 100
    await served.state_is("port:dear|tokens|day", used=tokens, unpriced_events=1)
    state = await served.state_is("port:dear|cost|day", unpriced_events=1)
    assert nanos(state["used"]) == 100 * INPUT_NANO


@pytest.mark.usefixtures("one_day")
async def test_state_is_as_the_contract_shows_it(served: WorkerDeployment) -> None:
    await served.publish([event(6, port_id="shown", input_tokens=1_234, output_tokens=0)])
    await served.set_policy(
        scope="port:shown", unit="tokens", period="day", soft_cap=1_000, hard_cap=5_000
    )
    state = await served.state_is("port:shown|tokens|day", used=1_234)
    version, as_of = state.pop("version"), state.pop("as_of")
    assert state == {
        "scope": "port:shown",
        "unit": "tokens",
        "period": "day",
        "period_start": day_start(),
        "resets_at": day_start(1),
        "status": "soft-cap-exceeded",
        "used": 1_234,
        "remaining": 3_766,
        "soft_cap": 1_000,
        "hard_cap": 5_000,
        "unpriced_events": 0,
        "on_stale": "allow",
    }
    assert isinstance(version, int)
    assert len(as_of) == len("2026-11-22T10:15:03.120Z")
    assert as_of.endswith("Z")
    await served.set_policy(scope="port:shown", unit="cost", period="month", hard_cap="0.0100")
    state = await served.state_is("port:shown|cost|month", used="0.001234")
    assert (state["hard_cap"], state["remaining"]) == ("0.01", "0.008766")
    assert (state["soft_cap"], state["status"]) == (None, "ok")


async def test_heartbeats_come_on_every_partition(served: WorkerDeployment) -> None:
    seen: dict[int, list[dict[str, Any]]] = {p: [] for p in range(PARTITIONS)}

    def moved() -> int:
        """How often the heartbeats of each partition have moved on; one may repeat another."""
        return min(len({beat["as_of"] for beat in beats}) for beats in seen.values())

    async with (
        asyncio.timeout(60),
        served.state_follower() as consumer,
    ):
        while moved() < 3:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    if record.key.startswith(b"!"):
                        assert record.key == f"!heartbeat|{record.partition}".encode()
                        seen[record.partition].append(json.loads(record.value))
    for beats in seen.values():
        assert {frozenset(beat) for beat in beats} == {frozenset(("as_of", "through"))}
        assert {frozenset(beat["through"]) for beat in beats} == {frozenset(("0", "1"))}
        times = [beat["as_of"] for beat in beats]
        assert times == sorted(times)


@pytest.mark.usefixtures("one_day")
async def test_policies_take_effect(served: WorkerDeployment) -> None:
    key = "port:ruled|tokens|day"
    await served.publish([event(7, port_id="ruled", input_tokens=50, output_tokens=0)])
    await served.settled()
    body: dict[str, Any] = {"scope": "port:ruled", "unit": "tokens", "period": "day"}
    await served.set_policy(**body, hard_cap=50, on_stale="deny")
    first = await served.state_is(key, used=50, status="hard-cap-exceeded", remaining=0)
    assert first["on_stale"] == "deny"
    await served.set_policy(**body, hard_cap=1_000)
    second = await served.state_is(key, status="ok", hard_cap=1_000, on_stale="allow")
    await served.set_policy(**body, hard_cap=-1)  # invalid: the last valid one stays
    await served.put(served.topics.policies, key, {**body, "scope": "port:else", "hard_cap": 1})
    await served.set_policy(**body | {"period": "week"}, hard_cap=7)  # for order: it comes later
    await served.state_is("port:ruled|tokens|week", hard_cap=7)
    assert (await served.states())[key] == second
    await served.set_policy(**body, hard_cap=1, enabled=False)
    third = await served.state_is(key, status="disabled", used=50)
    assert first["version"] < second["version"] < third["version"]
    await served.delete_policy(key)
    await served.state_gone(key)
    await served.set_policy(**body, hard_cap=60)
    again = await served.state_is(key, used=50, status="soft-cap-exceeded")
    assert again["version"] > third["version"]


@pytest.mark.usefixtures("one_day")
async def test_an_own_policy_replaces_the_wildcard(served: WorkerDeployment) -> None:
    await served.set_policy(scope="group:*", unit="tokens", period="day", hard_cap=100)
    wildcard = await served.state_is("group:*|tokens|day", used=0, hard_cap=100)
    assert wildcard["status"] == "ok"
    await served.publish(
        [
            event(8, port_id="a", group_id="g1", input_tokens=100, output_tokens=0),
            event(9, port_id="b", group_id="g|2", input_tokens=30, output_tokens=0),
        ]
    )
    await served.state_is("group:g1|tokens|day", status="hard-cap-exceeded", used=100)
    await served.state_is("group:g%7C2|tokens|day", scope="group:g|2", status="ok", used=30)
    await served.set_policy(scope="group:g1", unit="tokens", period="day", hard_cap=1_000)
    await served.state_is("group:g1|tokens|day", status="ok", hard_cap=1_000, used=100)
    await served.delete_policy("group:g1|tokens|day")
    await served.state_is("group:g1|tokens|day", status="hard-cap-exceeded", hard_cap=100)
    await served.delete_policy("group:*|tokens|day")
    for key in ("group:*|tokens|day", "group:g1|tokens|day", "group:g%7C2|tokens|day"):
        await served.state_gone(key)


@pytest.mark.usefixtures("one_day")
async def test_the_end_of_an_extra_is_published_without_traffic(served: WorkerDeployment) -> None:
    # A worker that is kept from working until the end of an extra publishes nothing of it.
    for seconds in (4, 12, 36):
        port, key = f"extra-{seconds}", f"port:extra-{seconds}|tokens|day"
        await served.publish([event(10, port_id=port, input_tokens=105, output_tokens=0)])
        await served.settled()
        await served.set_policy(
            scope=f"port:{port}",
            unit="tokens",
            period="day",
            hard_cap=100,
            extra={"amount": 10, "until": in_seconds(seconds)},
        )
        await served.state_is(key, hard_cap=100, status="hard-cap-exceeded", remaining=-5)
        *during, after = await served.history(key)
        if during:
            break
    assert [(s["hard_cap"], s["status"], s["remaining"]) for s in during] == [
        (110, "soft-cap-exceeded", 5)
    ]
    assert after["version"] > during[0]["version"]


async def test_a_rate_with_lead_time_switches_at_a_recorded_offset(
    fresh: WorkerDeployment,
) -> None:
    worker = fresh.start_worker(TALLYPORT_PRICE_LEAD_S="1")
    await worker.wait_ready()
    await fresh.publish([event(n, port_id="rated") for n in range(10)])
    await fresh.settled()
    switches = datetime.now(UTC) + timedelta(seconds=1 + SETTING_S)  # 1 is the lead time
    switch = switches.isoformat()
    later = {
        **RATE,
        "rate_id": "later-rate",
        "effective_from": switch,
        "per_million": {"input_tokens": "3"},
    }
    del later["backdated"]
    version = await fresh.put(fresh.topics.rates, "later-rate", later)
    await asyncio.sleep((switches - datetime.now(UTC)).total_seconds() + 0.1)
    await fresh.publish(
        [event(n, port_id="rated", occurred_at=switch) for n in range(10, 20)]
        + [event(n, port_id="rated", occurred_at=in_seconds(-60)) for n in range(20, 30)]
    )
    await fresh.settled()
    column = ROW_COLUMNS.index("rate_id")
    rates = {row[0]: row[column] for block in await fresh.blocks() for row in block.rows}
    for n in range(30):
        assert rates[f"e{n}"] == ("later-rate" if 10 <= n < 20 else "test-rate"), n
    rules = [
        (record.key, json.loads(record.value)) for record in await fresh.read(fresh.topics.rules)
    ]
    home = home_of("rated")
    found = [
        (rule["from_offset"], rule["rates_next_offset"])
        for _, rule in rules
        if rule["partition"] == home
    ]
    assert found[0] == (0, version)
    assert found[-1][1] == version + 1
    assert 10 <= found[-1][0] <= 11  # the record after the first ten, or after their marker
    for key, rule in rules:
        assert key == f"{rule['partition']}|{rule['from_offset']}".encode()


@pytest.mark.usefixtures("one_day")
async def test_versions_and_counts_go_on_after_a_restart(fresh: WorkerDeployment) -> None:
    await fresh.set_policy(scope="all", unit="tokens", period="month", hard_cap=10**6)
    for number in range(3):
        worker = fresh.start_worker()
        await worker.wait_ready()
        await fresh.publish([event(n) for n in range(number * 100, number * 100 + 100)])
        if number == 1:
            await fresh.set_policy(scope="all", unit="tokens", period="month", hard_cap=10**7)
        await fresh.settled()
        await fresh.assert_states(["all|tokens|month"])
        await fresh.assert_exact()
        assert await worker.stopped() == 0, worker.printed
    await fresh.assert_versions_grow()


async def test_a_policy_set_while_the_worker_starts_is_not_missed(fresh: WorkerDeployment) -> None:
    await fresh.publish([event(n) for n in range(50)])
    worker = fresh.start_worker()
    number = 0
    while not worker.is_ready:
        await fresh.set_policy(scope=f"port:p{number}", unit="tokens", period="day", hard_cap=1)
        number += 1
    await worker.wait_ready()
    await fresh.set_policy(scope="all", unit="tokens", period="day")
    await fresh.state_is("all|tokens|day")
    await fresh.settled()
    states = await fresh.states()
    assert [n for n in range(number) if f"port:p{n}|tokens|day" not in states] == []


async def test_a_forged_header_cannot_spoil_the_table(fresh: WorkerDeployment) -> None:
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.publish([event(n) for n in range(10)])
    await fresh.settled()
    one = event(11, event_id="old", occurred_at="1970-01-02T00:00:00Z", port_id="forger")
    partition = home_of("forger")
    await fresh.put_bytes(
        fresh.topics.events,
        b"forger",
        json.dumps(one).encode(),
        partition,
        [("replayed-from", b"0/0/86400000")],
    )
    await fresh.settled()
    assert await worker.stopped() == 0, worker.printed
    again = fresh.start_worker()
    await again.wait_ready()
    await fresh.publish([event(12)])
    await fresh.settled()


def wide(number: int) -> dict[str, Any]:
    """A valid event whose ids are as long as they may be and its own."""
    names = ("user_id", "organization_id", "group_id")
    ids = {name: f"{number:06d}".ljust(256, "\u00e9") for name in names}
    return event(number, port_id=f"{number:06d}".ljust(128, "x"), **ids)


async def large_valid(fresh: WorkerDeployment) -> None:
    tags = {f"{n:02d}": "\U0001f6a2" * 256 for n in range(16)}
    bulky = [event(n, port_id="bulky", tags=tags) for n in range(1_500)]
    for first in range(0, len(bulky), 100):
        body = [json.dumps(one, ensure_ascii=False).encode() for one in bulky[first : first + 100]]
        async with fresh_producer(fresh) as producer:
            futures = [
                await producer.send(
                    fresh.topics.events, value, b"bulky", partition=home_of("bulky")
                )
                for value in body
            ]
            await asyncio.gather(*futures)
    fresh.sent += bulky


def fresh_producer(fresh: WorkerDeployment) -> Any:
    from aiokafka import AIOKafkaProducer

    return AIOKafkaProducer(**fresh.client, linger_ms=5)


async def test_a_backlog_of_large_events_fits_into_its_flushes(fresh: WorkerDeployment) -> None:
    await large_valid(fresh)
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.settled()
    await fresh.assert_exact()


async def test_a_backlog_of_long_ids_fits_into_its_flushes(fresh: WorkerDeployment) -> None:
    await fresh.publish([wide(n) for n in range(16_000)])
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.settled()
    await fresh.assert_exact()


async def test_large_keys_and_headers_stop_nobody(fresh: WorkerDeployment) -> None:
    """They came compressed; one cannot be sent on to its home, the others are rejected anyway."""
    topic, events = fresh.topics.events, []
    options = {
        "max_request_size": 64 * MIB,
        "max_batch_size": 64 * MIB,
        "compression_type": "gzip",
    }
    home = home_of("far")
    valid, invalid = json.dumps(event(1, port_id="far", event_id="far")).encode(), b"no json"
    for value, partition, key, trace in (
        (valid, 1 - home, b"k", b"x" * (9 * MIB)),
        (invalid, home, b"k", b"x" * (20 * MIB)),
        (invalid, home, b"y" * (9 * MIB), b"x"),
    ):
        headers = [("trace", trace)]
        offset = await fresh.put_bytes(topic, key, value, partition, headers, **options)
        events.append((partition, offset, key, value, headers))
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.publish([event(n) for n in range(10)])
    await fresh.settled()
    copies = {
        (int(told["source-partition"]), int(told["source-offset"])): (copy, told)
        for copy in await fresh.read(fresh.topics.rejected)
        for told in [dict(copy.headers)]
    }
    reasons = []
    for partition, offset, key, value, headers in events:
        copy, told = copies[partition, offset]
        assert (copy.key, copy.value, list(copy.headers[:1])) == (key, value, headers)
        reasons.append(told["reason"])
    assert reasons == [b"too-large", b"malformed-json", b"malformed-json"]
    assert b"to be forwarded" in copies[events[0][:2]][1]["detail"]
    await fresh.assert_exact()


async def test_the_largest_record_a_broker_takes_can_be_rejected(fresh: WorkerDeployment) -> None:
    partition, topic = 0, fresh.topics.events
    largest = b"x" * (8 * MIB - 120)
    options = {"max_request_size": 64 * MIB, "max_batch_size": 64 * MIB}
    offsets = [await fresh.put_bytes(topic, b"k", largest, partition, **options)]
    repetitive = b"y" * (20 * MIB)
    offsets.append(
        await fresh.put_bytes(
            topic, b"k", repetitive, partition, compression_type="gzip", **options
        )
    )
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.publish([event(n) for n in range(10)])
    await fresh.settled()
    copies = await fresh.read(fresh.topics.rejected)
    assert [int(dict(c.headers)["source-offset"]) for c in copies] == offsets
    assert [dict(c.headers)["reason"] for c in copies] == [b"too-large"] * 2
    assert copies[0].value == largest
    assert copies[1].value == repetitive
    await fresh.assert_exact()


async def test_batches_that_come_to_gigabytes_stop_nobody(fresh: WorkerDeployment) -> None:
    """What is valid beside and behind them counts, what is too large is rejected by its beginning,
    and the worker never holds them."""
    home = home_of("a")
    valid = [event(n, port_id="a", event_id=f"a{n}") for n in range(4)]
    encoded = [json.dumps(one).encode() for one in valid]
    copied = json.dumps(event(9, port_id="a", event_id="copied")).encode()
    sent = [
        [
            Given(b"a", encoded[0]),
            *[Given(b"a", Blanks(1 << 30))] * 3,
            Given(b"a", encoded[1], ((b"trace", Blanks(MAX_RECORD_BYTES)),)),
            Given(b"a", encoded[2]),
        ],
        [Given(b"a", copied + b" " * (60_000))] * 3_000,
        [Given(b"a", encoded[3])],
    ]
    for records in sent:
        await send_zstd(fresh.client, fresh.topics.events, home, records)
    worker = fresh.start_worker()
    await worker.wait_ready()
    await fresh.settled()
    fresh.sent += [valid[0], valid[2], json.loads(copied), valid[3]]
    assert (await fresh.assert_exact())["duplicate"] == 2_999
    refused = await fresh.read(fresh.topics.rejected)
    found = [(dict(r.headers)["source-offset"], dict(r.headers)["reason"]) for r in refused]
    assert found == [(b"%d" % n, b"too-large") for n in range(1, 5)]
    sizes = [int(dict(record.headers)[CUT_FROM]) for record in refused]
    assert [size >> 25 for size in sizes] == [32, 32, 32, 1]
    assert refused[3].value.rstrip() == encoded[1]
    assert peak_kib(worker.pid) < 600 * 1024
