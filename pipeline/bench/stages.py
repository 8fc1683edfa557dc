"""Where the worker's time goes: samples of its stack, summed up by the stages of an event's way.

Pure. Reads the collapsed stacks that py-spy writes with ``--format raw``: one line for each stack,
its frames from the outermost in, then how often it was seen.
"""

import re
from collections import Counter
from typing import Final

# A sample belongs to the innermost frame that a stage knows; libraries below it are its work.
_STAGES: Final = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        ("usual events: read, validate, identify", r"UsualSlice\.read"),
        ("decode and validate others", r"core/(event_|timestamp|json_text|cloudevents)"),
        ("home partition", r"core/home"),
        ("dedupe", r"core/dedupe|native/ids"),
        ("price", r"core/(prices|tariffs|selection|book)|UsualSlice\.price|_rates_of"),
        ("fold", r"core/totals|UsualSlice\.(sums|_named)"),
        ("fates", r"core/intake"),
        ("rows and blocks", r"core/(blocks|rows)|seal\w* \(pipeline/stream/flush|UsualSlice\.rows"),
        ("journal of totals", r"stream/journal"),
        ("journal of ids", r"stream/id_journal"),
        ("partials, merge, states", r"core/(accounts|budgets|partials|policies|scopes|money)"
         r"|stream/merging|split_partials|_apply_local"),
        ("produce", r"aiokafka/producer|stream/(transaction|large_batch)"),
        ("fetch", r"aiokafka/consumer|stream/(transport|inbox|raw_batches)|record_columns"),
        ("between the stages", r"pipeline/(stream|core)/"),
        ("Kafka connections", r"aiokafka/"),
    )
)  # fmt: skip
REST: Final = "event loop, sockets, Faust's services"
_MAIN_THREAD: Final = "MainThread"


def stage_of(stack: str) -> str:
    """The stage that a collapsed stack belongs to."""
    for frame in reversed(stack.split(";")):
        for name, pattern in _STAGES:
            if pattern.search(frame):
                return name
    return REST


def shares(collapsed: str) -> dict[str, float]:
    """The share of each stage in the samples of the main thread, the largest first."""
    seen = Counter[str]()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        if _MAIN_THREAD in stack.partition(";")[0]:
            seen[stage_of(stack)] += int(count)
    return {name: count / seen.total() for name, count in seen.most_common()}
