"""``report``: the weekly report, and what was sent to whom."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.context import on_kafka, run_async, settings
from pipeline.cli.output import as_json, print_json, print_table
from pipeline.cli.times import Time

if TYPE_CHECKING:
    from pipeline.core.policies import Policy
    from pipeline.notices.notice import Message
    from pipeline.settings import Settings

_COLUMNS = ("at", "subject", "to", "status", "attempts", "error")


@click.group()
def report() -> None:
    """The weekly report, and which alerts and reports were sent."""


@report.command()
@click.option("--week", "day", type=Time(), help="The week of this date; the last one otherwise.")
@click.option(
    "--html", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write HTML to FILE."
)
@click.option("--mail", "mail_wanted", is_flag=True, help="Mail it to TALLYPORT_MAIL_TO.")
@as_json
def weekly(day: datetime | None, file: Path | None, mail_wanted: bool, json_wanted: bool) -> None:
    """Print the report "AI usage & cost" of a week, or mail it now.

    Cost of the week and of the rolling 30 days, by kind, the top users, the changes to the week
    before, and the budgets closest to their caps. `--mail` sends it whatever was sent before; the
    schedule and `POST /v1/reports/weekly` send it once.
    """
    from pipeline.ledger.client import ledger_reader
    from pipeline.notices.weekly_mail import report_message
    from pipeline.reports.figures import last_week, week_of
    from pipeline.reports.weekly import read_weekly

    configured = settings()
    policies = _policies(configured)
    now = datetime.now(UTC)
    first_day = last_week(now.date()) if day is None else week_of(_utc_date(day))
    with ledger_reader(configured) as client:
        figures = read_weekly(client, first_day, now, configured.currency, policies)
    message = report_message(figures, _names(configured) if mail_wanted else {})
    if file is not None:
        file.write_text(message.html, "utf-8")
    receivers = _mail(configured, message) if mail_wanted else []
    if json_wanted:
        print_json(message.data)
    elif receivers:
        click.echo(f"mailed to {', '.join(receivers)}")
    elif file is not None:
        click.echo(f"written to {file}")
    else:
        click.echo(message.text, nl=False)


@report.command()
@click.option("--status", type=click.Choice(["pending", "sent", "dead"]), help="Only these.")
@as_json
def notices(status: str | None, json_wanted: bool) -> None:
    """Which alerts and reports were sent to whom, which wait, and which were given up."""
    from pipeline.notices.log import read_book
    from pipeline.notices.notice import notice_fields

    book = on_kafka(lambda kafka: read_book(kafka.client, kafka.topics.notices))
    found = sorted(book.notices.values(), key=lambda notice: (notice.at_ms, notice.id))
    shown = [notice_fields(notice) for notice in found if notice.deliveries]
    rows: list[dict[str, Any]] = [
        {**{name: one[name] for name in ("id", "type", "at", "subject")}, **delivery}
        for one in shown
        for delivery in one["deliveries"]
        if status in (None, delivery["status"])
    ]
    if json_wanted:
        print_json(rows)
    elif rows:
        print_table(rows, _COLUMNS)
    else:
        click.echo("nothing was sent" if status is None else f"nothing is {status}")


def _utc_date(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _policies(configured: "Settings") -> "list[Policy] | None":
    """The policies in force; None where Kafka cannot tell them, as a report goes without too."""
    from pipeline.core.errors import TallyportError
    from pipeline.stream.policy_log import load_policies

    try:
        view = on_kafka(lambda kafka: load_policies(kafka.client, kafka.topics), configured)
    except TallyportError:
        return None
    return [*view.policies.values()]


def _names(configured: "Settings") -> dict[str, str]:
    """Display names by scope; none where Kafka cannot tell them, as a report goes without too."""
    from pipeline.core.errors import TallyportError
    from pipeline.stream.name_log import load_names

    try:
        table = on_kafka(lambda kafka: load_names(kafka.client, kafka.topics), configured)
    except TallyportError:
        return {}
    return {scope: name.display_name for scope, name in table.names.items() if name.display_name}


def _mail(configured: "Settings", message: "Message") -> list[str]:
    """Hands the report to the mail server; the receivers. Raises ``TallyportError``."""
    import uuid

    from pipeline.core.errors import ConfigurationError
    from pipeline.notices.destinations import Destinations, address_of
    from pipeline.notices.mail import Mailer
    from pipeline.settings import variable

    destinations = Destinations(configured)
    if not destinations.can_report or not configured.smtp_url or not configured.mail_from:
        names = ", ".join(map(variable, ("smtp_url", "mail_from", "mail_to")))
        raise ConfigurationError(f"to mail a report these must be set: {names}")
    mailer = Mailer(configured.smtp_url, configured.mail_from)
    receivers = [address_of(place) for place in destinations.mail]

    async def send() -> None:
        for receiver in receivers:
            await mailer.send(message, receiver, uuid.uuid4().hex)

    run_async(send())
    return receivers
