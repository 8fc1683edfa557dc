"""``emit``: events from a file or stdin to Kafka."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from pipeline.cli.context import Kafka, on_kafka
from pipeline.cli.lines import Line, follow_lines
from pipeline.cli.output import as_json, print_json, progress

_SHOWN_REJECTIONS = 1_000
_FLUSH_TIMEOUT_S = 60.0


@dataclass
class _Report:
    sent: int = 0
    rejected: int = 0
    failed: int = 0
    rejections: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    trouble: str = ""

    def reject(self, line: int, reason: str, detail: str, quiet: bool) -> None:
        self.rejected += 1
        if len(self.rejections) < _SHOWN_REJECTIONS:
            self.rejections.append({"line": line, "reason": reason, "detail": detail})
            if not quiet:
                click.echo(f"line {line}: {reason}: {detail}", err=True)


@click.command()
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@as_json
def emit(file: str | None, json_wanted: bool) -> int:
    """Send events from FILE (or stdin), one JSON object per line.

    Lines that are no valid event are reported with their number and not sent. Whether an event is
    too old or in the future is judged by Kafka's time and so later, by the worker. Exit status 1
    when any line was rejected or failed.
    """
    if file is None or file == "-":
        report = on_kafka(lambda kafka: _emit(kafka, sys.stdin.fileno(), json_wanted))
    else:
        descriptor = os.open(Path(file), os.O_RDONLY)
        try:
            report = on_kafka(lambda kafka: _emit(kafka, descriptor, json_wanted))
        finally:
            os.close(descriptor)
    return _show(report, json_wanted)


async def _emit(kafka: Kafka, descriptor: int, quiet: bool) -> _Report:
    from pipeline.core.event_codec import MAX_EVENT_BYTES
    from producers.kafka import Publisher

    report = _Report()
    async with Publisher(kafka.client, kafka.topics.events) as publisher:
        with progress("events") as done:
            async for lines in follow_lines(descriptor, MAX_EVENT_BYTES):
                await publisher.send_many(_valid(lines, report, quiet))
                done(publisher.sent + publisher.failed + report.rejected)
            await publisher.flush(_FLUSH_TIMEOUT_S)
        report.sent, report.failed = publisher.sent, publisher.failed
        if publisher.last_error is not None:
            report.trouble = " ".join(str(publisher.last_error).split())
    return report


def _valid(lines: list[Line], report: _Report, quiet: bool) -> list[tuple[bytes, bytes]]:
    """The (key, value) pairs of the lines that are valid events; the others go into the report."""
    from pipeline.core.event_codec import MAX_EVENT_BYTES, decode_event
    from pipeline.core.rejections import TOO_LARGE, Rejection

    pairs: list[tuple[bytes, bytes]] = []
    for number, text in lines:
        if text is None:
            report.reject(number, TOO_LARGE, f"value: at most {MAX_EVENT_BYTES} bytes", quiet)
            continue
        event = decode_event(text)
        if isinstance(event, Rejection):
            report.reject(number, event.reason, event.detail, quiet)
        else:
            pairs.append((event.port_id.encode(), text))
    return pairs


def _show(report: _Report, json_wanted: bool) -> int:
    if json_wanted:
        print_json(
            {
                "sent": report.sent,
                "rejected": report.rejected,
                "failed": report.failed,
                "rejections": report.rejections,
            }
        )
    else:
        click.echo(f"sent {report.sent}, rejected {report.rejected}, failed {report.failed}")
    if report.trouble:
        click.echo(f"tallyport: Kafka: {report.trouble}", err=True)
    return 1 if report.rejected or report.failed else 0
