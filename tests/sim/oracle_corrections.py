"""The oracle's part on corrections: what each one must come to, from the input topics alone.

Two things depend on how fast the resolver was, and nobody can know them from the input: whether
an event or a rate that was sent after a correction was there already. Of these the run may choose;
what was sent before must have been seen. The run's ``Trace`` says what was chosen, never an amount.

All corrections of a port stand on one partition here, so their order is that of their offsets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tests.sim import oracle
from tests.sim.oracle import Accepted, Judgement, RateBook, Record

COUNTERS = oracle.COUNTERS
KINDS = ("void", "amend", "reprice")
CURRENCY = "USD"
FREE_LISTING = f"book:{oracle.FREE_PROVIDER}"

Place = tuple[int, int]
"""Partition and offset on ``usage.corrections``, or on ``usage.events``."""


class Trace(NamedTuple):
    """What was written of a correction: ``accepted``, a reason, or nothing at all.

    ``day`` is that of the event which was taken, ``version`` the next offset of the rates.
    """

    outcome: str = ""
    day: int = 0
    version: int = 0


@dataclass(frozen=True)
class Sent:
    """When records were sent, in seconds of the run: events and corrections by place, rates by
    offset. A forwarded copy was sent when its original was."""

    events_s: Mapping[Place, float]
    corrections_s: Mapping[Place, float]
    rates_s: Mapping[int, float]


@dataclass(frozen=True)
class Standing:
    """How an event stands after some entries; ``cost_nano`` None while it is unpriced."""

    body: Mapping[str, Any]
    entry_no: int
    is_void: bool
    cost_nano: int | None
    status: str
    rate_id: str


class Entry(NamedTuple):
    """The ledger entry of a correction: what it adds to ``event``."""

    event: Accepted
    correction_id: str
    reason: str
    recorded_at_ms: int
    entry_no: int
    requests: int
    counts: tuple[int, ...]
    tokens: int
    cost_nano: int | None
    unpriced: int
    status: str
    rate_id: str
    is_estimated: bool

    @property
    def day(self) -> int:
        return self.event.day

    @property
    def scopes(self) -> list[str]:
        return self.event.scopes

    @property
    def amounts(self) -> tuple[int, int, int, int, int, int]:
        """In the order of ``Accepted.amounts``."""
        org = self.event.billing_scope == "org"
        cost = self.cost_nano or 0
        return self.requests, self.tokens, cost, cost * org, self.unpriced, self.unpriced * org


@dataclass
class Corrected:
    """The fate of every correction, by place."""

    entries: dict[Place, Entry] = field(default_factory=dict[Place, Entry])
    rejected: dict[Place, str] = field(default_factory=dict[Place, str])
    duplicates: set[Place] = field(default_factory=set[Place])

    def fates(self) -> dict[Place, str]:
        """One word for each record."""
        return {
            **dict.fromkeys(self.entries, "accepted"),
            **self.rejected,
            **dict.fromkeys(self.duplicates, ""),
        }


def read_correction(value: bytes | None) -> dict[str, Any] | str:
    """The correction's fields, or the reason why the record is none."""
    body = oracle.read_object(value)
    if isinstance(body, str):
        return body
    texts = ["correction_id", "port_id", "event_id", "kind", "reason"]
    more = {"amend": "counts", "reprice": "rate_id"}.get(body.get("kind"))  # type: ignore[arg-type]
    if any(name not in body for name in [*texts, *([more] if more else [])]):
        return "missing-field"
    texts += ["rate_id"] if more == "rate_id" else []
    if any(not isinstance(body[name], str) for name in texts):
        return "wrong-type"
    counts = body.get("counts", {}) if more == "counts" else {}
    if not isinstance(counts, dict):
        return "wrong-type"
    if any(name in COUNTERS and type(count) is not int for name, count in counts.items()):
        return "wrong-type"
    if body["kind"] not in KINDS or any(not body[name] for name in texts):
        return "out-of-range"
    if more == "counts" and not counts:
        return "out-of-range"
    if any(name not in COUNTERS or not 0 <= count <= 10**10 for name, count in counts.items()):
        return "out-of-range"
    return {**body, "counts": counts}


def price_named(
    book: RateBook, rate_id: str, event: Mapping[str, Any]
) -> tuple[int | None, str, str, bool] | None:
    """Cost, status, rate and whether it is an estimate by one rate; None where there is none."""
    flag = "self-hosted" if event.get("self_hosted") else ""
    flag = flag or ("cache-hit" if event.get("cache_hit") else "")
    if rate_id in ("self-hosted", "cache-hit"):
        return (0, "free", flag, False) if flag == rate_id else None
    name, star, multiplier_id = rate_id.partition("*")
    _, rate = book.used.get(name, (0, {}))
    _, multiplier = book.used.get(multiplier_id, (0, {}))
    if star and "multiplier" not in multiplier:
        return None
    if "per_million" not in rate:
        is_listed = event["provider"] == oracle.FREE_PROVIDER and name == FREE_LISTING
        return (0, "free", flag or rate_id, False) if is_listed else None
    if flag:
        return 0, "free", flag, False
    cost = oracle.cost_of(dict(event), rate)
    if cost is None:
        return None, "unpriced", "", False
    if star:
        cost *= oracle.Fraction(multiplier["multiplier"])
    return round(cost), "priced", rate_id, oracle.is_last_resort(rate)


class CorrectionJudge:
    """Judges corrections one by one, those of a port in the order in which they were sent."""

    def __init__(
        self,
        judgement: Judgement,
        rates: Sequence[Record],
        lead_ms: int,
        sent: Sent,
        traces: Mapping[Place, Trace],
    ) -> None:
        self.corrected = Corrected()
        self._bodies = judgement.bodies
        self._rates = rates
        self._lead_ms = lead_ms
        self._sent = sent
        self._traces = traces
        self._taken: set[str] = set()
        self._standings: dict[Place, Standing] = {}
        self._events: dict[tuple[str, str], list[tuple[float, Accepted]]] = {}
        for place, one in judgement.accepted.items():
            found = self._events.setdefault((one.port_id, one.event_id), [])
            found.append((sent.events_s[place], one))
            found.sort(key=lambda pair: pair[0])

    def feed(self, record: Record) -> None:
        """Decides one correction's fate."""
        place = record.partition, record.offset
        body = read_correction(record.value)
        if isinstance(body, str):
            self.corrected.rejected[place] = body
        elif body["correction_id"] in self._taken:
            self.corrected.duplicates.add(place)
        else:
            self._settle(place, record, body)

    def _settle(self, place: Place, record: Record, body: dict[str, Any]) -> None:
        trace = self._traces.get(place, Trace())
        possible = list(self._possible(place, record, body, trace))
        fitting = [one for one in possible if _fits(one, trace)]
        chosen = (fitting or possible)[0]
        if isinstance(chosen, str):
            self.corrected.rejected[place] = chosen
            return
        entry, after = chosen
        self.corrected.entries[place] = entry
        self._taken.add(body["correction_id"])
        self._standings[entry.event.partition, entry.event.offset] = after

    def _possible(
        self, place: Place, record: Record, body: dict[str, Any], trace: Trace
    ) -> "Iterator[str | tuple[Entry, Standing]]":
        sent_s = self._sent.corrections_s[place]
        events = self._events.get((body["port_id"], body["event_id"]), [])
        before = sum(at_s < sent_s for at_s, _ in events)
        for known in range(before, len(events) + 1):
            event = _meant([one for _, one in events[:known]], body)
            for version in self._versions(sent_s, trace):
                yield self._outcome(record, body, event, version)

    def _versions(self, sent_s: float, trace: Trace) -> list[int]:
        if trace.outcome == "accepted":
            return [trace.version]
        offsets = [record.offset for record in self._rates]
        seen = [offset for offset in offsets if self._sent.rates_s[offset] < sent_s]
        return [max(seen, default=-1) + 1, *(o + 1 for o in offsets if o not in seen)]

    def _outcome(
        self, record: Record, body: dict[str, Any], event: Accepted | None, version: int
    ) -> "str | tuple[Entry, Standing]":
        if event is None:
            return "unknown-event"
        before = self._standing(event)
        book = RateBook.of(self._rates, version, self._lead_ms)
        if body["kind"] == "reprice" and price_named(book, body["rate_id"], before.body) is None:
            return "unknown-rate"
        if before.is_void:
            return "already-void"
        counts = {**before.body, **body["counts"]}
        for part, whole in oracle.WHOLES.items():
            if counts.get(part, 0) > counts.get(whole, 0):
                return "inconsistent-tokens"
        if body.get("currency", CURRENCY) != CURRENCY:
            return "wrong-currency"
        if body["kind"] == "void":
            zero = {**counts, **dict.fromkeys(COUNTERS, 0)}
            after = replace(before, body=zero, is_void=True, cost_nano=0)
            return self._entry(record, body, event, before, after, before.rate_id, False)
        rate_id = body["rate_id"] if body["kind"] == "reprice" else before.rate_id
        price = (None, "unpriced", "", False)
        if rate_id:
            price = price_named(book, rate_id, counts) or price
        cost_nano, status, name, is_estimated = price
        if body["kind"] == "reprice" and cost_nano is None:
            return "unknown-rate"
        after = replace(
            before, body=counts, cost_nano=cost_nano, status=status, rate_id=name or before.rate_id
        )
        return self._entry(record, body, event, before, after, name, is_estimated)

    def _standing(self, event: Accepted) -> Standing:
        place = event.partition, event.offset
        found = self._standings.get(place)
        if found is None:
            body = self._bodies[place]
            found = Standing(body, 0, False, event.cost_nano, event.status, event.rate_id)
        return found

    @staticmethod
    def _entry(
        record: Record,
        body: dict[str, Any],
        event: Accepted,
        before: Standing,
        after: Standing,
        rate_id: str,
        is_estimated: bool,
    ) -> tuple[Entry, Standing]:
        moved = {n: after.body.get(n, 0) - before.body.get(n, 0) for n in COUNTERS}
        cost_nano = None
        if before.cost_nano is not None or (after.cost_nano is not None and not after.is_void):
            cost_nano = (after.cost_nano or 0) - (before.cost_nano or 0)
        after = replace(after, entry_no=before.entry_no + 1)
        entry = Entry(
            event=event,
            correction_id=body["correction_id"],
            reason=body["reason"],
            recorded_at_ms=record.timestamp_ms,
            entry_no=after.entry_no,
            requests=-1 if after.is_void else 0,
            counts=tuple(moved.values()),
            tokens=moved["input_tokens"] + moved["output_tokens"],
            cost_nano=cost_nano,
            unpriced=(after.cost_nano is None) - (before.cost_nano is None),
            status=after.status,
            rate_id=rate_id,
            is_estimated=event.is_estimated or is_estimated,
        )
        return entry, after


def _meant(known: Sequence[Accepted], body: dict[str, Any]) -> Accepted | None:
    """Of events with one id, the one of the day that is named, or else the last."""
    by_day = {one.day: one for one in known}
    if not by_day:
        return None
    day = oracle.instant_us(body["occurred_at"]) // 86_400_000_000 if "occurred_at" in body else -1
    return by_day[day if day in by_day else max(by_day)]


def _fits(outcome: "str | tuple[Entry, Standing]", trace: Trace) -> bool:
    if isinstance(outcome, str):
        return outcome == trace.outcome
    return trace.outcome == "accepted" and outcome[0].day == trace.day
