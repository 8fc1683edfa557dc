"""One run: the inputs, one after the other, then calm, then the comparison with the oracle."""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field

from pipeline.core import intake
from pipeline.core.blocks import decode_block
from pipeline.core.errors import CorruptRecord, Refused
from pipeline.corrections.progress import decode_progress
from tests.sim.deployment import Deployment
from tests.sim.oracle import DAY_MS, Judgement, instant_us, read_policies
from tests.sim.oracle_corrections import Corrected
from tests.sim.scenario import Scenario
from tests.sim.substitution import simulated
from tests.sim.verdict import compare, read_all_tables
from tests.sim.verdict_corrections import judge_corrections
from tests.sim.virtual_loop import Stuck
from tests.sim.watch import Watch
from tests.sim.worker import TOPICS
from tests.sim.world import World

# Not in step with the marks of workers, each of which is a transaction.
CHECK_S = 0.23
CATCH_UP_S = 60.0
PUBLISH_S = 1.5
NEAR_MS = 3_000
WORKER_EXCUSES = {"freeze", "freeze-at", "outage", "lose-answer", "broker-clock", "retention"}
"""With none of these among the inputs no worker may end with an error."""


@dataclass
class Outcome:
    """``problems`` is empty when everything agreed. ``digest`` is of the whole log."""

    problems: list[str] = field(default_factory=list[str])
    hits: Counter[str] = field(default_factory=Counter[str])
    digest: str = ""
    virtual_s: float = 0.0
    steps: int = 0


def simulate(scenario: Scenario) -> Outcome:
    """Carries out one scenario; the same outcome for the same scenario, always."""
    few_records = intake.FEW_RECORDS
    if scenario.knobs.seed % 2:
        intake.FEW_RECORDS = 0  # every slice is taken together, however small
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    deployment = Deployment(scenario)
    world = deployment.world
    outcome = Outcome()
    try:
        with simulated(world):
            try:
                outcome.problems += _run(deployment, scenario)
            except Stuck as error:
                outcome.problems.append(f"stuck: {error}")
            finally:
                world.loop.bury()
    finally:
        logging.disable(disabled)
        intake.FEW_RECORDS = few_records
    outcome.problems += _wrong_ends(deployment, scenario)
    outcome.problems += [f"unexpected: {error}" for error in world.loop.errors[:3]]
    outcome.hits = world.hits
    outcome.digest = _digest(deployment)
    outcome.virtual_s, outcome.steps = world.loop.now_s - 1000, world.loop.steps
    return outcome


def _run(deployment: Deployment, scenario: Scenario) -> list[str]:
    world = deployment.world
    watch = Watch(deployment)
    deployment.start()
    for one in scenario.inputs:
        world.loop.advance(one["after_s"])
        deployment.apply(one)
        watch.step()
    problems = _settle(deployment, watch)
    if problems:
        return problems + watch.problems
    reading = world.loop.spawn_world(read_all_tables(deployment))
    world.loop.run_until(reading.done, CATCH_UP_S)
    found = watch.judgement()
    corrected = judge_corrections(deployment, found)
    _note_fates(world, found, corrected)
    error = reading.exception()
    if error is not None:
        return [f"tables cannot be read: {error!r}", *watch.problems]
    return watch.problems + compare(deployment, found, corrected, reading.result())


def _note_fates(world: World, found: Judgement, corrected: Corrected) -> None:
    for fate in found.fates().values():
        world.hit(f"fate-{fate}")
    if any(one.cost_nano is None for one in found.accepted.values()):
        world.hit("fate-unpriced")
    for fate in corrected.fates().values():
        world.hit(f"correction-{fate or 'duplicate'}")
    if any(one.entry_no > 1 for one in corrected.entries.values()):
        world.hit("correction-after-another")


def _settle(deployment: Deployment, watch: Watch) -> list[str]:
    """Ends all faults and waits until everything has arrived everywhere."""
    world = deployment.world
    deployment.heal()
    since_ms = world.broker_ms()
    deadline_s = world.loop.now_s + CATCH_UP_S
    while (waits_for := _unfinished(deployment, watch, since_ms)) is not None:
        if world.loop.now_s > deadline_s:
            return [f"never caught up: {waits_for}; ends: {deployment.ends[-3:]}"]
        if waits_for.startswith("corrections"):
            since_ms = world.broker_ms()
        world.loop.advance(CHECK_S)
        watch.step()
    world.loop.advance(PUBLISH_S)
    while _is_near_a_boundary(deployment):
        world.loop.advance(NEAR_MS / 1000)
    watch.step()
    return []


def _is_near_a_boundary(deployment: Deployment) -> bool:
    """Whether a period or an extra ends about now: a state may be a second late then."""
    now_ms = deployment.world.broker_ms()
    ends_ms = [now_ms - now_ms % DAY_MS, now_ms - now_ms % DAY_MS + DAY_MS]
    for policy in read_policies(deployment.records(TOPICS.policies, history=True)).values():
        if "extra" in policy:
            ends_ms.append(instant_us(policy["extra"]["until"]) // 1000)
    return any(abs(now_ms - end_ms) < NEAR_MS for end_ms in ends_ms)


def _unfinished(deployment: Deployment, watch: Watch, since_ms: int) -> str | None:
    """What is still under way; None when nothing is."""
    topics = deployment.world.log.topics
    if (waits_for := _uncorrected(deployment)) is not None:
        return waits_for
    events = {number: partition.end for number, partition in topics[TOPICS.events].items()}
    for number in range(deployment.partitions):
        heartbeat = watch.last_heartbeats.get(number)
        if heartbeat is None:
            return f"no heartbeat on partition {number}"
        if heartbeat["as_of_ms"] < since_ms:
            return f"heartbeat {number} is as of {heartbeat['as_of_ms']}, before {since_ms}"
        for source, end in events.items():
            if heartbeat["through"][str(source)] < end:
                return f"heartbeat {number} is through {heartbeat['through']} of {events}"
        blocks = [entry.offset for entry in topics[TOPICS.priced][number].records()]
        held = [
            row["priced_next_offset"]
            for row in deployment.ledger.tables.get("sink_manifests", [])
            if row["partition"] == number
        ]
        if blocks and max(held, default=0) <= blocks[-1]:
            return f"the ledger holds blocks up to {max(held, default=0)} of {blocks[-1] + 1}"
    for topic, partitions in topics.items():
        for partition in partitions.values():
            if partition.open:
                return f"{topic} partition {partition.number} has an open transaction"
    return None


def _uncorrected(deployment: Deployment) -> str | None:
    """Which corrections are under way; None when all are resolved and in the tables' blocks.

    What a heartbeat that is as of a later time speaks for contains them.
    """
    topics = deployment.world.log.topics
    progress: dict[int, int] = {}
    for record in deployment.records(TOPICS.resolver):
        progress = decode_progress(record.value or b"", TOPICS.resolver).next_offsets
    for number in range(deployment.partitions):
        end = topics[TOPICS.corrections][number].end
        if progress.get(number, 0) < end:
            return f"corrections of partition {number} are resolved to {progress} of {end}"
        blocks = [
            decode_block(entry.value or b"")
            for entry in topics[TOPICS.priced][number].record_history()
        ]
        taken = [block.next_offset for block in blocks if block.topic == TOPICS.resolved]
        resolved = [entry.offset for entry in topics[TOPICS.resolved][number].record_history()]
        if resolved and max(taken, default=0) <= resolved[-1]:
            return f"corrections at {resolved[-1]} of partition {number} are not in the tables"
    return None


def _wrong_ends(deployment: Deployment, scenario: Scenario) -> list[str]:
    """Processes may be killed and may fail when Kafka does; nothing else may end one.

    Members that come, go and die are no reason: a worker that lets go what it is just taking over
    must not be shut out by who takes it next.
    """
    deleted = any(name.startswith("retained:") for name in deployment.world.hits)
    is_excused = any(one["do"] in WORKER_EXCUSES for one in scenario.inputs)
    return [
        f"{name} ended with {how}"
        for name, how, error in deployment.ends
        if error is not None
        and (
            not _is_failure_of_kafka(error)
            or isinstance(error, CorruptRecord)
            or (name.startswith("worker") and not is_excused)
        )
        and not (isinstance(error, Refused) and deleted and "lacks offset" in how)
    ]


def _is_failure_of_kafka(error: BaseException) -> bool:
    names = {one.__name__ for one in type(error).__mro__}
    return bool(
        names & {"KafkaError", "RateLogError", "PolicyLogError", "ReadTimedOut", "LostOwnership"}
    )


def _digest(deployment: Deployment) -> str:
    seen = hashlib.blake2b(digest_size=16)
    for topic, partitions in deployment.world.log.topics.items():
        for partition in partitions.values():
            for e in partition.history:
                seen.update(repr((topic, e.offset, e.timestamp, e.key, e.value)).encode())
    return seen.hexdigest()
