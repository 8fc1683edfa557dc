"""One furnished deployment and one browser for all tests of the page and the API under it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests import ledger_fixture
from tests.page import chromium
from tests.page.site import Site
from tests.stream.conftest import migrated_database
from tests.wire.test_node_subscriber import INSTALL_TIMEOUT_S, node

AXE = "axe-core@4.10.3"
TIMEOUT_MS = 60_000

OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def site(
    kafka: str,
    ledger_server: ledger_fixture.LedgerAddress,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """Worker, sink and API with keys, budgets, names and some days of usage.

    Idle they take a fifth of a core, so they end with the last test of this folder.
    """
    for address in migrated_database(ledger_server):
        login = f"{address.user}:{address.password}"
        url = f"http://{login}@{address.host}:{address.port}/{address.database}"
        found = Site(kafka, url, tmp_path_factory.mktemp("site"))
        found.address = address
        found.start()
        try:
            found.furnish()
            yield found
        finally:
            found.stop()


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    """A real Chromium. Without one the tests fail in CI and are skipped elsewhere.

    While it is open Playwright's loop runs in this thread, and no other one can: so the site comes
    first, and the browser goes with its module.
    """
    program = chromium.find()
    if program is None:
        told = "no Chromium here; `python -m tests.page.chromium` installs it"
        (pytest.fail if chromium.is_ci() else pytest.skip)(told)
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=chromium.ARGUMENTS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which looks for what keeps people out."""
    folder: Path = tmp_path_factory.mktemp("axe")
    subprocess.run(
        [*node()[1], "install", "--no-audit", "--no-fund", "--silent", AXE],
        cwd=folder,
        check=True,
        timeout=INSTALL_TIMEOUT_S,
        capture_output=True,
    )
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.fixture
def open_page(site: Site, browser: Browser) -> Iterator[OpenPage]:
    """Opens the page with a key of the site, or without; whatever goes wrong in it fails the test.

    Nothing may be asked of any other server than the site's.
    """
    wrong: list[str] = []
    with ExitStack() as stack:

        def opened(path: str, key: str | None = "ada", **options: Any) -> Page:
            size = {"width": 1280, "height": 900}
            context = browser.new_context(**{"viewport": size, **options})
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(TIMEOUT_MS)
            page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            page.on("request", lambda request: _check_origin(request.url, site.url, wrong))
            page.on(
                "console",
                lambda message: (
                    wrong.append(message.text)
                    if "Content Security Policy" in message.text
                    else None
                ),
            )
            if key is not None:
                text = site.keys[key]
                page.add_init_script(f"sessionStorage.setItem('tallyport-key', '{text}')")
            page.goto(f"{site.url}/#/{path}")
            return page

        yield opened
    assert wrong == []


@pytest.fixture
def client(site: Site) -> Iterator[httpx.Client]:
    """The API, asked with the administrator's key."""
    with site.http() as found:
        yield found


def _check_origin(url: str, own: str, wrong: list[str]) -> None:
    if not url.startswith((own, "data:")):
        wrong.append(f"asked {url}")
