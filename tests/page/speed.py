"""How soon the page shows something: ``python -m tests.page.speed SITE.json``.

``SITE.json`` is what ``python -m tests.page.site`` printed. Milliseconds, of this machine as it is.
"""

import json
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.page import chromium

REPEATS = 20
LIMIT_S = 30.0
PAGES = ("overview", "ports", "ports/harbor-1", "users/u108", "organisation", "prices", "changes")
_FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
# Functions, as the page's policy forbids to evaluate expressions.
_IS_DRAWN = "() => document.querySelector('main h1') && !document.querySelector('.loading')"
_HAS_STATUS = "status => document.querySelector('.standing .badge')?.dataset.status === status"


def painting(opened: Callable[[], Page], url: str) -> dict[str, list[float]]:
    """First paint of a cold page, and when all it asked for is drawn."""
    first: list[float] = []
    whole: list[float] = []
    for path in PAGES:
        page = opened()
        began = time.perf_counter()
        page.goto(f"{url}/#/{path}")
        page.wait_for_function(_IS_DRAWN, polling="raf")
        whole.append(_since(began))
        first.append(page.evaluate(_FIRST_PAINT))
        page.context.close()
    return {"first paint": first, "page drawn": whole}


def biting(page: Page, url: str, service: httpx.Client) -> dict[str, list[float]]:
    """A cap set on the page until a gate refuses by it; events until their status is shown."""
    found: dict[str, list[float]] = {"cap set → gate": [], "event → status": []}
    for _ in range(REPEATS):
        port = f"speed-{uuid.uuid4().hex[:10]}"
        page.goto(f"{url}/#/ports/{port}?unit=tokens&period=month")
        expect(page.get_by_text("Live", exact=True)).to_be_visible()
        page.get_by_label("Soft cap (tokens)").fill("1000")
        page.get_by_label("Hard cap (tokens)").fill("2000")
        began = time.perf_counter()
        page.get_by_role("button", name="Set budget").click()
        while service.post("/v1/check", json={"port_id": port, "estimated_tokens": 2_001}).json()[
            "allowed"
        ]:
            assert time.perf_counter() - began < LIMIT_S, "the cap is not enforced"
        found["cap set → gate"].append(_since(began))
        page.wait_for_function(_HAS_STATUS, arg="ok", polling="raf")
        for tokens, status in ((1_500, "soft-cap-exceeded"), (500, "hard-cap-exceeded")):
            began = time.perf_counter()
            service.post("/v1/events", json=_event(port, tokens)).raise_for_status()
            page.wait_for_function(_HAS_STATUS, arg=status, polling="raf")
            found["event → status"].append(_since(began))
    return found


def _event(port: str, tokens: int) -> dict[str, Any]:
    return {
        "event_id": uuid.uuid4().hex,
        "occurred_at": datetime.now(UTC).isoformat(),
        "port_id": port,
        "provider": "openai",
        "model": "gpt-5",
        "input_tokens": tokens,
    }


def _since(began: float) -> float:
    return (time.perf_counter() - began) * 1_000


def measure(browser: Browser, url: str, keys: dict[str, str]) -> dict[str, list[float]]:
    """Everything, by what it is."""

    def opened() -> Page:
        page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.add_init_script(f"sessionStorage.setItem('tallyport-key', '{keys['ada']}')")
        return page

    headers = {"Authorization": f"Bearer {keys['service']}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as service:
        return {**painting(opened, url), **biting(opened(), url, service)}


def main() -> None:
    """A line for each figure: how many, median, 95th percentile, most."""
    site = json.loads(Path(sys.argv[1]).read_text())
    expect.set_options(timeout=LIMIT_S * 1_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(), args=chromium.ARGUMENTS
        )
        found = measure(browser, site["url"], site["keys"])
        browser.close()
    for name, values in found.items():
        values.sort()
        p95 = values[min(len(values) - 1, len(values) * 95 // 100)]
        print(f"{name:16} n {len(values):3}  median {median(values):6.0f}  p95 {p95:6.0f}  "
              f"most {values[-1]:6.0f} ms")  # fmt: skip


if __name__ == "__main__":
    main()
