"""Waiting for a part that is behind, for a bounded time."""

import asyncio
from collections.abc import Mapping
from time import monotonic

from pipeline.audit.differences import Findings, Kind

POLL_S = 0.3


def covers(reached: Mapping[int, int], wanted: Mapping[int, int]) -> bool:
    """Whether every partition has come to where it is wanted."""
    return all(reached.get(partition, 0) >= offset for partition, offset in wanted.items())


async def pause(deadline_s: float) -> bool:
    """Waits a moment; False when the time is up (``deadline_s`` on the monotonic clock)."""
    if monotonic() >= deadline_s:
        return False
    await asyncio.sleep(POLL_S)
    return True


def add_behind(
    findings: Findings, part: str, wanted: Mapping[int, int], reached: Mapping[int, int]
) -> None:
    """A difference for each partition that ``part`` has not taken in so far as wanted."""
    for partition, offset in sorted(wanted.items()):
        found = reached.get(partition, 0)
        if found < offset:
            findings.add(
                Kind.BEHIND,
                part,
                "next offset (not everything has been taken in)",
                offset,
                found,
                partition=partition,
                amounts={"offsets": found - offset},
            )
