"""The closed list of metrics: what each process counts, and nothing else."""

from collections.abc import Iterator
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pipeline.core.rejections import REASONS

disable_created_metrics()

Part = Literal["worker", "sink", "api"]

LOST_DELETED = "deleted"
"""The one reason why corrections are lost: Kafka deleted them before they were resolved."""

REGISTRY = CollectorRegistry()
"""The metrics of this process."""

OWNERS: dict[str, tuple[Part, ...]] = {}
"""Name → the parts that count it; no other part shows it."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _owned(name: str, of: Part | tuple[Part, ...]) -> str:
    full = f"tallyport_{name}"
    OWNERS[full] = (of,) if isinstance(of, str) else of
    return full


def _counter(name: str, meaning: str, *labels: str, of: Part | tuple[Part, ...]) -> Counter:
    return Counter(_owned(name, of), meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str, of: Part | tuple[Part, ...]) -> Gauge:
    return Gauge(_owned(name, of), meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str, *, of: Part | tuple[Part, ...]) -> Histogram:
    return Histogram(_owned(name, of), meaning, buckets=_SECONDS, registry=REGISTRY)


EVENTS_ACCEPTED = _counter(
    "events_accepted", "Events counted in tables, budgets and ledger.", of="worker"
)
EVENTS_REJECTED = _counter(
    "events_rejected", "Records sent on to usage.rejected, by reason.", "reason", of="worker"
)
EVENTS_DUPLICATE = _counter(
    "events_duplicate",
    "Records whose event had been accepted before; counted once.",
    of="worker",
)
EVENTS_FORWARDED = _counter(
    "events_forwarded", "Records sent on to the home partition of their port.", of="worker"
)
EVENTS_UNPRICED = _counter(
    "events_unpriced", "Accepted events for which no rate was found.", of="worker"
)
CORRECTIONS_APPLIED = _counter(
    "corrections_applied", "Corrections taken into tables and budgets.", of="worker"
)
CORRECTIONS_REJECTED = _counter(
    "corrections_rejected", "Corrections sent on to usage.rejected, by reason.", "reason", of="sink"
)
CORRECTIONS_DUPLICATE = _counter(
    "corrections_duplicate",
    "Corrections whose id had been accepted before; counted once.",
    of="sink",
)
CORRECTIONS_LOST = _counter(
    "corrections_lost",
    "Offsets of usage.corrections that nobody resolved, by reason.",
    "reason",
    of="sink",
)
CORRECTIONS_LAG = _gauge(
    "corrections_lag_records", "Records of usage.corrections not yet resolved.", of="sink"
)
UNKNOWN_FIELDS = _counter(
    "unknown_fields", "Fields of events that are not in the contract.", of="worker"
)
FLUSH_SECONDS = _histogram(
    "flush_seconds", "Time of one flush: one Kafka transaction.", of="worker"
)
SOURCE_LAG = _gauge(
    "source_lag_records",
    "Records of usage.events not yet counted, by partition.",
    "partition",
    of="api",
)
STATES_PUBLISHED = _counter("states_published", "Records written to budget.state.", of="worker")
STATE_AGE_SECONDS = _gauge(
    "state_age_seconds",
    "Time since the heartbeat of a partition of budget.state last advanced.",
    "partition",
    of="api",
)
POLICIES_INVALID = _gauge(
    "policies_invalid", "Budget policies whose last record is not valid.", of="worker"
)
RATES_UNUSED = _gauge("rates_unused", "Records of pricing.rates that break a rule.", of="worker")
SINK_ROWS = _counter("sink_rows", "Ledger rows inserted.", of="sink")
SINK_INSERT_SECONDS = _histogram(
    "sink_insert_seconds", "Time of one insert into the ledger.", of="sink"
)
SINK_LAG = _gauge(
    "sink_lag_records",
    "Records of usage.priced not yet in the ledger, by partition.",
    "partition",
    of=("sink", "api"),
)
SINK_HOLES = _counter(
    "sink_holes", "Ranges of usage.priced that were missing on a second read as well.", of="sink"
)
ROLLUP_OPEN_DAYS = _gauge(
    "rollup_open_days",
    "Past days that are summed from the ledger whenever somebody asks.",
    of="sink",
)
ROLLUP_SECONDS = _histogram("rollup_seconds", "Time to roll up one day.", of="sink")
ROLLUP_FAILURES = _counter("rollup_failures", "Attempts to roll up days that failed.", of="sink")
TAKEOVER_SECONDS = _gauge(
    "takeover_seconds", "Time of the last takeover of partitions, by stage.", "stage", of="worker"
)
STALLED_SECONDS = _gauge(
    "stalled_seconds",
    "Time that something has stood still while work waited for it.",
    "what",
    of=("worker", "sink"),
)
HTTP_REQUESTS = _counter("http_requests", "Requests answered, by status.", "status", of="api")
HTTP_EVENTS_ACCEPTED = _counter(
    "http_events_accepted",
    "Events that came over HTTP or OTLP and that the broker acknowledged.",
    of="api",
)
HTTP_EVENTS_REJECTED = _counter(
    "http_events_rejected",
    "Events that came over HTTP or OTLP and were refused.",
    "reason",
    of="api",
)
HTTP_IN_FLIGHT_BYTES = _gauge(
    "http_in_flight_bytes", "Bytes of requests that are being taken in at this moment.", of="api"
)
SPANS_IGNORED = _counter(
    "spans_ignored", "Spans without usage, or that repeat their children's.", of="api"
)
STREAM_CLIENTS = _gauge(
    "stream_clients", "Clients that follow the states of budgets over HTTP.", of="api"
)
STREAM_RESYNCS = _counter(
    "stream_resyncs",
    "Times a client fell too far behind and was sent everything anew.",
    of="api",
)

NOTICES_SENT = _counter(
    "notices_sent", "Alerts and reports that were taken, by channel.", "channel", of="api"
)
NOTICES_FAILED = _counter(
    "notices_failed", "Attempts to deliver one that failed, by channel.", "channel", of="api"
)
NOTICES_WAITING = _gauge(
    "notices_waiting", "Deliveries of alerts and reports that wait or are tried again.", of="api"
)
NOTICES_DEAD = _gauge(
    "notices_dead", "Deliveries of alerts and reports that were given up.", of="api"
)

for _channel in ("mail", "webhook"):
    NOTICES_SENT.labels(_channel)
    NOTICES_FAILED.labels(_channel)
# So that a reason shows as 0 before it first happens.
CORRECTIONS_LOST.labels(LOST_DELETED)
for _reason in REASONS:
    EVENTS_REJECTED.labels(_reason)


def render(part: Part) -> bytes:
    """The metrics that ``part`` counts, in Prometheus' text format."""
    return generate_latest(_OfPart(part))


class _OfPart(Collector):
    def __init__(self, part: Part) -> None:
        self._part = part

    def collect(self) -> Iterator[Metric]:
        return (found for found in REGISTRY.collect() if self._part in OWNERS[found.name])


def names() -> list[str]:
    """The name of every metric as Prometheus shows it, ``_total`` included."""
    found: list[str] = []
    for family in REGISTRY.collect():
        found.append(f"{family.name}_total" if family.type == "counter" else family.name)
    return sorted(found)
