"""The closed list of metrics: what each process counts, and nothing else."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.exposition import generate_latest

from pipeline.core.rejections import REASONS

disable_created_metrics()

REGISTRY = CollectorRegistry()
"""The metrics of this process; ``/metrics`` serves them."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(f"tallyport_{name}", meaning, labels, registry=REGISTRY)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(f"tallyport_{name}", meaning, labels, registry=REGISTRY)


def _histogram(name: str, meaning: str) -> Histogram:
    return Histogram(f"tallyport_{name}", meaning, buckets=_SECONDS, registry=REGISTRY)


EVENTS_ACCEPTED = _counter("events_accepted", "Events counted in tables, budgets and ledger.")
EVENTS_REJECTED = _counter(
    "events_rejected", "Records sent on to usage.rejected, by reason.", "reason"
)
EVENTS_DUPLICATE = _counter(
    "events_duplicate", "Records whose event had been accepted before; counted once."
)
EVENTS_FORWARDED = _counter(
    "events_forwarded", "Records sent on to the home partition of their port."
)
EVENTS_UNPRICED = _counter("events_unpriced", "Accepted events for which no rate was found.")
UNKNOWN_FIELDS = _counter("unknown_fields", "Fields of events that are not in the contract.")
FLUSH_SECONDS = _histogram("flush_seconds", "Time of one flush: one Kafka transaction.")
SOURCE_LAG = _gauge(
    "source_lag_records", "Records of usage.events not yet counted, by partition.", "partition"
)
STATES_PUBLISHED = _counter("states_published", "Records written to budget.state.")
STATE_AGE_SECONDS = _gauge(
    "state_age_seconds",
    "Time since the heartbeat of a partition of budget.state last advanced.",
    "partition",
)
POLICIES_INVALID = _gauge("policies_invalid", "Budget policies whose last record is not valid.")
RATES_UNUSED = _gauge("rates_unused", "Records of pricing.rates that break a rule.")
SINK_ROWS = _counter("sink_rows", "Ledger rows inserted.")
SINK_INSERT_SECONDS = _histogram("sink_insert_seconds", "Time of one insert into the ledger.")
SINK_LAG = _gauge(
    "sink_lag_records", "Records of usage.priced not yet in the ledger, by partition.", "partition"
)
SINK_HOLES = _counter(
    "sink_holes", "Ranges of usage.priced that were missing on a second read as well."
)
HTTP_REQUESTS = _counter("http_requests", "Requests answered, by status.", "status")

for _reason in REASONS:
    EVENTS_REJECTED.labels(_reason)  # so that a reason shows as 0 before it first happens


def render(registry: CollectorRegistry = REGISTRY) -> bytes:
    """All metrics in Prometheus' text format."""
    return generate_latest(registry)


def names() -> list[str]:
    """The name of every metric as Prometheus shows it, ``_total`` included."""
    found: list[str] = []
    for family in REGISTRY.collect():
        found.append(f"{family.name}_total" if family.type == "counter" else family.name)
    return sorted(found)
