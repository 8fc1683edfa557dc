"""``emit``: events from a file or stdin to the deployment, the way the SDK sends them."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.cli.context import run_async
from pipeline.cli.lines import Line, follow_lines
from pipeline.cli.output import as_json, print_json, printable, progress
from pipeline.cli.transports import connected

if TYPE_CHECKING:
    from producers.segment import Entry
    from producers.transports.transport import Outcome, Transport, Unavailable

GIVE_UP_S = 60.0
"""For so long the same events are sent again; then they have failed, and nothing more is read."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_SHOWN_REJECTIONS = 1_000
_NOT_ADMITTED = (401, 403)


@dataclass
class _Report:
    sent: int = 0
    rejected: int = 0
    failed: int = 0
    rejections: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    trouble: str = ""
    is_final: bool = False
    """Whether sending the same again would meet the same trouble."""

    def reject(self, line: int, reason: str, detail: str, quiet: bool) -> None:
        self.rejected += 1
        if len(self.rejections) < _SHOWN_REJECTIONS:
            self.rejections.append({"line": line, "reason": reason, "detail": detail})
            if not quiet:
                click.echo(printable(f"line {line}: {reason}: {detail}"), err=True)

    @property
    def answered(self) -> int:
        return self.sent + self.rejected + self.failed


class _Numbered(NamedTuple):
    """A valid event and the number of its line."""

    line: int
    entry: "Entry"


@click.command()
@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@as_json
def emit(file: str | None, json_wanted: bool) -> int:
    """Send events from FILE (or stdin), one JSON object per line.

    They go over HTTP where TALLYPORT_API_URL is set, else to Kafka. Lines that are no valid event
    are reported with their number and not sent. On Kafka, whether an event is too old or in the
    future is judged by Kafka's time and so later, by the worker. What is not acknowledged within a
    minute has failed, and what comes after it is not sent; so it is at once where the API does not
    admit the key. Exit status 1 when any line was rejected or failed.
    """
    with _opened(file) as descriptor:
        report = run_async(_emit(descriptor, json_wanted))
    return _show(report, json_wanted)


@contextmanager
def _opened(file: str | None) -> Generator[int]:
    if file is None or file == "-":
        yield sys.stdin.fileno()
        return
    descriptor = os.open(Path(file), os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _emit(descriptor: int, quiet: bool) -> _Report:
    from pipeline.core.event_codec import MAX_EVENT_BYTES

    report = _Report()
    async with _Sender(await connected(), report, quiet) as sender:
        with progress("events") as done:
            async for lines in follow_lines(descriptor, MAX_EVENT_BYTES):
                for batch in _batches(_valid(lines, report, quiet)):
                    await sender.send(batch)
                    done(report.answered)
                if report.failed:
                    break
    return report


class _Sender:
    """Sends batches one after the other and enters into the report what became of each event."""

    def __init__(self, transport: "Transport", report: _Report, quiet: bool) -> None:
        self._transport = transport
        self._report = report
        self._quiet = quiet
        self._stop = threading.Event()
        self._has_told = False

    async def __aenter__(self) -> "_Sender":
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.to_thread(self._transport.close)

    async def send(self, batch: Sequence[_Numbered]) -> None:
        """Stays with a batch until each event is answered, or ``GIVE_UP_S`` have passed."""
        report = self._report
        if report.failed:
            return
        waiting, pause_s = list(batch), _FIRST_PAUSE_S
        end_s = time.monotonic() + GIVE_UP_S
        while True:
            outcomes = await asyncio.to_thread(self._deliver, [one.entry for one in waiting])
            unanswered: list[_Numbered] = []
            for one, outcome in zip(waiting, outcomes, strict=True):
                if outcome is None:
                    unanswered.append(one)
                elif outcome.reason is None:
                    report.sent += 1
                else:
                    report.reject(one.line, outcome.reason, outcome.detail, self._quiet)
            waiting = unanswered
            if not waiting:
                report.trouble = ""
                return
            if report.is_final or time.monotonic() + pause_s > end_s:
                report.failed += len(waiting)
                report.trouble += f"; given up at line {waiting[0].line}"
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _deliver(self, entries: "Sequence[Entry]") -> "Sequence[Outcome | None]":
        from producers.transports.transport import Unavailable

        try:
            outcomes = self._transport.deliver(entries, self._stop)
        except Unavailable as error:
            self._take_trouble(error)
            return [None] * len(entries)
        self._report.trouble = "not everything was acknowledged"
        return outcomes

    def _take_trouble(self, error: "Unavailable") -> None:
        report = self._report
        report.trouble = str(error)
        if error.status in _NOT_ADMITTED:
            report.trouble += " (TALLYPORT_API_KEY)"
            report.is_final = True
        elif error.status is None and not self._has_told:
            self._has_told = True
            again = f"tallyport: {error}; trying again for {GIVE_UP_S:g} s"
            click.echo(printable(again), err=True)


def _batches(events: Sequence[_Numbered]) -> Generator[Sequence[_Numbered]]:
    """The events in as many as a transport takes at once."""
    from producers.courier import MAX_BYTES, MAX_ENTRIES

    batch: list[_Numbered] = []
    size = 0
    for one in events:
        size += len(one.entry.value)
        if batch and (len(batch) == MAX_ENTRIES or size > MAX_BYTES):
            yield batch
            batch, size = [], len(one.entry.value)
        batch.append(one)
    if batch:
        yield batch


def _valid(lines: list[Line], report: _Report, quiet: bool) -> list[_Numbered]:
    """The lines that are valid events; the others go into the report."""
    from pipeline.core.event_codec import MAX_EVENT_BYTES, decode_event
    from pipeline.core.rejections import TOO_LARGE, Rejection
    from producers.segment import Entry

    valid: list[_Numbered] = []
    for number, text in lines:
        if text is None:
            report.reject(number, TOO_LARGE, f"value: at most {MAX_EVENT_BYTES} bytes", quiet)
            continue
        event = decode_event(text)
        if isinstance(event, Rejection):
            report.reject(number, event.reason, event.detail, quiet)
        else:
            valid.append(_Numbered(number, Entry(event.port_id.encode(), text, 0)))
    return valid


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
        click.echo(printable(f"tallyport: {report.trouble}"), err=True)
    return 1 if report.rejected or report.failed else 0
