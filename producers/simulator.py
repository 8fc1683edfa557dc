"""A realistic day of AI usage, the same for the same seed: what `demo` and the tests send.

Pure: no clock, no network. Every record carries a label that says what should become of it.
"""

import json
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from producers.malformed import MAKERS, STRUCTURED, Headers, encode, malformed
from producers.partitions import home_partition
from producers.steady import steady
from producers.workloads import HOUR_WEIGHTS, PORTS, WORKLOADS, Person, Workload, people

__all__ = ["Expectations", "Sent", "expectations", "simulate", "steady"]

Body = dict[str, Any]

DEFAULT_SEED = 20_261_122
DEFAULT_EVENTS = 22_000
CAPPED_PORT = "harbor-7"
"""The port whose token budget the closing burst drives over its caps."""
COST_CAPPED_PORT = "harbor-3"
"""The port whose cost budget the closing burst drives over its caps."""
BURST_EVENTS = 240
BURST_LABEL = "burst"
REJECTED_PREFIX = "rejected:"
BURST_LENGTH = timedelta(minutes=4)

_WORKLOAD_STEPS = tuple(accumulate(workload.weight for workload in WORKLOADS))
_SHARES = {
    "duplicate": 0.008,
    "altered-duplicate": 0.005,
    "misrouted": 0.010,
    "late": 0.014,
    "cloudevents-structured": 0.008,
    "cloudevents-binary": 0.008,
    "reported-cost": 0.020,
    "user-billed": 0.030,
    "tagged": 0.030,
    "rejected": 0.012,
}
"""What part of the records is of which special label."""


class Sent(NamedTuple):
    """One record as a producer sends it.

    ``partition`` is set where the producer insists on one, else the key decides. ``label`` is
    ``valid``, a special case, or ``rejected:REASON``.
    """

    value: bytes | None
    key: bytes | None
    headers: Headers
    partition: int | None
    label: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """What should become of a simulated day; token sums are of the burst's ports alone.

    The suggested caps of ``CAPPED_PORT`` lie between what it used in ``end``'s month before the
    burst and what it used in all, so that the burst crosses both of them.
    """

    records: int
    labels: dict[str, int]
    accepted: int
    duplicates: int
    forwarded: int
    rejected: dict[str, int]
    tokens_before_burst: int
    tokens_after_burst: int
    soft_cap: int
    hard_cap: int


def simulate(
    seed: int = DEFAULT_SEED,
    events: int = DEFAULT_EVENTS,
    end: datetime = datetime(2026, 11, 22, 12, tzinfo=UTC),
    *,
    users: int = 150,
    partitions: int = 4,
) -> list[Sent]:
    """``events`` records of the 24 hours up to ``end``, in sending order.

    The last ``BURST_EVENTS`` are the burst, and the very last one occurs at ``end``. At least
    1,000 events, so that every label occurs; ``partitions`` is the topic's count, needed to
    send some records to a wrong one. Raises ``ValueError`` when ``events`` is too small.
    """
    if events < 1_000:
        raise ValueError(f"events: at least 1000 are needed to cover every case, not {events}")
    day = _Day(Random(seed), end.astimezone(UTC), users, partitions)
    labels = _labels(events - BURST_EVENTS, day.rng)
    moments = sorted(day.moment() for _ in labels)
    sent: list[Sent] = []
    for label, moment in zip(labels, moments, strict=True):
        sent.append(day.record(label, moment, sent))
    sent.extend(day.burst())
    return sent


def expectations(sent: Sequence[Sent], end: datetime) -> Expectations:
    """What ``simulate``'s result should lead to once all of it is counted."""
    labels = Counter(record.label for record in sent)
    rejected = {
        label.removeprefix(REJECTED_PREFIX): count
        for label, count in sorted(labels.items())
        if label.startswith(REJECTED_PREFIX)
    }
    duplicates = labels["duplicate"] + labels["altered-duplicate"]
    before, after = _capped_tokens(sent, end)
    return Expectations(
        records=len(sent),
        labels=dict(sorted(labels.items())),
        accepted=len(sent) - duplicates - sum(rejected.values()),
        duplicates=duplicates,
        forwarded=labels["misrouted"],
        rejected=rejected,
        tokens_before_burst=before,
        tokens_after_burst=after,
        soft_cap=before + (after - before) * 3 // 10,
        hard_cap=before + (after - before) * 7 // 10,
    )


def _capped_tokens(sent: Sequence[Sent], end: datetime) -> tuple[int, int]:
    month = end.astimezone(UTC).strftime("%Y-%m")
    before = after = 0
    for record in sent:
        first_of_its_id = record.label not in ("duplicate", "altered-duplicate")
        if not first_of_its_id or record.label.startswith(REJECTED_PREFIX):
            continue
        outer = json.loads(record.value or b"{}")
        body = outer.get("data", outer)
        headers = {name: content.decode() for name, content in record.headers}
        port = body.get("port_id") or outer.get("subject") or headers.get("ce_subject")
        moment = body.get("occurred_at") or outer.get("time") or headers["ce_time"]
        if port != CAPPED_PORT or _month(moment) != month:
            continue
        tokens = body.get("input_tokens", 0) + body.get("output_tokens", 0)
        after += tokens
        before += tokens if record.label != BURST_LABEL else 0
    return before, after


def _month(moment: str) -> str:
    return datetime.fromisoformat(moment).astimezone(UTC).strftime("%Y-%m")


def _labels(count: int, rng: Random) -> list[str]:
    """One label per record, specials spread over the day; duplicates never come first."""
    labels: list[str] = []
    for label, share in _SHARES.items():
        labels.extend([label] * max(1, round(count * share)))
    reasons = list(MAKERS)
    bad = [at for at, label in enumerate(labels) if label == "rejected"]
    for turn, at in enumerate(bad):
        labels[at] = REJECTED_PREFIX + reasons[turn % len(reasons)]
    labels.extend(
        REJECTED_PREFIX + reason for reason in reasons[len(bad) :]
    )  # a short day has each reason at least once
    labels.extend(["valid"] * (count - len(labels)))
    rng.shuffle(labels)
    repeats = ("duplicate", "altered-duplicate")
    first = labels.index("valid")
    if any(label in repeats for label in labels[:first]):
        labels[0], labels[first] = labels[first], labels[0]
    return labels


class _Day:
    """The generator's state: one random source, the people, what was sent."""

    def __init__(self, rng: Random, end: datetime, users: int, partitions: int) -> None:
        self.rng = rng
        self.end = end
        self._people = people(rng, users)
        self._partitions = partitions
        self._hour_steps = tuple(
            accumulate(HOUR_WEIGHTS[(end - timedelta(hours=24 - at)).hour] for at in range(24))
        )
        self._originals: list[tuple[Body, bytes, bytes]] = []
        """Bodies, values and keys that a duplicate may repeat."""

    def moment(self) -> datetime:
        """A time of the day before the burst, more likely in busy hours."""
        rng = self.rng
        hour = bisect(self._hour_steps, rng.random() * self._hour_steps[-1])
        start = self.end - timedelta(hours=24) - BURST_LENGTH
        return start + timedelta(microseconds=hour * 3_600_000_000 + rng.randrange(3_600_000_000))

    def record(self, label: str, moment: datetime, sent: Sequence[Sent]) -> Sent:
        """The next record, of the kind that ``label`` names."""
        if label.endswith("duplicate"):
            return self._repeat(label)
        body, own_label = self._body(moment)
        key = body["port_id"].encode()
        if label.startswith(REJECTED_PREFIX):
            value, headers = malformed(label.removeprefix(REJECTED_PREFIX), body, self.rng)
            return Sent(value, key, headers, None, label)
        if label.startswith("cloudevents"):
            return self._cloud_event(label, body, key)
        label = self._special(label, body, moment) or own_label
        value = encode(body)
        if label != "misrouted":  # its forwarded copy could come after the repeat
            self._originals.append((body, value, key))
        return Sent(value, key, (), self._wrong_partition(key, label), label)

    def burst(self) -> list[Sent]:
        """Large calls of the two capped ports in the minutes up to ``end``."""
        rng = self.rng
        sent: list[Sent] = []
        for turn in range(BURST_EVENTS):
            left = BURST_EVENTS - 1 - turn
            moment = self.end - BURST_LENGTH * left / BURST_EVENTS
            port = COST_CAPPED_PORT if turn % 3 == 1 else CAPPED_PORT
            read = rng.randrange(20_000, 60_000)
            body = self._envelope(moment, rng.choice(self._people), port)
            body |= {
                "provider": "openai",
                "model": "gpt-5",
                "feature": "bulk-import",
                "input_tokens": read,
                "output_tokens": rng.randrange(2_000, 6_000),
            }
            sent.append(Sent(encode(body), port.encode(), (), None, BURST_LABEL))
        return sent

    def _body(self, moment: datetime) -> tuple[Body, str]:
        rng = self.rng
        person = rng.choice(self._people)
        workload = _draw(rng)
        port = person.port_id if rng.random() < 0.85 else rng.choice(PORTS)
        body = self._envelope(moment, person, port)
        body |= {
            "provider": workload.provider,
            "model": workload.model,
            "kind": workload.kind,
            "feature": rng.choice(workload.features),
            **workload.counters(rng),
        }
        self._decorate(body)
        return body, workload.label

    def _envelope(self, moment: datetime, person: Person, port: str) -> Body:
        return {
            "event_id": f"{self.rng.getrandbits(80):020x}",
            "occurred_at": self._written(moment),
            "port_id": port,
            "user_id": person.user_id,
            "organization_id": person.organization_id or None,
            "group_id": person.group_id,
        }

    def _written(self, moment: datetime) -> str:
        """``moment`` in one of the forms that RFC 3339 allows."""
        turn = self.rng.random()
        if turn < 0.80 or moment == self.end:
            return moment.isoformat().replace("+00:00", "Z")
        if turn < 0.95:
            return moment.astimezone(timezone(timedelta(hours=2))).isoformat()
        return moment.isoformat().replace("+00:00", "") + (
            f"{self.rng.randrange(1_000):03d}Z" if moment.microsecond else "Z"
        )

    def _decorate(self, body: Body) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            body["service"] = rng.choice(("inbox", "docs", "voice-bridge"))
            body["endpoint"] = "/v1/responses"
        if rng.random() < 0.3:
            body["session_id"] = f"s{rng.randrange(4_000)}"
            body["request_id"] = f"req_{rng.getrandbits(48):012x}"
        if rng.random() < 0.02:
            body["estimated"] = True
        if body["provider"] == "openai" and body["kind"] == "llm" and rng.random() < 0.08:
            body["service_tier"] = rng.choice(("flex", "priority", "default"))
        if rng.random() < 0.02:
            body["x_unknown"] = {"ignored": [1, None, "…"]}

    def _special(self, label: str, body: Body, moment: datetime) -> str:
        """Makes the body what ``label`` asks for; returns the label, ``""`` for an ordinary one."""
        rng = self.rng
        if label == "late":
            ago = timedelta(days=1, seconds=rng.randrange(5 * 86_400 - 3_600))
            body["occurred_at"] = self._written(moment - ago)
        elif label == "reported-cost":
            body["reported_cost"] = f"0.{rng.randrange(10**6):06d}"
        elif label == "user-billed":
            body["billing_scope"] = "user"
        elif label == "tagged":
            body["tags"] = {"env": rng.choice(("prod", "stage")), "ort": "Köln ⚓"}
        elif label != "misrouted":
            return ""
        return label

    def _wrong_partition(self, key: bytes, label: str) -> int | None:
        if label != "misrouted" or self._partitions < 2:
            return None
        home = home_partition(key, self._partitions)
        return (home + 1 + self.rng.randrange(self._partitions - 1)) % self._partitions

    def _repeat(self, label: str) -> Sent:
        body, value, key = self.rng.choice(self._originals[-2_000:])
        if label == "altered-duplicate":
            value = encode(
                {**body, "output_tokens": 9_999, "reasoning_tokens": 0, "model": "gpt-5"}
            )
        return Sent(value, key, (), None, label)

    def _cloud_event(self, label: str, body: Body, key: bytes) -> Sent:
        attributes = {
            "id": body.pop("event_id"),
            "time": body.pop("occurred_at"),
            "subject": body.pop("port_id"),
            "source": "/services/inbox",
            "type": "ai.usage.v1",
            "specversion": "1.0",
        }
        if label == "cloudevents-structured":
            return Sent(encode({**attributes, "data": body}), key, STRUCTURED, None, label)
        headers = tuple((f"ce_{name}", text.encode()) for name, text in attributes.items())
        content_type = (("content-type", b"application/json"),)
        return Sent(encode(body), key, content_type + headers, None, label)


def _draw(rng: Random) -> Workload:
    return WORKLOADS[bisect(_WORKLOAD_STEPS, rng.random() * _WORKLOAD_STEPS[-1])]
