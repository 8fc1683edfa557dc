"""The pictures in ``docs/pictures``: ``python -m tests.page.pictures SITE.json``.

``SITE.json`` is what ``python -m tests.page.site`` printed. ``pngquant``, where it is installed,
makes the files small.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

from tests.page import chromium

FOLDER = Path(__file__).parent.parent.parent / "docs" / "pictures"
WIDE: dict[str, Any] = {"viewport": {"width": 1200, "height": 860}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2}
DARK = {"color_scheme": "dark"}
PICTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "overview": ("overview", WIDE),
    "overview-dark": ("overview", WIDE | DARK),
    "overview-phone": ("overview", PHONE),
    "ports": ("ports", WIDE),
    "port": ("ports/harbor-1", WIDE),
    "port-phone": ("ports/harbor-1", PHONE | DARK),
    "users": ("users", WIDE),
    "user": ("users/u108", WIDE),
    "groups": ("groups", WIDE),
    "organisation": ("organisation", WIDE),
    "limits": ("limits?port_id=harbor-1&user_id=u108&organization_id=northwind", WIDE),
    "prices": ("prices", WIDE),
    "rejected": ("rejected", WIDE),
    "changes": ("changes", WIDE),
    "signin": ("", WIDE),
}
TALLEST = {"overview": 1420, "port": 1500, "organisation": 1250, "prices": 1900, "rejected": 1100}
"""Pictures that may be taller than the window, and how tall."""


def take(browser: Browser, url: str, key: str, name: str) -> None:
    """One picture of one page."""
    path, options = PICTURES[name]
    context = browser.new_context(**options)
    page = context.new_page()
    if name != "signin":
        page.add_init_script(f"sessionStorage.setItem('tallyport-key', '{key}')")
    page.goto(f"{url}/#/{path}")
    expect(page.locator("main h1")).to_be_visible(timeout=30_000)
    expect(page.locator(".loading")).to_have_count(0)
    page.wait_for_timeout(1_500)
    size = options["viewport"]
    height = min(
        TALLEST.get(name, size["height"]), page.evaluate("document.documentElement.scrollHeight")
    )
    page.set_viewport_size({"width": size["width"], "height": height})
    page.wait_for_timeout(300)
    target = FOLDER / f"{name}.png"
    page.screenshot(path=target)
    context.close()
    if (pngquant := shutil.which("pngquant")) is not None:
        words = [pngquant, "--force", "--strip", "--output", str(target), "64", str(target)]
        subprocess.run(words, check=True, timeout=60)


def main() -> None:
    """Every picture."""
    site = json.loads(Path(sys.argv[1]).read_text())
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.find(), args=chromium.ARGUMENTS
        )
        for name in sys.argv[2:] or PICTURES:
            take(browser, site["url"], site["keys"]["ada"], name)
            print(name, (FOLDER / f"{name}.png").stat().st_size)
        browser.close()


if __name__ == "__main__":
    main()
