"""What must hold at every moment of a run, seen from outside as a subscriber sees it.

versions    of a key never fall, but for what a former owner sends late
through     everything below it is contained in the states of that partition
used        never more than what was committed, corrections that may be in it aside
as_of       everything older is contained; it stops while nobody serves a partition
"""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pipeline.core.blocks import decode_block
from pipeline.core.resolved import Resolved, decode_resolved
from tests.sim import oracle
from tests.sim.deployment import Deployment, as_record
from tests.sim.log import Entry, Partition
from tests.sim.worker import TOPICS

HEARTBEAT = b"!heartbeat|"
AS_OF_SLACK_MS = 500
MAX_PROBLEMS = 5
DAY_US = oracle.DAY_MS * 1000


class Watch:
    """Follows one run; ``problems`` are sentences about what must not be."""

    def __init__(self, deployment: Deployment) -> None:
        self.problems: list[str] = []
        self.last_heartbeats: dict[int, dict[str, Any]] = {}
        self._deployment = deployment
        self._world = deployment.world
        self._log = deployment.world.log
        self._judge = oracle.Judge(deployment.partitions)
        self._by_scope: dict[str, list[oracle.Accepted]] = defaultdict(list)
        self._judged: dict[int, int] = {}
        self._reached: dict[int, int] = {}
        self._blocks_read: dict[int, int] = {}
        self._resolved_read: dict[int, int] = {}
        self._deltas: dict[str, list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        self._states_read: dict[int, int] = {}
        self._states: dict[tuple[int, str], dict[str, Any]] = {}
        self._rules: tuple[int, list[oracle.Rules]] = (-1, [])
        self._gone: dict[tuple[int, str], int] = {}
        self._served_ms = dict.fromkeys(range(deployment.partitions), deployment.world.broker_ms())
        self._log.on_append.append(self._on_append)
        self._world.before_stop.append(self.note_serving)

    def step(self) -> None:
        """Checks everything that has become visible since the last call."""
        self._read_blocks()
        self._read_resolved()
        for number, partition in self._log.topics[TOPICS.state].items():
            position = self._states_read.get(number, 0)
            stable = partition.last_stable
            for entry in partition.history:
                if position <= entry.offset < stable and entry.is_record:
                    self._take_state(number, entry)
            self._states_read[number] = stable

    def note_serving(self) -> None:
        """Remembers which partitions are served right now."""
        for worker in self._deployment.workers:
            if worker.process.running and worker.flow is not None:
                for source in worker.flow.prices:
                    now_ms = self._world.broker_ms()
                    self._served_ms[source] = max(self._served_ms[source], now_ms)

    def judgement(self) -> oracle.Judgement:
        """The fate of every record of the log."""
        for number, partition in self._log.topics[TOPICS.events].items():
            self._judge_up_to(number, partition.end)
        return self._judge.judgement

    def _on_append(self, partition: Partition, entries: list[Entry]) -> None:
        if partition.topic == TOPICS.partials:
            self.note_serving()

    # -- states and heartbeats ---------------------------------------------------

    def _take_state(self, number: int, entry: Entry) -> None:
        key = (entry.key or b"").decode()
        if key.startswith(HEARTBEAT.decode()):
            self._check_heartbeat(number, entry)
        elif entry.value is None:
            if (number, key) in self._states:
                self._gone[number, key] = self._states.pop((number, key))["version"]
        else:
            state = oracle.read_state(entry.value)
            known = self._states.get((number, key), {}).get("version", 0)
            known = max(known, self._gone.get((number, key), 0))
            self._states[number, key] = state
            if state["version"] <= known:
                self._complain(f"{key}: version {state['version']} comes after {known}")
            self._check_used(key, state, self._reached, at_most=True)

    def _check_heartbeat(self, number: int, entry: Entry) -> None:
        former = self.last_heartbeats.get(number)
        body = self.last_heartbeats[number] = oracle.read_heartbeat(entry.value or b"")
        through = {int(source): offset for source, offset in body["through"].items()}
        if former is not None:
            self._check_falls(number, former, body)
        for source, offset in through.items():
            self._judge_up_to(source, min(offset, self._reached.get(source, 0)))
        as_of_day = body["as_of_ms"] // oracle.DAY_MS
        for (partition, key), state in self._states.items():
            # A period that is over by then is spoken for by the state of the next, which follows.
            if partition == number and as_of_day < _day(state["resets_at"]):
                self._check_used(key, state, through, at_most=False)
        self._check_as_of(number, body["as_of_ms"], through, entry)

    def _check_used(
        self, key: str, state: dict[str, Any], below: dict[int, int], *, at_most: bool
    ) -> None:
        if state["scope"].endswith(":*"):
            return
        first, end = _day(state["period_start"]), _day(state["resets_at"])
        column, _ = oracle.column_of(state["scope"], state["unit"])
        total = sum(
            one.amounts[column]
            for one in self._by_scope[state["scope"]]
            if first <= one.day < end and one.offset < below.get(one.partition, 0)
        )
        deltas = [d[column] for day, d in self._deltas[state["scope"]] if first <= day < end]
        if at_most and state["used"] > total + sum(max(delta, 0) for delta in deltas):
            self._complain(f"{key} says {state['used']}, only {total} was committed")
        if not at_most and state["used"] < total + sum(min(delta, 0) for delta in deltas):
            self._complain(f"{key} says {state['used']}, but {total} lies below {below}")

    def _check_falls(self, number: int, former: dict[str, Any], body: dict[str, Any]) -> None:
        fallen = [s for s, offset in body["through"].items() if offset < former["through"][s]]
        if fallen or body["as_of_ms"] < former["as_of_ms"]:
            self._complain(f"heartbeat {number} falls from {former} to {body}")

    def _check_as_of(
        self, number: int, as_of_ms: int, through: dict[int, int], entry: Entry
    ) -> None:
        if self._world.hits["broker-clock-back"]:
            return  # two moments have the same time then
        for source, offset in through.items():
            if as_of_ms > self._served_ms[source] + AS_OF_SLACK_MS:
                self._complain(
                    f"heartbeat {number} at offset {entry.offset} is as of {as_of_ms}, but "
                    f"partition {source} was last served at {self._served_ms[source]}"
                )
            for record in self._log.partition(TOPICS.events, source).history:
                if record.is_record and record.offset >= offset and record.timestamp < as_of_ms:
                    self._complain(
                        f"heartbeat {number} at offset {entry.offset} is as of {as_of_ms} through "
                        f"{offset} of partition {source}, but offset {record.offset} is of "
                        f"{record.timestamp}"
                    )
                    break

    # -- what the oracle knows ---------------------------------------------------

    def _read_blocks(self) -> None:
        for number, partition in self._log.topics[TOPICS.priced].items():
            position = self._blocks_read.get(number, 0)
            for entry in partition.history:
                if entry.offset >= position and entry.is_record:
                    block = decode_block(entry.value or b"")
                    if block.topic == TOPICS.events:
                        end = max(self._reached.get(number, 0), block.next_offset)
                        self._reached[number] = end
            self._blocks_read[number] = partition.last_stable
        for number, offset in self._reached.items():
            self._judge_up_to(number, offset)

    def _read_resolved(self) -> None:
        """What corrections may have moved by now; no heartbeat says which it contains."""
        for number, partition in self._log.topics[TOPICS.resolved].items():
            position = self._resolved_read.get(number, 0)
            for entry in partition.history:
                if position <= entry.offset < partition.last_stable and entry.is_record:
                    self._note_deltas(decode_resolved(entry.value))
            self._resolved_read[number] = partition.last_stable

    def _note_deltas(self, resolved: Resolved) -> None:
        event, entry = resolved.event, resolved.entry
        tokens, cost = event.input_tokens + event.output_tokens, entry.cost_nano or 0
        org_cost = cost if event.billing_scope == "org" else 0
        moved = (entry.requests, tokens, cost, org_cost)
        named = {"port": event.port_id, "org": event.organization_id, "group": event.group_id}
        named |= {"user": event.user_id}
        day = event.occurred_at_us // DAY_US
        for scope in ("all", *(f"{kind}:{name}" for kind, name in named.items())):
            self._deltas[scope].append((day, moved))

    def _judge_up_to(self, number: int, end: int) -> None:
        position = self._judged.get(number, 0)
        if end <= position:
            return
        rules, rates = self._read_rules(), self._deployment.records(TOPICS.rates, history=True)
        accepted = self._judge.judgement.accepted
        for entry in self._log.partition(TOPICS.events, number).history:
            if position <= entry.offset < end and entry.is_record:
                self._judge.feed(as_record(entry), rules, rates)
                one = accepted.get((number, entry.offset))
                for scope in () if one is None else one.scopes:
                    self._by_scope[scope].append(one)  # type: ignore[arg-type]
        self._judged[number] = end

    def _read_rules(self) -> list[oracle.Rules]:
        records = _records(self._log.partition(TOPICS.rules, 0).history)
        if len(records) != self._rules[0]:
            self._rules = (len(records), oracle.read_rules(records))
        return self._rules[1]

    def _complain(self, problem: str) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


def _records(entries: Iterable[Entry]) -> list[oracle.Record]:
    return [as_record(entry) for entry in entries if entry.is_record]


def _day(midnight: str) -> int:
    return (datetime.fromisoformat(midnight) - oracle.EPOCH).days
