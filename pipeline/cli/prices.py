"""``prices``: the rates on Kafka and the built-in book."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import Kafka, command_line_user, on_kafka, settings
from pipeline.cli.output import as_json, print_json, print_table
from pipeline.cli.times import Time
from pipeline.core.errors import ConfigurationError

if TYPE_CHECKING:
    from pipeline.core.explain import Explanation
    from pipeline.core.rates import Rate, RateSet
    from pipeline.settings import Settings

_COLUMNS = ("rate_id", "kind", "provider", "model", "effective_from", "prices", "note")
_EXPLAINED = ("counter", "amount", "per", "like", "above")
_KINDS = ("multiplier", "withdraws", "fx")
_SAID_IN_RECORDS, _SAID_HERE = "or the record says backdated", "or give --backdated"

_effective_from = click.option(
    "--effective-from", type=Time(), help="When it begins; default: as soon as the lead allows."
)
_backdated = click.option(
    "--backdated", is_flag=True, help="Let it begin in the past, for events taken from now on."
)
_rate_id = click.option("--id", "rate_id", help="The rate's id; default: one is made up.")


@click.group()
def prices() -> None:
    """List, change and explain prices.

    Rates are never changed: a later one takes over from an earlier one, or withdraws it.
    """


@prices.command("list")
@as_json
def list_(json_wanted: bool) -> None:
    """List the rates that are used, and the records that are not, with the reason."""
    from pipeline.core.rates import rate_record

    configured = settings()
    found = on_kafka(lambda kafka: _load(kafka, configured), configured)
    used = [{"offset": item.offset, **rate_record(item.rate)} for item in found.used]
    unused = [
        {
            "offset": item.offset,
            "rate_id": item.rate_id,
            "reason": item.reason,
            "detail": item.detail,
        }
        for item in found.ignored
    ]
    if json_wanted:
        print_json({"used": used, "unused": unused})
        return
    print_table([_shown(record) for record in used], _COLUMNS)
    for item in unused:
        click.echo(
            f"not used: {item['rate_id'] or 'a record'} at offset {item['offset']}: "
            f"{item['reason']}: {item['detail']}"
        )


async def _load(kafka: Kafka, configured: "Settings") -> "RateSet":
    from pipeline.stream.rate_log import load_rates

    return await load_rates(
        kafka.client, kafka.topics.rates, configured.price_lead_s, configured.currency
    )


def _shown(record: dict[str, Any]) -> dict[str, Any]:
    kind = next((kind for kind in _KINDS if kind in record), "price")
    amounts = {
        f"{name} per {basis.removeprefix('per_')}": amount
        for basis in ("per_million", "per_second", "per_unit")
        for name, amount in record.get(basis, {}).items()
    }
    text = ", ".join(f"{name} {amount}" for name, amount in amounts.items())
    if kind != "price":
        text = f"{record[kind]} at {record['rate']}" if kind == "fx" else str(record[kind])
    note = "backdated" if record.get("backdated") else record.get("currency")
    return {**record, "kind": kind, "prices": text, "note": note}


@prices.command("set")
@click.option("--provider", help="Exact, or with * and ? as a glob.")
@click.option("--model", help="Exact, or with * and ? as a glob.")
@click.option("--per-million", multiple=True, metavar="COUNTER=PRICE", help="Tokens, characters.")
@click.option("--per-second", multiple=True, metavar="COUNTER=PRICE", help="audio_seconds.")
@click.option("--per-unit", multiple=True, metavar="COUNTER=PRICE", help="request, images, …")
@click.option("--currency", help="Of these prices; default: the deployment's.")
@click.option("--multiplier", help="Instead of prices: a factor on the rate that applies.")
@click.option("--fx", metavar="CURRENCY=RATE", help="Instead of prices: an exchange rate.")
@_rate_id
@_effective_from
@_backdated
@as_json
def set_(
    json_wanted: bool,
    rate_id: str | None,
    effective_from: datetime | None,
    backdated: bool,
    **given: Any,
) -> None:
    """Publish a rate, for example

    \b
    tallyport prices set --provider openai --model gpt-5-nano \\
        --per-million input_tokens=0.05 --per-million output_tokens=0.40
    """
    configured = settings()
    record = _common(configured, rate_id, effective_from, backdated) | _content(given)
    _publish(record, configured, json_wanted, rate_id)


@prices.command()
@click.argument("withdrawn", metavar="RATE_ID")
@_rate_id
@_effective_from
@_backdated
@as_json
def withdraw(
    withdrawn: str,
    json_wanted: bool,
    rate_id: str | None,
    effective_from: datetime | None,
    backdated: bool,
) -> None:
    """Let the rate RATE_ID apply no longer."""
    configured = settings()
    record = _common(configured, rate_id, effective_from, backdated) | {"withdraws": withdrawn}
    _publish(record, configured, json_wanted, rate_id)


def _common(
    configured: "Settings", rate_id: str | None, effective_from: datetime | None, backdated: bool
) -> dict[str, Any]:
    from pipeline.stream.rate_publishing import completed, rfc3339

    given = {
        "rate_id": rate_id,
        "effective_from": rfc3339(effective_from) if effective_from else None,
        "backdated": True if backdated else None,
    }
    return completed(given, datetime.now(UTC), configured.price_lead_s)


def _content(given: dict[str, Any]) -> dict[str, Any]:
    record = {name: given[name] for name in ("provider", "model", "currency", "multiplier")}
    record = {name: value for name, value in record.items() if value is not None}
    for basis in ("per_million", "per_second", "per_unit"):
        if given[basis]:
            record[basis] = dict(
                _pair(f"--{basis.replace('_', '-')}", text) for text in given[basis]
            )
    if given["fx"] is not None:
        record["fx"], record["rate"] = _pair("--fx", given["fx"])
    return record


def _pair(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigurationError(f"{flag}: must look like NAME=VALUE, not {text!r}")
    return name, value


def _publish(
    record: dict[str, Any], configured: "Settings", json_wanted: bool, given_id: str | None
) -> None:
    """Checks and writes the record, looks whether it is used, and shows it."""
    from pipeline.core.rates import parse_rate, rate_record
    from pipeline.stream.rate_publishing import RatesRefused

    rate = parse_rate(record)
    try:
        _write([rate], configured)
    except RatesRefused as error:
        if given_id is not None:
            raise
        # It was made up a moment ago, and nobody has seen it.
        raise ConfigurationError(str(error).removeprefix(f"{rate.rate_id}: ")) from error
    shown = rate_record(rate)
    if json_wanted:
        print_json({"dry_run": False, "rates": [shown]})
    else:
        print_table([_shown(shown)], _COLUMNS)


def _write(rates: "list[Rate]", configured: "Settings", dry_run: bool = False) -> None:
    from pipeline.stream.rate_publishing import RatesRefused, publish_rates

    async def work(kafka: Kafka) -> None:
        await publish_rates(
            kafka.client,
            kafka.topics,
            command_line_user(),
            rates,
            lead_s=configured.price_lead_s,
            currency=configured.currency,
            dry_run=dry_run,
        )

    try:
        on_kafka(work, configured)
    except RatesRefused as error:
        raise RatesRefused(str(error).replace(_SAID_IN_RECORDS, _SAID_HERE)) from error


@prices.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--currency", help="Of prices that name none; default: the deployment's.")
@click.option("--dry-run", is_flag=True, help="Show the rates and write nothing.")
@_effective_from
@_backdated
@as_json
def import_(
    file: Path,
    currency: str | None,
    dry_run: bool,
    effective_from: datetime | None,
    backdated: bool,
    json_wanted: bool,
) -> None:
    """Publish the rates of FILE, CSV or JSON; one that is there already stays as it is.

    That is a row with the id of a rate, and one without an id whose prices are in force already
    when it would begin: "unchanged" in the answer, the others are "new".

    CSV has a header: provider, model, and prices such as input_tokens_per_million,
    input_micro_per_million (micro-units per million tokens), audio_seconds, images, request. All
    rows are checked before any is written.
    """
    from pipeline.cli.standing_rates import standing_rates
    from pipeline.core.price_import import import_prices
    from pipeline.core.rates import rate_record

    configured = settings()
    defaults = _common(configured, None, effective_from, backdated)
    # A row's id is made of its content; the same list imported again is to be the same rates.
    del defaults["rate_id"], defaults["published_at"]
    if currency is not None:
        defaults["currency"] = currency
    try:
        text = file.read_text("utf-8-sig")
        found = import_prices(text, "json" if file.suffix == ".json" else "csv", defaults)
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file}: is not UTF-8") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    there = on_kafka(lambda kafka: _load(kafka, configured), configured)
    standing = standing_rates(found, there)
    pairs = list(zip(found, standing, strict=True))
    # Those with a known id as well: the id with other content is refused.
    if to_write := [row for row, other in pairs if other is None or other.rate_id == row.rate_id]:
        _write(to_write, configured, dry_run)
    shown = [
        {**rate_record(other or row), "change": "new" if other is None else "unchanged"}
        for row, other in pairs
    ]
    if json_wanted:
        print_json({"dry_run": dry_run, "rates": shown})
    else:
        print_table([_shown(record) for record in shown], ("change", *_COLUMNS))


@prices.command()
@click.option("--provider", required=True, help="As events report it.")
@click.option("--model", required=True, help="As events report it.")
@click.option("--at", type=Time(), help="When the call occurs; default: now.")
@click.option("--service-tier", default="", help="As events report it, for example batch.")
@as_json
def explain(
    provider: str, model: str, at: datetime | None, service_tier: str, json_wanted: bool
) -> None:
    """Show which rate applies to a model, and why the others do not."""
    from pipeline.core.book import builtin_book
    from pipeline.core.explain import explain as explain_price
    from pipeline.core.prices import PriceVersion

    configured = settings()
    rates = on_kafka(lambda kafka: _load(kafka, configured), configured)
    moment = at or datetime.now(UTC)
    at_us = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    found = explain_price(PriceVersion(rates, builtin_book()), provider, model, at_us, service_tier)
    if json_wanted:
        print_json(asdict(found))
    else:
        _print_explanation(found)


def _print_explanation(found: "Explanation") -> None:
    click.echo(f"{found.provider} {found.model} at {found.at}: {found.status}")
    click.echo(f"rate: {found.rate_id or '-'} ({found.why})")
    for name in ("multiplier", "fx"):
        if getattr(found, name) is not None:
            click.echo(f"{name}: {getattr(found, name)}")
    if found.estimated:
        click.echo("estimated: rows priced by it are marked so")
    for title, rows in (("prices", found.prices), ("prices by length", found.by_length)):
        if rows:
            click.echo(f"\n{title} in {found.currency}")
            print_table(
                [asdict(row) for row in rows], ("counter", "amount", "per", "like", "above")
            )
    if found.lost:
        click.echo("\ndoes not apply")
        print_table([asdict(row) for row in found.lost], ("rate_id", "reason"))
