"""``python -m tests.chaos``: faults for as long as wanted, and a table at the end."""

import argparse
import asyncio
import json
import logging
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.engine import Engine, Plan
from tests.chaos.report import Report


def main() -> int:
    """Exit status 0 when every run agrees."""
    options = _parser().parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # lost connections are the point here
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    sizes = (1, 3) if options.brokers is None else (options.brokers,)
    reports: list[Report] = []
    for size in sizes:
        seconds = None if options.once else options.minutes * 60 / len(sizes)
        plan = Plan(seed, size, seconds, tuple(options.kinds), options.rate, not options.alone)
        reports.append(_run(plan, options.keep))
    for report in reports:
        print("", *report.lines(), sep="\n", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps([r.to_json() for r in reports], indent=1) + "\n")
    return 0 if all(report.ok for report in reports) else 1


def _run(plan: Plan, keep: bool) -> Report:
    folder = Path(tempfile.mkdtemp(prefix="tallyport-chaos-"))
    report = asyncio.run(Engine(plan, folder, lambda line: print(line, flush=True)).run())
    if report.ok and not keep:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs and data are kept in {folder}", file=sys.stderr)
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of faults, without start")
    parser.add_argument("--seed", type=int, help="of load, faults and their order")
    parser.add_argument("--brokers", type=int, choices=(1, 3), help="default: first 1, then 3")
    parser.add_argument("--rate", type=int, default=200, help="records a second")
    parser.add_argument("--alone", action="store_true", help="one fault at a time")
    parser.add_argument("--json", metavar="FILE", help="write the report there, too")
    parser.add_argument("--once", action="store_true", help="each fault once, not --minutes long")
    parser.add_argument("--keep", action="store_true", help="keep logs and data in any case")
    parser.add_argument("kinds", nargs="*", help="only these faults")
    return parser


if __name__ == "__main__":
    sys.exit(main())
