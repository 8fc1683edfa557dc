"""Whether a consumer is alive: its fetches are answered, its group gets on.

aiokafka's consumer goes on answering "no records" when the task that fetches has died, and for as
long as no broker answers. Here the parts of it are seen that move while all is well. A broker
answers a fetch within its maximum wait even where there is nothing new.
"""

from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer

from pipeline.liveness import Look, Sighting


def fetcher_pulse(consumer: AIOKafkaConsumer, name: str) -> Look:
    """Sees whether the task that fetches still runs. Once ended it never moves again."""

    def look() -> Mapping[str, Sighting]:
        task: Any = consumer._fetcher and consumer._fetcher._fetch_task  # pyright: ignore
        if task is None or not task.done():
            return {name: Sighting("runs", "")}
        failure = None if task.cancelled() else task.exception()
        why = failure if failure is None else failure.__cause__ or failure
        return {name: Sighting("ended", f"its fetching has ended: {why or 'cancelled'!r}")}

    return look


def answers_pulse(consumer: AIOKafkaConsumer) -> Look:
    """Sees every partition that could be fetched; its fetches are answered all the time."""

    def look() -> Mapping[str, Sighting]:
        assignment = _assignment(consumer)
        fetched: Any = consumer._fetcher._records if consumer._fetcher else {}  # pyright: ignore
        seen: dict[str, Sighting] = {}
        if assignment is None:
            return seen
        for tp in assignment.tps:
            state = assignment.state_value(tp)
            # What waits for us, or may not be fetched now, says nothing of the broker.
            idle = state is None or state.paused or not state.has_valid_position or tp in fetched
            waiting = "" if idle else "no broker answers its fetches"
            position = None if state is None else state.timestamp
            seen[f"reading {tp.topic} partition {tp.partition}"] = Sighting(position, waiting)
        return seen

    return look


def group_pulse(consumer: AIOKafkaConsumer, name: str) -> Look:
    """Sees the group: partitions are being assigned, and some time they are."""

    def look() -> Mapping[str, Sighting]:
        subscription: Any = consumer._subscription  # pyright: ignore[reportPrivateUsage]
        waiting = subscription.reassignment_in_progress or _assignment(consumer) is None
        why = "its partitions are being assigned" if waiting else ""
        return {name: Sighting(id(_assignment(consumer)), why)}

    return look


def _assignment(consumer: AIOKafkaConsumer) -> Any:
    subscription: Any = consumer._subscription.subscription  # pyright: ignore[reportPrivateUsage]
    return None if subscription is None else subscription.assignment
