"""What each part may do on Kafka, no more than it needs: for ``topics --print``."""

from typing import NamedTuple

from pipeline.stream.remains import table_topics
from pipeline.stream.topics import Topics
from producers.transports.transport import GROUP


class Acl(NamedTuple):
    """One grant; ``pattern`` is ``literal`` or ``prefixed``, ``resource`` as Kafka names it."""

    part: str
    operation: str
    resource: str
    name: str
    pattern: str = "literal"


_READS = {
    "worker": (
        "events", "policies", "rates", "partials", "totals", "ids", "rules", "registry", "owners",
        "epoch", "state", "resolved",
    ),
    "sink": (
        "priced", "epoch", "policies", "registry", "rates", "events", "corrections", "resolved",
        "resolver",
    ),
    "api": (
        "events", "priced", "state", "policies", "registry", "rates", "id_names", "changes",
        "rejected", "notices",
    ),
    "budgets": ("policies", "registry", "state"),
    "prices": ("rates",),
    "watch and SDK": ("state", "rates"),
    "forget": ("policies", "registry", "id_names", "state"),
    "rebuild": (
        "events", "priced", "policies", "rates", "totals", "ids", "owners", "epoch",
    ),
    "replay-rejected": ("rejected", "replays", "events"),
    "audit": (
        "events", "rates", "rules", "epoch", "totals", "state", "policies", "registry", "priced",
        "rejected", "corrections", "resolved", "resolver",
    ),
    "void, amend, reprice": ("rates", "epoch", "resolved", "resolver", "rejected", "corrections"),
}  # fmt: skip
_WRITES = {
    "worker": (
        "events", "rejected", "priced", "partials", "totals", "ids", "rules", "registry", "owners",
        "epoch", "state",
    ),
    "sink": ("resolved", "resolver", "rejected"),
    "void, amend, reprice": ("corrections",),
    "api": ("events", "policies", "rates", "id_names", "changes", "notices"),
    "budgets": ("policies", "changes"),
    "prices": ("rates", "changes"),
    "forget": ("policies", "id_names", "state", "changes"),
    "rebuild": ("policies", "rates", "totals", "ids", "owners", "epoch"),
    "replay-rejected": ("events", "corrections", "replays"),
    "services and emit": ("events",),
}  # fmt: skip


def acls(topics: Topics) -> list[Acl]:
    """Every grant of every part. Read and Write on a topic include Describe."""
    found = [
        Acl(part, operation, "Topic", getattr(topics, name))
        for operation, table in (("Read", _READS), ("Write", _WRITES))
        for part, names in table.items()
        for name in names
    ]
    found += [
        Acl("worker", "Read", "Group", topics.worker_group),
        Acl("worker", "Write", "TransactionalId", topics.transactional_id_prefix, "prefixed"),
        *(
            Acl(part, "Write", "TransactionalId", topics.change_transactional_id)
            for part in ("api", "budgets", "prices", "rebuild", "forget")
        ),
        Acl("sink", "Write", "TransactionalId", topics.resolver_transactional_id),
        Acl("rebuild", "Write", "TransactionalId", topics.restore_transactional_id),
        Acl("replay-rejected", "Write", "TransactionalId", topics.replay_transactional_id),
        Acl("rebuild", "Write", "TransactionalId", topics.transactional_id_prefix, "prefixed"),
        *(
            Acl("rebuild", "Describe", "Group", group)
            for group in (topics.worker_group, topics.sink_group)
        ),
        *(
            Acl("rebuild", "Delete", "Topic", name)
            for name in (*table_topics(topics), topics.epoch)
        ),
        Acl("sink", "Read", "Group", topics.sink_group),
        Acl("api", "Describe", "Group", topics.sink_group),
        Acl("api", "Read", "Group", topics.notices_group),
        Acl("api", "Write", "TransactionalId", topics.notices_transactional_id),
        Acl("report", "Read", "Topic", topics.notices),
        Acl("watch and SDK", "Read", "Group", GROUP),
    ]
    for operation in ("Create", "Describe", "DescribeConfigs"):
        found += [Acl("topics and up", operation, "Topic", name) for name in topics.names]
    return sorted(found)
