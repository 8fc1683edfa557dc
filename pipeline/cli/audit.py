"""``audit``: recount and compare."""

from contextlib import ExitStack

import click

from pipeline.cli.context import run_async, settings
from pipeline.cli.output import as_json, print_json, print_table, progress

_SHOWN_OF_A_KIND = 10
_COLUMNS = ("kind", "part", "partition", "offset", "subject", "day", "what", "expected", "found",
            "by")  # fmt: skip


@click.command()
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds that a part which is behind is waited for.",
)
@as_json
def audit(wait_s: float, json_wanted: bool) -> int:
    """Recount the events from Kafka and compare tables, budget states and ledger.

    Works at rest and in traffic. The recount shares no code with the worker. Where Kafka no longer
    holds the events, tables and states are compared with the ledger. Exit status 1 with a table of
    differences, and also when there was nothing to compare.
    """
    from pipeline.audit.report import AuditReport
    from pipeline.audit.run import run_audit
    from pipeline.kafka import check_kafka

    configured = settings()

    async def work() -> AuditReport:
        await check_kafka(configured)
        with ExitStack() as stack:
            report = _Progress(stack)
            return await run_audit(configured, wait_s=wait_s, progress=report)

    report = run_async(work())
    if json_wanted:
        print_json(report.to_json())
        return 0 if report.ok else 1
    for line in report.summary():
        click.echo(line)
    shown = report.first_of_each_kind(_SHOWN_OF_A_KIND)
    if shown:
        print_table([{**vars(d), "by": d.by} for d in shown], _COLUMNS)
    if report.difference_count > len(shown):
        click.echo(f"... and {report.difference_count - len(shown)} more differences")
    click.echo(report.verdict)
    return 0 if report.ok else 1


class _Progress:
    """Progress lines that begin when it is known how much there is to do."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._total = 0

    def __call__(self, done: int, total: int) -> None:
        if not self._total:
            self._total = total
            self._report = self._stack.enter_context(progress("counted again", total))
        self._report(min(done, self._total))
