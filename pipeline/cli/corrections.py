"""``void``, ``amend`` and ``reprice``: corrections, with the difference shown before."""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import Kafka, on_kafka, settings
from pipeline.cli.output import as_json, print_json, print_table, progress
from pipeline.cli.times import Time
from pipeline.core.errors import ConfigurationError, InvalidField

if TYPE_CHECKING:
    from aiokafka import AIOKafkaProducer
    from clickhouse_connect.driver.client import Client

    from pipeline.core.corrections import Correction
    from pipeline.core.prices import PriceVersion
    from pipeline.corrections.preview import Preview
    from pipeline.corrections.proposals import Selection
    from pipeline.corrections.sending import Dispatch
    from pipeline.settings import Settings

_COLUMNS = (
    "date", "port_id", "events", "tokens_before", "tokens_after", "tokens_delta", "cost_before",
    "cost_after", "cost_delta", "unpriced_before", "unpriced_after",
)  # fmt: skip

_dry_run = click.option("--dry-run", is_flag=True, help="Show the difference and write nothing.")
_reason = click.option("--reason", required=True, help="Why; it is kept with the entry.")
_wait = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=60.0,
    show_default=True,
    help="Seconds to wait until the ledger has them.",
)
_rows = click.option(
    "--rows",
    "most_rows",
    type=click.IntRange(0),
    help="Print at most so many rows, and refusals; the sums are of all. Default: all.",
)
_id = click.option(
    "--id", "correction_id", help="The correction's id; sent twice it counts once. Default: new."
)


@click.command()
@click.option("--port-id", required=True, help="The port that owns the events.")
@click.option("--event-id", "event_ids", multiple=True, required=True, help="May be repeated.")
@_reason
@_id
@_dry_run
@_wait
@as_json
def void(port_id: str, event_ids: Sequence[str], correction_id: str | None, **given: Any) -> int:
    """Take back events: requests, tokens and cost, from ledger, totals and budgets.

    An event that is void stays void.
    """
    return _correct([_body("void", port_id, one, correction_id, given) for one in event_ids], given)


@click.command()
@click.option("--port-id", required=True, help="The port that owns the event.")
@click.option("--event-id", required=True)
@click.option(
    "--count", "counts", multiple=True, required=True, metavar="COUNTER=N",
    help="A counter as it should have been, for example input_tokens=1200. May be repeated.",
)  # fmt: skip
@_reason
@_id
@_dry_run
@_wait
@as_json
def amend(
    port_id: str, event_id: str, counts: Sequence[str], correction_id: str | None, **given: Any
) -> int:
    """Correct the counts of an event; it is priced again by its own rate."""
    body = _body("amend", port_id, event_id, correction_id, given)
    return _correct([{**body, "counts": dict(map(_count, counts))}], given)


@click.command()
@click.option("--port-id", help="Only this port.")
@click.option("--event-id", "event_ids", multiple=True, help="These events of --port-id.")
@click.option("--from", "start", type=Time(), help="Events from this date or time on (UTC).")
@click.option("--to", "end", type=Time(), help="Events before this date or time (UTC).")
@click.option("--model", help="Only this model.")
@click.option("--provider", help="Only this provider.")
@click.option("--rate-id", help="The rate; default: whichever the rules choose now.")
@click.option("--reason", default="reprice", show_default=True, help="Kept with the entries.")
@_rows
@_dry_run
@_wait
@as_json
def reprice(
    event_ids: Sequence[str], start: datetime | None, end: datetime | None, **given: Any
) -> int:
    """Price events again that are unpriced or wrongly priced: named ones, or --from … --to ….

    Without --rate-id each event gets the rate that applies to it now; one that none applies to
    gets a matching rate that began later. May be interrupted and run again: what has been
    corrected is not corrected twice.
    """
    if event_ids:
        if start or end or given["model"] or given["provider"]:
            raise click.UsageError("--event-id and --from, --to, --model, --provider exclude each "
                                   "other")  # fmt: skip
        if not given["port_id"] or not given["rate_id"]:
            raise click.UsageError("--event-id needs --port-id and --rate-id")
        bodies = [
            {**_body("reprice", given["port_id"], one, None, given), "rate_id": given["rate_id"]}
            for one in event_ids
        ]
        return _correct(bodies, given)
    if start is None or end is None:
        raise click.UsageError("--from and --to are required, or --event-id")
    if start >= end:
        raise InvalidField("--from", "must lie before --to")
    from pipeline.corrections.proposals import Selection

    selection = Selection(start, end, given["port_id"], given["provider"], given["model"])
    return _reprice_all(selection, given)


def _body(
    kind: str, port_id: str, event_id: str, correction_id: str | None, given: dict[str, Any]
) -> dict[str, Any]:
    import uuid

    return {
        "correction_id": correction_id or f"{kind}-{uuid.uuid4().hex}",
        "port_id": port_id,
        "event_id": event_id,
        "kind": kind,
        "reason": given["reason"],
    }


def _count(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise ConfigurationError(f"--count: must look like COUNTER=N, not {text!r}")
    if name == "audio_seconds":
        return name, value
    if not value.isdecimal():
        raise ConfigurationError(f"--count: {name} must be an integer of 0 or more, not {value!r}")
    return name, int(value)


def _decoded(bodies: Sequence[dict[str, Any]]) -> "list[Correction]":
    import json

    from pipeline.core.corrections import decode_correction
    from pipeline.core.rejections import Rejection

    ids = [body["correction_id"] for body in bodies]
    if len(set(ids)) < len(ids):
        raise ConfigurationError("--id: names one correction, so there can be one --event-id only")
    found: list[Correction] = []
    for body in bodies:
        correction = decode_correction(json.dumps(body).encode())
        if isinstance(correction, Rejection):
            raise ConfigurationError(correction.detail)
        found.append(correction)
    return found


def _correct(bodies: Sequence[dict[str, Any]], given: dict[str, Any]) -> int:
    """A few corrections: all of them, or none where one could not be carried out."""
    from pipeline.core.rejections import Rejection
    from pipeline.corrections.preview import Preview
    from pipeline.corrections.proposals import propose
    from pipeline.ledger.client import ledger_reader

    corrections, configured = _decoded(bodies), settings()

    async def work(kafka: Kafka) -> int:
        prices = await _prices(kafka, configured)
        preview, refused = Preview(), list[dict[str, str]]()
        with ledger_reader(configured) as client:
            for found in await asyncio.to_thread(propose, client, corrections, prices):
                correction, more = found[0], found[1]
                if isinstance(more, Rejection):
                    refused.append(_refusal(correction, more))
                else:
                    preview.add(more, found[2])  # type: ignore[misc]
            _show(preview, given)
            if refused or given["dry_run"]:
                return _report(given, preview, 0, refused, done=True)
            dispatch = await _dispatch(kafka, configured)
            async with _producer(kafka) as producer:
                await dispatch.send(producer, corrections)
            return await _finish(dispatch, client, preview, given)

    return on_kafka(work, configured)


def _reprice_all(selection: "Selection", given: dict[str, Any]) -> int:
    """Every event of a selection, page by page."""
    from pipeline.corrections.preview import Preview
    from pipeline.corrections.proposals import Left, count_events, reprices
    from pipeline.faults import point
    from pipeline.ledger.client import ledger_reader

    configured = settings()

    async def work(kafka: Kafka) -> int:
        prices = await _prices(kafka, configured)
        preview, left = Preview(), Left()
        with ledger_reader(configured) as client:
            total = await asyncio.to_thread(count_events, client, selection)
            dispatch = await _dispatch(kafka, configured)
            pages = reprices(client, selection, prices, given["rate_id"], given["reason"])
            seen = 0
            async with _producer(kafka) as producer:
                with progress("events", total) as report:
                    while (page := await asyncio.to_thread(next, pages, None)) is not None:
                        looked_at, proposals, others = page
                        for proposal in proposals:
                            preview.add(proposal.before, proposal.entry)
                        if not given["dry_run"]:
                            await dispatch.send(producer, [one.correction for one in proposals])
                            point("reprice-page-sent")
                        left.add(others)
                        seen += looked_at
                        report(seen)
            _show(preview, given)
            if not given["json_wanted"]:
                click.echo(left.line())
            if given["dry_run"]:
                return _report(given, preview, 0, [], done=True, left=left)
            return await _finish(dispatch, client, preview, given, left)

    return on_kafka(work, configured)


async def _prices(kafka: Kafka, configured: "Settings") -> "PriceVersion":
    from pipeline.core.book import builtin_book
    from pipeline.core.prices import PriceVersion
    from pipeline.stream.rate_log import load_rates

    rates = await load_rates(
        kafka.client, kafka.topics.rates, configured.price_lead_s, configured.currency
    )
    return PriceVersion(rates, builtin_book())


async def _dispatch(kafka: Kafka, configured: "Settings") -> "Dispatch":
    from pipeline.corrections.sending import Dispatch

    dispatch = Dispatch(kafka.client, kafka.topics, configured.partition_count)
    await dispatch.begin()
    return dispatch


def _producer(kafka: Kafka) -> "AIOKafkaProducer":
    from aiokafka import AIOKafkaProducer

    return AIOKafkaProducer(**kafka.client, acks="all", enable_idempotence=True)


async def _finish(
    dispatch: "Dispatch",
    client: "Client",
    preview: "Preview",
    given: dict[str, Any],
    left: Any = None,
) -> int:
    """Waits for what was sent, and says what came of it."""
    done = True
    try:
        async with asyncio.timeout(given["wait_s"]):
            await dispatch.resolved(client)
    except TimeoutError:
        done = False
    refused = await dispatch.refusals() if dispatch.sent else []
    return _report(given, preview, dispatch.sent, refused, done=done, left=left)


def _refusal(correction: "Correction", rejection: Any) -> dict[str, str]:
    return {
        "correction_id": correction.correction_id,
        "event_id": correction.event_id,
        "reason": rejection.reason,
        "detail": rejection.detail,
    }


def _show(preview: "Preview", given: dict[str, Any]) -> None:
    if given["json_wanted"]:
        return
    rows = preview.rows(given.get("most_rows"))
    if preview.days:
        print_table(rows, _COLUMNS)
    else:
        click.echo("nothing changes")
    if left_out := len(preview.days) - len(rows):
        total = preview.total()
        click.echo(f"{left_out} rows are not shown; all together: {total['events']} events, cost "
                   f"{total['cost_before']} to {total['cost_after']}")  # fmt: skip


def _report(
    given: dict[str, Any],
    preview: "Preview",
    sent: int,
    refused: list[dict[str, str]],
    *,
    done: bool,
    left: Any = None,
) -> int:
    most = given.get("most_rows")
    if given["json_wanted"]:
        body = {
            "dry_run": given["dry_run"],
            "changes": preview.rows(most),
            "rows": len(preview.days),
            "total": preview.total(),
            "sent": sent,
            "refused": len(refused),
            "rejected": refused[:most],
            "in_ledger": done and not given["dry_run"] and sent > len(refused),
        }
        print_json(body if left is None else {**body, "left": left.to_json()})
    else:
        for one in refused[:most]:
            click.echo(f"rejected: {one['correction_id']}: {one['reason']}: {one['detail']}")
        if not given["dry_run"]:
            click.echo(f"sent {sent}, rejected {len(refused)}")
    if not done:
        click.echo(
            f"not in the ledger yet after {given['wait_s']:.0f} s: are worker and sink running?",
            err=True,
        )
    return 0 if done and not refused else 1
