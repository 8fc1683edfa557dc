"""``watch``: budget states as they change."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.cli.context import Kafka, on_kafka
from pipeline.cli.output import as_json, print_json, print_table

if TYPE_CHECKING:
    from rich.table import Table

    from pipeline.core.budgets import StateRecord, StateTable

_COLUMNS = ("scope", "unit", "period", "status", "used", "remaining", "hard_cap", "resets_at")
_STYLES = {
    "hard-cap-exceeded": "bold red",
    "soft-cap-exceeded": "yellow",
    "ok": "green",
    "disabled": "dim",
}
_POLL_MS = 250
_TABLE_MARGIN = 6


class _Change(NamedTuple):
    """A new state under ``key``; None when it was taken away."""

    key: str
    record: "StateRecord | None"


@click.command()
@click.argument("scopes", nargs=-1, metavar="[SCOPE]...")
@click.option("--once", is_flag=True, help="Print the states as they are now and end.")
@as_json
def watch(scopes: tuple[str, ...], once: bool, json_wanted: bool) -> None:
    """Follow the states of all budgets, or of the SCOPEs given, until Ctrl-C.

    A table on a terminal, one line per change elsewhere. With --json one object per change, the
    states as they are now first; a state that was taken away has "deleted": true.
    """
    from pipeline.core.scopes import parse_scope

    wanted = {parse_scope(scope) for scope in scopes}
    try:
        on_kafka(lambda kafka: _watch(kafka, wanted, once, json_wanted))
    except KeyboardInterrupt:
        if once:
            raise


async def _watch(kafka: Kafka, wanted: set[str], once: bool, json_wanted: bool) -> None:
    from pipeline.core.budgets import StateTable

    table = StateTable()
    changes = _follow(kafka, wanted, table)
    try:
        await anext(changes)
        if once and not json_wanted:
            print_table([_fields(record) for record in _ranked(table)], _COLUMNS)
        elif json_wanted or not sys.stdout.isatty():
            _print_changes([_Change("", record) for record in table.records()], json_wanted)
        if once:
            return
        if json_wanted or not sys.stdout.isatty():
            async for changed in changes:
                _print_changes(changed, json_wanted)
        else:
            await _show_table(table, changes)
    finally:
        await changes.aclose()


async def _follow(
    kafka: Kafka, wanted: set[str], table: "StateTable"
) -> AsyncGenerator[list[_Change]]:
    """First, once, all states that are there; then every change. ``table`` follows along."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from pipeline.stream.reader import topic_partitions

    consumer = AIOKafkaConsumer(
        **kafka.client,
        isolation_level="read_committed",
        enable_auto_commit=False,
        # With "latest" the client, which starts on its own, may win against the seek below.
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        topic = kafka.topics.state
        partitions = await topic_partitions(consumer, topic)
        assigned = [TopicPartition(topic, partition) for partition in sorted(partitions)]
        consumer.assign(assigned)
        ends = await consumer.end_offsets(assigned)
        await consumer.seek_to_beginning(*assigned)
        waiting = set(assigned)
        while True:
            batches = await consumer.getmany(timeout_ms=_POLL_MS)
            changes = [
                change
                for records in batches.values()
                for record in records
                if (change := _take(table, wanted, record.key, record.value))
            ]
            if waiting:
                waiting = {tp for tp in waiting if await consumer.position(tp) < ends[tp]}
                if not waiting:
                    yield changes
            else:
                yield changes
    finally:
        await consumer.stop()


def _take(
    table: "StateTable", wanted: set[str], key: bytes | None, value: bytes | None
) -> _Change | None:
    from pipeline.core.budgets import is_heartbeat
    from pipeline.core.scopes import parse_key

    if key is None or is_heartbeat(key) or (wanted and parse_key(key).scope not in wanted):
        return None
    record = table.put(key, value)
    return _Change(key.decode(), record) if record or value is None else None


def _fields(record: "StateRecord") -> dict[str, Any]:
    from pipeline.core.budgets import state_fields

    return state_fields(*record)


def _print_changes(changes: Iterable[_Change], json_wanted: bool) -> None:
    from pipeline.core.scopes import format_scope, parse_key

    for key, record in changes:
        if record is None:
            scope, unit, period = parse_key(key)
            fields = {"scope": format_scope(scope), "unit": unit, "period": period, "deleted": True}
        else:
            fields = _fields(record)
        if json_wanted:
            print_json(fields)
        elif record is None:
            click.echo(f"{key} deleted")
        else:
            limit = "" if fields["hard_cap"] is None else f" of {fields['hard_cap']}"
            click.echo(
                f"{fields['scope']} {fields['unit']} {fields['period']}: {fields['status']}, "
                f"used {fields['used']}{limit}"
            )
    sys.stdout.flush()


def _ranked(table: "StateTable") -> list["StateRecord"]:
    """Exceeded budgets first, then by the share of the hard cap that is used."""
    order = list(_STYLES)

    def rank(record: "StateRecord") -> tuple[int, float, str]:
        state = record.state
        share = state.used / state.hard_cap if state.hard_cap else 0.0
        return order.index(state.status), -share, state.key

    return sorted(table.records(), key=rank)


async def _show_table(table: "StateTable", changes: AsyncGenerator[list[_Change]]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(_rendered(table, console.height), console=console, screen=True) as live:
        async for changed in changes:
            if changed:
                live.update(_rendered(table, console.height))
            await asyncio.sleep(0)


def _rendered(table: "StateTable", height: int) -> "Table":
    from rich.table import Table

    records = _ranked(table)
    shown = records[: max(1, height - _TABLE_MARGIN)]
    now = time.strftime("%H:%M:%S")
    title = f"{len(records)} budget states at {now}"
    if len(shown) < len(records):
        title += f", the first {len(shown)} shown"
    drawn = Table(title=title, expand=True)
    for column in _COLUMNS:
        drawn.add_column(column, justify="right" if column in _COLUMNS[4:7] else "left")
    for record in shown:
        fields = _fields(record)
        cells = ["-" if fields[column] is None else str(fields[column]) for column in _COLUMNS]
        drawn.add_row(*cells, style=_STYLES[fields["status"]])
    return drawn
