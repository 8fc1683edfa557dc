"""The API over the year of events: what a page and a report ask for, and how long it takes."""

import asyncio
import time
import urllib.request
from datetime import UTC, datetime, timedelta

from pipeline.bench.ledger_queries import PORT, USER
from pipeline.core.errors import TallyportError
from pipeline.ops.deployment import Deployment, address_in
from pipeline.stream.topics import create_or_check

REPEATS = 20
ANSWER_TIMEOUT_S = 60.0
STOP_S = 30.0


def asked_paths(days: int) -> list[str]:
    """Every route that reads the ledger, over all of ``days`` where it takes a range."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    year = f"from={tomorrow - timedelta(days=days)}T00:00:00Z&to={tomorrow}T00:00:00Z"
    return [
        "/v1/usage/summary",
        f"/v1/usage?{year}&group_by=month&group_by=model",
        f"/v1/usage?{year}&group_by=day&port_id={PORT}",
        f"/v1/usage?{year}&group_by=user&limit=1000",
        "/v1/usage/ports",
        f"/v1/usage/ports/{PORT}",
        "/v1/usage/users",
        f"/v1/usage/users/{USER}",
        "/v1/usage/groups",
        "/v1/usage/groups/group-7",
        "/v1/usage/organizations",
        "/v1/usage/organizations/org-7",
        "/v1/usage/all",
        "/v1/usage/unpriced",
    ]


async def answers(deployment: Deployment, days: int) -> dict[str, list[float]]:
    """Milliseconds of each answer, by path without its range; one before them is not counted."""
    await create_or_check(deployment.settings)
    api = deployment.launch("api")
    try:
        root = address_in(await deployment.wait_ready("api"), "api")
        found: dict[str, list[float]] = {}
        for path in asked_paths(days):
            await asyncio.to_thread(_millis, root + path)
            millis = [await asyncio.to_thread(_millis, root + path) for _ in range(REPEATS)]
            found[_named(path)] = millis
        return found
    finally:
        api.stop(STOP_S)


def _named(path: str) -> str:
    route, _, query = path.partition("?")
    grouped = [part for part in query.split("&") if part and not part.startswith(("from", "to"))]
    return f"{route}?{'&'.join(grouped)}" if grouped else route


def _millis(url: str) -> float:
    started_s = time.perf_counter()
    with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as answer:
        if answer.status != 200 or not answer.read():
            raise TallyportError(f"{url} answered with status {answer.status}")
    return (time.perf_counter() - started_s) * 1000
