"""The topics of a deployment: one table of what each is for, and the code that makes it so."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from pipeline.core.errors import ConfigurationError, Refused, TallyportError
from pipeline.kafka import client_kwargs
from pipeline.settings import Settings

CREATE_TIMEOUT_S = 30.0
ATTEMPTS_MAX = 5
RETRY_PAUSE_S = 0.5
_TOPIC_EXISTS = 36
_NO_ERROR = 0

_log = logging.getLogger(__name__)

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
_LARGE_MESSAGE = {"max.message.bytes": str(8 * 1024 * 1024)}
# The largest record that a broker took for an event, with five headers more.
_LARGEST_MESSAGE = {"max.message.bytes": str(64 * 1024 * 1024)}


@dataclass(frozen=True)
class TopicSpec:
    """One topic. ``single`` topics have one partition, all others the deployment's count.

    ``retention_days`` None means for ever; it has no meaning for a compacted topic.
    """

    name: str
    purpose: str
    cleanup: Literal["delete", "compact"]
    retention_days: int | None = None
    single: bool = False
    timestamp_type: Literal["CreateTime", "LogAppendTime"] = "CreateTime"
    extra: Mapping[str, str] = field(default_factory=dict[str, str])

    def partitions(self, count: int) -> int:
        return 1 if self.single else count

    def config(self, replication: int) -> dict[str, str]:
        """The configuration the topic is created with."""
        return {
            "cleanup.policy": self.cleanup,
            "message.timestamp.type": self.timestamp_type,
            "min.insync.replicas": "2" if replication >= 3 else "1",
            **self._cleanup_config(),
            **self.extra,
        }

    def _cleanup_config(self) -> dict[str, str]:
        if self.cleanup == "compact":  # minutes, or reading a journal back takes an age
            return {
                "segment.ms": str(5 * _MINUTE_MS),
                "max.compaction.lag.ms": str(10 * _MINUTE_MS),
                "min.cleanable.dirty.ratio": "0.1",
                "segment.bytes": str(128 * 1024 * 1024),
            }
        if self.retention_days is None:
            return {"retention.ms": "-1", "retention.bytes": "-1"}
        return {
            "retention.ms": str(self.retention_days * _DAY_MS),
            "retention.bytes": "-1",
            "segment.ms": str(_DAY_MS if self.retention_days > 1 else _DAY_MS // 24),
        }


SPECS: Mapping[str, TopicSpec] = {
    "events": TopicSpec(
        "usage.events", "usage events", "delete", 14, timestamp_type="LogAppendTime"
    ),
    "corrections": TopicSpec(
        "usage.corrections", "corrections of events", "delete", 14, timestamp_type="LogAppendTime"
    ),
    "rejected": TopicSpec(
        "usage.rejected", "records that break a rule", "delete", 30, extra=_LARGEST_MESSAGE
    ),
    "priced": TopicSpec(
        "usage.priced", "priced blocks for the ledger sink", "delete", 14, extra=_LARGE_MESSAGE
    ),
    "policies": TopicSpec(
        "budget.policies",
        "budget policies",
        "compact",
        single=True,
        timestamp_type="LogAppendTime",
    ),
    "state": TopicSpec(
        "budget.state", "budget states and heartbeats", "compact", extra=_LARGE_MESSAGE
    ),
    "rates": TopicSpec(
        "pricing.rates", "prices", "delete", single=True, timestamp_type="LogAppendTime"
    ),
    "partials": TopicSpec(
        "tallyport.partials",
        "cumulative totals on their way to the merge",
        "delete",
        1,
        timestamp_type="LogAppendTime",
        extra=_LARGE_MESSAGE,
    ),
    "resolved": TopicSpec(
        "tallyport.resolved", "corrections as ledger entries, for tables and ledger", "delete", 14
    ),
    "resolver": TopicSpec(
        "tallyport.resolver", "how far corrections are resolved", "compact", single=True
    ),
    "totals": TopicSpec(
        "tallyport.totals", "journal of the totals", "compact", extra=_LARGE_MESSAGE
    ),
    "ids": TopicSpec(
        "tallyport.ids", "journal of the event ids seen", "compact", extra=_LARGE_MESSAGE
    ),
    "rules": TopicSpec(
        "tallyport.rules", "what decided from which source offset on", "compact", single=True
    ),
    "registry": TopicSpec(
        "tallyport.policies", "the last valid policy of each key", "compact", single=True
    ),
    "owners": TopicSpec(
        "tallyport.owners", "which worker may write for which partition", "compact", single=True
    ),
    "epoch": TopicSpec("tallyport.epoch", "the identity of this log", "delete", single=True),
    "id_names": TopicSpec(
        "tallyport.names",
        "display names and mail addresses of ids",
        "compact",
        single=True,
        timestamp_type="LogAppendTime",
    ),
    "changes": TopicSpec(
        "tallyport.changes",
        "who changed which policy, price or name, or ran what",
        "delete",
        single=True,
        timestamp_type="LogAppendTime",
    ),
    "replays": TopicSpec(
        "tallyport.replays", "which rejected records were sent again", "delete", 31, single=True
    ),
    "notices": TopicSpec(
        "tallyport.notices",
        "which alerts and reports were sent",
        "compact",
        single=True,
        extra=_LARGE_MESSAGE,
    ),
}


class Topics:
    """Full names of all topics, consumer groups and transactional ids under one prefix."""

    events: str
    corrections: str
    rejected: str
    priced: str
    policies: str
    state: str
    rates: str
    partials: str
    resolved: str
    resolver: str
    totals: str
    ids: str
    rules: str
    registry: str
    owners: str
    epoch: str
    id_names: str
    changes: str
    replays: str
    notices: str

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self.worker_group = f"{prefix}tallyport-worker"
        self.sink_group = f"{prefix}tallyport-sink"
        self.transactional_id_prefix = f"{prefix}tallyport-worker-"
        self.notices_group = f"{prefix}tallyport-notices"
        self.notices_transactional_id = f"{prefix}tallyport-notices"
        self.change_transactional_id = f"{prefix}tallyport-change"
        self.resolver_transactional_id = f"{prefix}tallyport-resolver"
        self.restore_transactional_id = f"{prefix}tallyport-restore"
        self.replay_transactional_id = f"{prefix}tallyport-replay"
        for attribute, spec in SPECS.items():
            setattr(self, attribute, prefix + spec.name)

    def transactional_id(self, owner: str) -> str:
        """The transactional id of one worker during one assignment."""
        return f"{self.transactional_id_prefix}{owner}"

    @property
    def specs(self) -> dict[str, TopicSpec]:
        """Full name → spec, in the order of the contract."""
        return {self.prefix + spec.name: spec for spec in SPECS.values()}

    @property
    def names(self) -> list[str]:
        return list(self.specs)


class WrongPartitions(ConfigurationError):
    """A topic has another number of partitions than the settings say."""


class TopicsUnusable(TallyportError):
    """A topic could not be created or described."""


async def create_or_check(settings: Settings) -> list[str]:
    """Create the topics that are missing and check the others; the names created.

    Raises ``WrongPartitions`` or ``Refused`` when partition count, cleanup policy or timestamp
    type of a topic is not what it must be, ``TopicsUnusable`` when the broker refuses or does not
    answer in time.
    """
    return await create_or_check_topics(
        client_kwargs(settings),
        Topics(settings.topic_prefix),
        settings.partition_count,
        settings.replication_factor,
    )


async def create_or_check_topics(
    client: Mapping[str, Any], topics: Topics, partitions: int, replication: int = 1
) -> list[str]:
    """``create_or_check`` with everything given; ``client`` holds connection arguments."""
    try:
        async with asyncio.timeout(CREATE_TIMEOUT_S):
            created, found, wrong = await _until_answered(client, topics, partitions, replication)
    except TimeoutError as error:
        raise TopicsUnusable(
            f"Kafka at {client['bootstrap_servers']} did not create or describe the topics "
            f"within {CREATE_TIMEOUT_S:.0f} s"
        ) from error
    except KafkaError as error:
        raise TopicsUnusable(
            f"Kafka at {client['bootstrap_servers']} refused to create or describe topics: "
            f"{' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if wrong_partitions := _wrong_partitions(topics, found, partitions):
        raise WrongPartitions("; ".join(wrong_partitions + wrong))
    if wrong:
        raise Refused("; ".join(wrong))
    return created


async def _until_answered(
    client: Mapping[str, Any], topics: Topics, partitions: int, replication: int
) -> tuple[list[str], dict[str, int], list[str]]:
    """Names that were created, partition counts, and what is wrong with the topics' settings; asks
    again, anew, when a connection is lost."""
    created: dict[str, None] = {}
    for attempt in range(1, ATTEMPTS_MAX + 1):
        admin = AIOKafkaAdminClient(**client)
        try:
            await admin.start()
            present = set(await admin.list_topics())
            missing = [name for name in topics.names if name not in present]
            created |= dict.fromkeys(missing)
            await _create(admin, topics, missing, partitions, replication)
            found = await _wait_for_leaders(admin, topics.names)
            return list(created), found, await _wrong_configs(admin, topics, replication)
        except KafkaError as error:
            if not error.retriable or attempt == ATTEMPTS_MAX:
                raise
            _log.info("asking for the topics again: %r", error)
        finally:
            await admin.close()
        await asyncio.sleep(RETRY_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


async def _create(
    admin: AIOKafkaAdminClient,
    topics: Topics,
    names: list[str],
    partitions: int,
    replication: int,
) -> None:
    if not names:
        return
    new = [
        NewTopic(
            name,
            topics.specs[name].partitions(partitions),
            replication,
            topic_configs=topics.specs[name].config(replication),
        )
        for name in names
    ]
    answer = await admin.create_topics(new, timeout_ms=int(CREATE_TIMEOUT_S * 1000))
    problems: list[str] = []
    for row in answer.to_object()["topic_errors"]:
        name, code, message = row["topic"], row["error_code"], row.get("error_message")
        if code not in (_NO_ERROR, _TOPIC_EXISTS):  # another process may create them now, too
            problems.append(f"{name}: {message or for_code(code).__name__}")
    if problems:
        raise TopicsUnusable(f"topics could not be created: {'; '.join(problems)}")


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    """Topic → partition count, once every partition has a leader."""
    while True:
        described = await admin.describe_topics(names)
        ready = {
            topic["topic"]: len(topic["partitions"])
            for topic in described
            if topic["error_code"] == _NO_ERROR
            and all(p["leader"] >= 0 and p["error_code"] == _NO_ERROR for p in topic["partitions"])
        }
        if len(ready) == len(names):
            return ready
        await asyncio.sleep(0.05)


def _wrong_partitions(topics: Topics, found: Mapping[str, int], partitions: int) -> list[str]:
    """A line for each count that is wrong, with the topics that have it."""
    alike: dict[tuple[bool, int], list[str]] = {}
    for name, spec in topics.specs.items():
        if found[name] != spec.partitions(partitions):
            alike.setdefault((spec.single, found[name]), []).append(name)
    wrong: list[str] = []
    for (is_single, count), names in alike.items():
        which = f"topic {names[0]} has" if len(names) == 1 else f"topics {', '.join(names)} have"
        advice = (
            "recreate it with one partition"
            if is_single
            else f"set TALLYPORT_PARTITIONS={count} to go on with it, or to grow take a new "
            "TALLYPORT_TOPIC_PREFIX and run `tallyport rebuild`"
        )
        expected = 1 if is_single else partitions
        wrong.append(f"{which} {count} partitions instead of {expected}: {advice}")
    return wrong


async def _wrong_configs(admin: AIOKafkaAdminClient, topics: Topics, replication: int) -> list[str]:
    checked = ("cleanup.policy", "message.timestamp.type")
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in topics.names]
    wrong: list[str] = []
    for name, config in _configs(await admin.describe_configs(resources)).items():
        expected = topics.specs[name].config(replication)
        wrong += [
            f"topic {name} has {key}={config.get(key)} instead of {expected[key]}: set it with "
            f"`kafka-configs --alter --entity-type topics --entity-name {name} "
            f"--add-config {key}={expected[key]}`"
            for key in checked
            if config.get(key) != expected[key]
        ]
    return wrong


def _configs(answers: list[Any]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for answer in answers:
        for code, message, _kind, name, entries in answer.resources:
            if code != _NO_ERROR:
                raise for_code(code)(message)
            found[name] = {entry[0]: entry[1] for entry in entries}
    return found
