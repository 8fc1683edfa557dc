"""One simulated deployment: workers, sinks, broker and ledger, and what inputs do to them."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from pipeline.core.blocks import decode_block
from pipeline.stream.topics import SPECS
from tests.sim import oracle
from tests.sim.ledger import SimulatedLedger
from tests.sim.log import Draft, Entry, TopicConfig
from tests.sim.network import LostAnswer
from tests.sim.scenario import Input, Scenario
from tests.sim.sink import SimulatedSink
from tests.sim.virtual_loop import Process
from tests.sim.worker import EPOCH, TOPICS, SimulatedWorker
from tests.sim.world import World

CORRECTING = ("correct", "correct-badly")
MAX_PROCESSES = 3
MAX_STARTS = 60
CLEANABLE_AFTER_S = 2.0
PARTIALS_KEPT_S = 3.0
UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Deployment:
    """Applies inputs. ``ends`` collects how every process ended."""

    def __init__(self, scenario: Scenario) -> None:
        self.world = World(scenario.knobs)
        self.ledger = self.world.ledger = SimulatedLedger(self.world)
        self.resolves = any(one["do"] in CORRECTING for one in scenario.inputs)
        self.partitions = scenario.knobs.partitions
        self.workers: list[SimulatedWorker] = []
        self.sinks: list[SimulatedSink] = []
        self.ends: list[tuple[str, str, BaseException | None]] = []
        self.latest_broker_ms = 0
        self._wanted = {"worker": scenario.workers, "sink": scenario.sinks}
        self._restart_s = {"worker": 0.3, "sink": 0.3}
        self._starts = 0
        self._occurred_at: dict[tuple[str, str], str] = {}
        self.world.on_point_kill = self._die
        self.world.log.create(
            TopicConfig(
                spec.name,
                spec.partitions(self.partitions),
                spec.cleanup == "compact",
                spec.timestamp_type == "LogAppendTime",
            )
            for spec in SPECS.values()
        )

    def start(self) -> None:
        """Creates groups and processes; to be called inside ``simulated``."""
        count = self.partitions
        self.world.add_group("worker", {TOPICS.events: count, TOPICS.partials: count})
        self.world.add_group(TOPICS.sink_group, {TOPICS.priced: count})
        epoch = {
            "epoch": EPOCH,
            "id": "simulated",
            "created_at": "2026-11-01T00:00:00.000Z",
            "topic_ids": {TOPICS.events: "simulated"},
            "partitions": count,
        }
        self.put(TOPICS.epoch, None, json.dumps(epoch).encode())
        for part in ("worker", "sink"):
            for _ in range(self._wanted[part]):
                self._start(part)

    def put(self, topic: str, key: bytes | None, value: bytes | None, partition: int = 0) -> None:
        """A producer outside of the pipeline sends one record."""
        draft = Draft(key, value, (), self.world.broker_ms())

        def append() -> None:
            self.world.log.append(topic, partition, [draft])

        self.world.network.when_up(append)

    # -- processes ---------------------------------------------------

    def running(self, part: str) -> list[Any]:
        """The processes of one part that have not ended, frozen ones included."""
        found = self.workers if part == "worker" else self.sinks
        return [one for one in found if one.process.alive]

    def _start(self, part: str) -> None:
        self._starts += 1
        if self._starts > MAX_STARTS:
            return
        number = len(self.workers if part == "worker" else self.sinks)
        if part == "worker":
            self.workers.append(SimulatedWorker(self.world, f"worker-{number}", self._ended))
        else:
            name = f"sink-{number}"
            self.sinks.append(
                SimulatedSink(self.world, self.ledger, name, self._ended, resolves=self.resolves)
            )

    def _ended(self, one: Any) -> None:
        self.ends.append((one.process.name, one.ended or "", one.error))
        part = one.process.name.partition("-")[0]
        delay_s, self._restart_s[part] = self._restart_s[part], 0.3
        self.world.loop.world_later(delay_s, self._replace, part)

    def _replace(self, part: str) -> None:
        if len(self.running(part)) < self._wanted[part]:
            self._start(part)

    def _die(self, process: Process) -> None:
        for one in (*self.workers, *self.sinks):
            if one.process is process:
                one.kill()

    def _one(self, part: str, number: int) -> Any:
        found = self.running(part)
        return found[number % len(found)] if found else None

    # -- inputs ---------------------------------------------------

    def apply(self, one: Input) -> None:
        """Does what an input says."""
        action: Callable[[Input], None] = getattr(self, "_" + one["do"].replace("-", "_"))
        action(one)
        self.latest_broker_ms = max(self.latest_broker_ms, self.world.broker_ms())

    def _time(self, in_s: float) -> str:
        moment = UNIX_EPOCH + timedelta(milliseconds=self.world.broker_ms() + round(in_s * 1000))
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _event(self, one: Input) -> None:
        occurred_at = self._time(-one["age_s"])
        self._occurred_at[one["port"], one["id"]] = occurred_at
        body = {
            "event_id": one["id"],
            "occurred_at": occurred_at,
            "port_id": one["port"],
            "user_id": one["user"],
            "organization_id": one["org"] or None,
            "group_id": one["group"],
            "provider": one["provider"],
            "model": one["model"],
            "billing_scope": one["billing"],
            "input_tokens": one["in"],
            "cached_input_tokens": one["cached"],
            "output_tokens": one["out"],
            "web_searches": one["searches"],
        }
        if one["flag"]:
            body[one["flag"]] = True
        self._send(json.dumps(body).encode(), one["port"], one["to"])

    def _send(self, value: bytes | None, port: str, to: int | None) -> None:
        home = oracle.home_of(port, self.partitions)
        partition = home if to is None or to >= self.partitions else to
        self.put(TOPICS.events, port.encode(), value, partition)

    def _poison(self, one: Input) -> None:
        good = {
            "event_id": "poison",
            "occurred_at": self._time(0),
            "port_id": "harbor-1",
            "provider": "acme",
            "model": "m-1",
        }
        values: dict[str, bytes | None] = {
            "null": None,
            "no-json": b"{no json",
            "no-utf8": b'{"event_id": "\xff"}',
            "array": b"[1, 2]",
            "missing": json.dumps({**good, "port_id": None}).encode(),
            "wrong-type": json.dumps({**good, "input_tokens": "12"}).encode(),
            "out-of-range": json.dumps({**good, "input_tokens": -1}).encode(),
            "bad-timestamp": json.dumps({**good, "occurred_at": "yesterday"}).encode(),
            "inconsistent": json.dumps({**good, "cached_input_tokens": 1}).encode(),
            "large": json.dumps({**good, "model": "m" * 66_000}).encode(),
        }
        self.put(TOPICS.events, b"k", values[one["kind"]], one["to"] % self.partitions)

    def _correct(self, one: Input) -> None:
        body = {
            "correction_id": one["id"],
            "port_id": one["port"],
            "event_id": one["event"],
            "kind": one["kind"],
            "reason": "it was wrong",
            **one["more"],
        }
        occurred_at = self._occurred_at.get((one["port"], one["event"]))
        if one["dated"] and occurred_at is not None:
            body["occurred_at"] = occurred_at
        home = oracle.home_of(one["port"], self.partitions)
        to = home if one["to"] is None else one["to"] % self.partitions
        self.put(TOPICS.corrections, one["port"].encode(), json.dumps(body).encode(), to)

    def _correct_badly(self, one: Input) -> None:
        value = None if one["value"] is None else one["value"].encode()
        self.put(TOPICS.corrections, b"k", value, one["to"] % self.partitions)

    def _policy(self, one: Input) -> None:
        policy = dict(one["policy"])
        if "extra" in policy:
            extra = policy["extra"]
            policy["extra"] = {"amount": extra["amount"], "until": self._time(extra["in_s"])}
        self.put(TOPICS.policies, oracle.key_of(policy).encode(), json.dumps(policy).encode())

    def _delete_policy(self, one: Input) -> None:
        self.world.hit("policy-deleted")
        self.put(TOPICS.policies, oracle.key_of(one["policy"]).encode(), None)

    def _break_policy(self, one: Input) -> None:
        self.world.hit("policy-invalid")
        broken = {**one["policy"], **one["broken"]}
        self.put(
            TOPICS.policies, oracle.key_of(one["policy"]).encode(), json.dumps(broken).encode()
        )

    def _rate(self, one: Input) -> None:
        rate = {**one["rate"], "effective_from": self._time(one["in_s"])}
        if one["backdated"]:
            rate["backdated"] = True
        self.put(TOPICS.rates, rate["rate_id"].encode(), json.dumps(rate).encode())

    def _withdraw(self, one: Input) -> None:
        rate_id = f"without-{one['rate_id']}"
        rate = {"rate_id": rate_id, "withdraws": one["rate_id"]}
        rate["effective_from"] = self._time(one["in_s"])
        self.put(TOPICS.rates, rate_id.encode(), json.dumps(rate).encode())

    # -- faults of workers ---------------------------------------------------

    def _kill(self, one: Input, part: str = "worker") -> None:
        victim = self._one(part, one["worker"])
        if victim is None:
            return
        self._restart_s[part] = one["restart_s"]
        if one["point"] is None:
            self.world.hit(f"killed-{part}")
            victim.kill()
        else:
            self.world.arm(victim.process, one["point"], one["passes"])

    def _freeze(self, one: Input, part: str = "worker") -> None:
        victim = self._one(part, one["worker"])
        if victim is not None and victim.process.running:
            self._freeze_now(victim.process, one["for_s"])

    def _freeze_now(self, process: Process, for_s: float) -> None:
        self.world.hit(f"frozen-{process.name.partition('-')[0]}")
        self.world.freeze(process)
        self.world.loop.world_later(for_s, self._thaw, process)

    def _thaw(self, process: Process) -> None:
        if process.frozen:
            self.world.thaw(process)

    def _freeze_at(self, one: Input, part: str = "worker") -> None:
        victim = self._one(part, one["worker"])
        if victim is not None:
            process, for_s = victim.process, one["for_s"]
            self.world.arm(
                process, one["point"], one["passes"], lambda: self._freeze_now(process, for_s)
            )

    def _rebalance(self, one: Input) -> None:
        self.world.hit("rebalance")
        self.world.groups["worker"].rebalance()

    def _join(self, one: Input, part: str = "worker") -> None:
        if self._wanted[part] < MAX_PROCESSES:
            self.world.hit(f"joined-{part}")
            self._wanted[part] += 1
            self._start(part)

    def _leave(self, one: Input, part: str = "worker") -> None:
        victim = self._one(part, one["worker"])
        if victim is not None and victim.process.running:
            self.world.hit(f"stopped-{part}")
            self._wanted[part] = max(1, self._wanted[part] - 1)
            victim.stop()

    def _drop(self, one: Input) -> None:
        victim = self._one("worker", one["worker"])
        if victim is not None:
            victim.drop[getattr(TOPICS, one["topic"])] = one["slices"]

    def _stale(self, one: Input) -> None:
        victim = self._one("worker", one["worker"])
        if victim is not None:
            victim.deliver_again(getattr(TOPICS, one["topic"]), one["slices"])

    def _lose_answer(self, one: Input, part: str = "worker") -> None:
        victim = self._one(part, one["worker"])
        if victim is not None:
            self.world.network.lost_answers.append(
                LostAnswer(victim.process.name, one["kind"], one["is_carried_out"])
            )

    def _outage(self, one: Input) -> None:
        if not self.world.network.down:
            self.world.hit("outage")
            self.world.network.set_down(True)
            self.world.loop.world_later(one["for_s"], self.world.network.set_down, False)

    def _clock(self, one: Input) -> None:
        victim = self._one("worker", one["worker"])
        if victim is not None:
            self.world.hit("clock-forward" if one["ms"] > 0 else "clock-back")
            victim.process.wall_skew_ms += one["ms"]

    def _broker_clock(self, one: Input) -> None:
        self.world.hit("broker-clock-forward" if one["ms"] > 0 else "broker-clock-back")
        self.world.broker_skew_ms += one["ms"]

    def _skip(self, one: Input) -> None:
        self.world.hit("days-passed")
        self.world.skip(one["ms"])

    # -- the cleaner ---------------------------------------------------

    def _compact(self, one: Input) -> None:
        if self.world.network.down:
            return
        rng = self.world.rng("cleaner")
        until_s = self.world.loop.now_s - CLEANABLE_AFTER_S
        for topic, partitions in self.world.log.topics.items():
            for number, partition in partitions.items():
                if not partition.config.compacted:
                    continue
                if topic == TOPICS.policies and not self._registry_is_complete():
                    continue
                gone = self.world.log.compact(
                    topic, number, until_s, lambda: rng.random() < one["keep"]
                )
                if gone:
                    self.world.hit(f"compacted:{topic}")

    def _registry_is_complete(self) -> bool:
        """Minutes pass before Kafka compacts, and the registry is written every second."""
        policies = oracle.read_policies(self.records(TOPICS.policies, history=True))
        registered = oracle.read_policies(self.records(TOPICS.registry))
        return policies.keys() <= registered.keys()

    def _retention(self, one: Input) -> None:
        """Old records go, but no input that has not been taken and no block the ledger lacks."""
        if self.world.network.down:
            return
        log = self.world.log
        old_s = self.world.loop.now_s - PARTIALS_KEPT_S
        for number in range(self.partitions):
            blocks = [decode_block(e.value or b"") for e in self._entries(TOPICS.priced, number)]
            taken = max((b.next_offset for b in blocks if b.topic == TOPICS.events), default=0)
            held = max(
                (
                    row["priced_next_offset"]
                    for row in self.ledger.tables.get("sink_manifests", [])
                    if row["partition"] == number
                ),
                default=0,
            )
            partials = log.partition(TOPICS.partials, number)
            old = max((e.offset for e in partials.entries if e.appended_s < old_s), default=0)
            for topic, offset in (
                (TOPICS.events, taken),
                (TOPICS.priced, held),
                (TOPICS.partials, old),
            ):
                if log.delete_before(topic, number, offset):
                    self.world.hit(f"retained:{topic}")

    # -- faults of sinks ---------------------------------------------------

    def _kill_sink(self, one: Input) -> None:
        self._kill(one, "sink")

    def _freeze_sink(self, one: Input) -> None:
        self._freeze(one, "sink")

    def _freeze_sink_at(self, one: Input) -> None:
        self._freeze_at(one, "sink")

    def _lose_sink_answer(self, one: Input) -> None:
        self._lose_answer(one, "sink")

    def _join_sink(self, one: Input) -> None:
        self._join(one, "sink")

    def _leave_sink(self, one: Input) -> None:
        self._leave(one, "sink")

    def _rebalance_sinks(self, one: Input) -> None:
        self.world.hit("rebalance-sinks")
        self.world.groups[TOPICS.sink_group].rebalance()

    def _lose_insert(self, one: Input) -> None:
        self.ledger.lost_answers.setdefault(one["table"], []).append(one["is_carried_out"])

    def _ledger_outage(self, one: Input) -> None:
        self.world.hit("ledger-outage")
        self.ledger.down = True
        self.world.loop.world_later(one["for_s"], self._ledger_up)

    def _ledger_up(self) -> None:
        self.ledger.down = False

    # -- the end ---------------------------------------------------

    def heal(self) -> None:
        """Ends every fault that is still going on; clocks of machines stay as wrong as they are."""
        self.world.network.lost_answers.clear()
        self.ledger.lost_answers.clear()
        self.ledger.down = False
        self.world.disarm()
        self.world.network.set_down(False)
        for one in (*self.workers, *self.sinks):
            if one.process.alive:
                self._thaw(one.process)
        for worker in self.workers:
            worker.drop.clear()
        behind_ms = self.latest_broker_ms - self.world.broker_ms()
        self.world.broker_skew_ms += max(0, behind_ms)

    # -- reading ---------------------------------------------------

    def _entries(self, topic: str, number: int) -> list[Entry]:
        return list(self.world.log.partition(topic, number).record_history())

    def records(self, topic: str, *, history: bool = False) -> list[oracle.Record]:
        """The committed records of a topic; with ``history`` also those the cleaner removed."""
        return [
            as_record(entry)
            for partition in self.world.log.topics[topic].values()
            for entry in (partition.record_history() if history else partition.records())
        ]


def as_record(entry: Entry) -> oracle.Record:
    """An entry in the oracle's form."""
    return oracle.Record(
        entry.partition, entry.offset, entry.timestamp, entry.key, entry.value, entry.headers
    )
