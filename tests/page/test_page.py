"""The page in a real Chromium, over a real deployment."""

import json
import re
import uuid
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Page, Route, expect

from tests.page.conftest import OpenPage
from tests.page.site import Site

PAGES = [
    "overview", "ports", "ports/harbor-1", "ports/quay%7Cnorth%3A2", "users", "users/u108",
    "groups/team-claims", "organisation", "limits?port_id=harbor-1&user_id=u108", "prices",
    "rejected", "changes",
]  # fmt: skip
PHONE = {"width": 360, "height": 740}
SERIOUS = ("serious", "critical")
BEHIND_MS = 3_000
"""So far behind that the page does not find it when it looks for the first time."""


def settled(page: Page) -> None:
    """Waits until the page shows what it asked for."""
    expect(page.locator("main h1")).to_be_visible()
    expect(page.locator(".loading")).to_have_count(0)
    page.wait_for_load_state("load")


def serious(page: Page, axe: str, rules: str = "") -> list[str]:
    """What axe finds that keeps people out, by all of its rules or the one given."""
    page.evaluate(axe)
    only = {"runOnly": [rules]} if rules else {}
    options = {"resultTypes": ["violations"], **only}
    found: dict[str, Any] = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for one in found["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_open_to_everybody_and_fits_a_phone(
    open_page: OpenPage, axe: str, path: str
) -> None:
    page = open_page(path, color_scheme="light", bypass_csp=True)  # axe itself is put in
    settled(page)
    page.wait_for_timeout(300)  # what else the page asked for
    assert serious(page, axe) == []
    page.emulate_media(color_scheme="dark")
    assert serious(page, axe, "color-contrast") == []
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    headings = page.locator("h1")
    assert headings.count() == 1


def test_signing_in_and_out(open_page: OpenPage, site: Site, axe: str) -> None:
    page = open_page("", key=None, bypass_csp=True)
    key = page.get_by_label("API key")
    expect(key).to_be_focused()
    assert serious(page, axe) == []
    key.press("Enter")
    expect(page.get_by_text("Enter a key.")).to_be_visible()
    key.fill("tp_wrong")
    key.press("Enter")
    expect(page.get_by_text("This key is not in use.")).to_be_visible()
    expect(key).to_have_attribute("aria-invalid", "true")
    page.get_by_label("API key").fill(site.keys["service"])
    page.keyboard.press("Enter")
    expect(page.get_by_text("may send usage, but not see it")).to_be_visible()
    page.get_by_label("API key").fill(site.keys["ada"])
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert page.evaluate("Object.keys(localStorage).length") == 0
    assert page.context.cookies() == []
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_cap_is_set_and_bites_without_reload(
    open_page: OpenPage, site: Site, client: httpx.Client
) -> None:
    port = f"berth-{uuid.uuid4().hex[:8]}"
    page = open_page(f"ports/{port}?unit=tokens&period=month")
    page.evaluate("window.neverReloaded = true")
    status = page.locator(".standing .badge")
    expect(status).to_have_attribute("data-status", "disabled")
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    page.get_by_label("Soft cap (tokens)").fill("1,000")
    page.get_by_label("Hard cap (tokens)").fill("2000")
    page.get_by_role("button", name="Set budget").click()
    expect(status).to_have_attribute("data-status", "ok")
    site.send(port_id=port, input_tokens=1_500)
    expect(status).to_have_attribute("data-status", "soft-cap-exceeded")
    expect(status).to_have_text("Warned")
    assert client.post("/v1/check", json={"port_id": port}).json()["allowed"]
    with site.paused("sink"):
        site.send(port_id=port, input_tokens=500, feature="ocr")
        expect(status).to_have_attribute("data-status", "hard-cap-exceeded")
        expect(page.locator("#announcer")).to_have_text("Budget: Blocked")
        expect(page.locator(".used strong")).to_have_text("2,000 tokens")

        def verdict() -> tuple[bool, str]:
            told = client.post("/v1/check", json={"port_id": port}).json()
            return told["allowed"], told["reason"]

        site.wait(lambda: verdict() == (False, "hard-cap-exceeded"))  # stale where a beat is late
        page.wait_for_timeout(BEHIND_MS)
    # The ledger is looked at until it has caught up.
    expect(page.get_by_role("row", name=re.compile("ocr"))).to_contain_text("500")
    # The switch lets calls through again.
    page.get_by_label("Budget is on").uncheck()
    page.get_by_role("button", name="Save", exact=True).click()
    expect(status).to_have_attribute("data-status", "disabled")
    assert client.post("/v1/check", json={"port_id": port}).json()["allowed"]
    assert page.evaluate("window.neverReloaded") is True
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Remove budget").click()
    expect(page.get_by_role("button", name="Set budget")).to_be_visible()
    assert client.get(f"/v1/budgets?scope=port:{port}").json()["policies"] == []


@pytest.mark.parametrize(
    ("unit", "label", "typed", "message"),
    [
        ("tokens", "Hard cap", "-5", "Must not be negative."),
        ("tokens", "Hard cap", "12.5", "Must be a whole number of tokens."),
        ("tokens", "Soft cap", "many", "Must be a whole number of tokens."),
        ("cost", "Hard cap", "-0.01", "Must not be negative."),
        ("cost", "Hard cap", "0.1234567891", "at most nine decimals"),
        ("cost", "Hard cap", "1e3", "Must be an amount"),
        ("cost", "Hard cap", "9999999999999", "Must be an amount"),
        ("tokens", "Warn at", "101", "from 0 to 100"),
    ],
)
def test_wrong_input_is_told_beside_its_field(
    open_page: OpenPage, unit: str, label: str, typed: str, message: str
) -> None:
    page = open_page(f"ports/wrong?unit={unit}&period=week")
    field = page.get_by_label(re.compile(f"^{label}"))
    field.fill(typed)
    page.get_by_role("button", name="Set budget").click()
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    told = [page.locator(f"#{one}").inner_text()
            for one in (field.get_attribute("aria-describedby") or "").split()]  # fmt: skip
    assert any(message in text for text in told), told
    expect(page.get_by_role("button", name="Set budget")).to_be_enabled()


def test_a_soft_cap_above_the_hard_cap(open_page: OpenPage) -> None:
    page = open_page("ports/wrong?unit=cost&period=week")
    page.get_by_label("Soft cap (USD)").fill("10.01")
    page.get_by_label("Hard cap (USD)").fill("10")
    page.get_by_role("button", name="Set budget").click()
    expect(page.get_by_text("Must not be above the hard cap.")).to_be_visible()


def test_who_is_told_is_set_with_the_cap(
    open_page: OpenPage, site: Site, client: httpx.Client
) -> None:
    path = "/v1/budgets/port:told/tokens/week"
    page = open_page("ports/told?unit=tokens&period=week")
    told = page.get_by_label("Who is told")
    # Nobody is, by the settings of this deployment, and the field says so.
    hints = [page.locator(f"#{one}").inner_text()
             for one in (told.get_attribute("aria-describedby") or "").split()]  # fmt: skip
    assert "Empty: nobody" in hints[0]
    assert "No mail can be sent" in hints[0]
    page.get_by_label("Hard cap (tokens)").fill("10")
    for wrong in ("nobody", "a@b@c", "ftp://example.com", "ada@example.com, javascript:x"):
        told.fill(wrong)
        page.get_by_role("button", name="Set budget").click()
        expect(page.get_by_text("Must be mail or https: addresses")).to_be_visible()
        expect(told).to_be_focused()
    hook = "https://example.com/hook?a=1,2"
    told.fill(f"ada@example.com,bob@example.com; {hook}")
    page.get_by_role("button", name="Set budget").click()
    expect(page.get_by_role("button", name="Remove budget")).to_be_visible()
    stored = ["mailto:ada@example.com", "mailto:bob@example.com", hook]
    assert client.get(path).json()["notify"] == stored
    expect(told).to_have_value(f"ada@example.com, bob@example.com, {hook}")
    # What is shown is what is kept when something else is saved.
    page.get_by_label("Hard cap (tokens)").fill("20")
    page.get_by_role("button", name="Save", exact=True).press("Enter")
    site.wait(lambda: client.get(path).json()["hard_cap"] == 20)
    assert client.get(path).json()["notify"] == stored
    # Who works by keyboard goes on from there, although the form was drawn anew.
    expect(page.get_by_role("button", name="Save", exact=True)).to_be_enabled()
    expect(page.get_by_role("button", name="Save", exact=True)).to_be_focused()
    told.fill("")
    page.get_by_role("button", name="Save", exact=True).click()
    site.wait(lambda: client.get(path).json()["notify"] == [])


def test_what_the_server_refuses_is_told_beside_its_field_too(open_page: OpenPage) -> None:
    page = open_page("ports/wrong")
    page.get_by_label("Mail address").fill("nobody at all")
    page.get_by_role("button", name="Save name").click()
    expect(page.get_by_text("must be one mail address")).to_be_visible()
    expect(page.get_by_label("Mail address")).to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize("answers", [True, False])
def test_a_name_can_only_be_changed_once_it_was_read(open_page: OpenPage, answers: bool) -> None:
    page = open_page("overview")
    asked: list[Route] = []

    def hold(route: Route) -> None:
        asked.append(route)
        if len(asked) == 1:  # the page's title asks first
            route.continue_()

    page.route("**/v1/names?scope=*", hold)
    page.evaluate("location.hash = '#/ports/late'")
    mail, save = page.get_by_label("Mail address"), page.get_by_role("button", name="Save name")
    expect(mail).to_be_disabled()
    expect(save).to_be_disabled()
    for _ in range(600):
        if len(asked) > 1:
            break
        page.wait_for_timeout(100)
    if answers:
        asked[-1].continue_()
        expect(save).to_be_enabled()
        mail.fill("somebody@example.com")
        expect(mail).to_have_value("somebody@example.com")
    else:
        asked[-1].abort()
        expect(page.get_by_text("The name cannot be read")).to_be_visible()
        expect(save).to_be_disabled()


def test_somebody_else_was_faster(open_page: OpenPage, client: httpx.Client) -> None:
    path = "/v1/budgets/port:contested/cost/week"
    client.put(path, json={"hard_cap": "10"}).raise_for_status()
    page = open_page("ports/contested?unit=cost&period=week")
    hard = page.get_by_label("Hard cap (USD)")
    expect(hard).to_have_value("10")
    client.put(path, json={"hard_cap": "20"}).raise_for_status()
    hard.fill("30")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("Somebody else changed this budget")).to_be_visible()
    expect(hard).to_have_value("30")
    assert client.get(path).json()["hard_cap"] == "20"
    page.get_by_role("button", name="Load theirs").click()
    expect(page.get_by_label("Hard cap (USD)")).to_have_value("20")


def test_a_reader_is_offered_nothing_to_change_and_refused_it(open_page: OpenPage) -> None:
    page = open_page("ports/harbor-1", key="rita")
    for path in ("ports/harbor-1", "users/u108", "organisation", "prices"):
        page.evaluate("path => { location.hash = `#/${path}`; }", path)
        settled(page)
        expect(page.locator(".card").first).to_be_visible()
        for name in ("Save", "Set budget", "Remove budget", "Save name", "Publish the rate",
                     "Add a rate"):  # fmt: skip
            expect(page.get_by_role("button", name=name, exact=True)).to_have_count(0)
        refused = page.evaluate(
            """async () => (await fetch('/v1/budgets/port:harbor-1/cost/month', {
                method: 'PATCH', body: '{"hard_cap": "1"}', headers: {
                'Content-Type': 'application/json',
                Authorization: 'Bearer ' + sessionStorage.getItem('tallyport-key')}})).status"""
        )
        assert refused == 403


def test_a_key_of_one_port_is_shown_that_port(open_page: OpenPage) -> None:
    page = open_page("ports", key="harbor")
    expect(page.get_by_role("row")).to_have_count(2)
    expect(page.get_by_role("link", name="Organisation")).to_have_count(0)
    expect(page.get_by_role("link", name="Budget for every port")).to_have_count(0)
    page.goto(page.url.replace("#/ports", "#/overview"))
    expect(page.locator(".parts li")).to_have_count(5)
    page.goto(page.url.replace("#/overview", "#/ports/harbor-1"))
    expect(page.get_by_text("this key is for other ports")).to_be_visible()
    page.goto(page.url.replace("harbor-1", "harbor-7"))
    expect(page.get_by_role("button", name=re.compile("^(Save|Set budget)$"))).to_be_visible()


def test_html_in_names_does_not_run(open_page: OpenPage, client: httpx.Client) -> None:
    port = "<img src=x onerror=document.title=7>"
    page = open_page("ports?search=Ship")
    shown = '<img src=x onerror="document.title=1"><b>Ship & Co</b>'
    expect(page.get_by_text(shown)).to_be_visible()
    assert page.locator("main img").count() == 0
    page.goto(f"{page.url.split('#')[0]}#/ports/{quote(port)}")
    expect(page.locator("h1")).to_contain_text("<img src=x onerror=document.title=7>")
    page.get_by_label("Display name").fill("<script>document.title = 9</script>")
    page.get_by_role("button", name="Save name").click()
    expect(page.get_by_text("Saved.", exact=True)).to_be_visible()
    expect(page.locator("h1")).to_contain_text("<script>document.title = 9</script>")
    assert page.title() not in ("1", "7", "9")
    page.goto(f"{page.url.split('#')[0]}#/changes")
    expect(page.get_by_role("table")).to_be_visible()
    assert page.title() not in ("1", "7", "9")
    assert client.delete(f"/v1/names/{quote(f'port:{port}')}").status_code == 204


def test_the_files_bring_nothing_from_elsewhere(client: httpx.Client) -> None:
    start = client.get("/")
    assert start.headers["content-type"].startswith("text/html")
    names = re.findall(r'"/page/([\w.]+)"', start.text)
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200, name
        names += re.findall(r'from "\./([\w.]+)"', answer.text)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        again = client.get(f"/page/{name}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        if name.endswith(".js"):
            parsing = r"innerHTML|outerHTML|insertAdjacentHTML|eval\("
            assert not re.search(parsing, answer.text), name
            assert "https://" not in answer.text, name
    assert len(seen) > 15
    assert not re.search(r"<script(?! type=\"module\" src=\"/page/)|\son\w+=|\sstyle=", start.text)
    assert client.get("/page/..%2Fapi.py").status_code == 404
    assert client.get("/page/nothing.js").status_code == 404


def test_it_works_by_keyboard(open_page: OpenPage) -> None:
    page = open_page("overview")
    settled(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    for _ in range(3):
        page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Ports", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Ports")).to_be_visible()
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Search ports").focus()
    page.keyboard.type("customs")
    expect(page.get_by_role("row")).to_have_count(2)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Customs House")).to_be_visible()


def test_effective_limits(open_page: OpenPage) -> None:
    page = open_page("limits?port_id=harbor-1&user_id=u108&organization_id=northwind")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(6)
    for text in ("everything", "North Quay", "Northwind Traders", "Ada Lovelace"):
        expect(page.get_by_role("table").get_by_text(text).first).to_be_visible()
    page.get_by_label("Estimated tokens").fill("999999999999")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".verdict")).to_contain_text("The call is refused")
    page.get_by_label("Estimated tokens").fill("-1")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_text("Must be a whole number of tokens.")).to_be_visible()


def test_a_rate_is_added_for_a_model_without_one(open_page: OpenPage, client: httpx.Client) -> None:
    page = open_page("prices")
    page.get_by_role("button", name="Add a rate for frontier-x1").click()
    expect(page.get_by_role("textbox", name="Model").first).to_have_value("frontier-x1")
    page.get_by_role("button", name="Publish the rate").click()
    expect(page.get_by_text("At least one price is needed.")).to_be_visible()
    page.get_by_label("Input (USD a million)", exact=True).fill("-1")
    page.get_by_role("button", name="Publish the rate").click()
    expect(page.get_by_text("not negative")).to_be_visible()
    page.get_by_label("Input (USD a million)", exact=True).fill("2.5")
    page.get_by_label("Output (USD a million)", exact=True).fill("10")
    page.get_by_role("button", name="Publish the rate").click()
    expect(page.get_by_text("for acme/frontier-x1 is published")).to_be_visible()
    expect(page.get_by_role("button", name="Show what it would change")).to_be_visible()
    expect(page.get_by_role("table", name="Rates that were set")).to_contain_text("frontier-x1")
    rates = client.get("/v1/prices").json()["rates"]
    assert rates[-1]["rate"]["per_million"] == {"input_tokens": "2.5", "output_tokens": "10"}
    page.get_by_role("textbox", name="Provider").last.fill("openai")
    page.get_by_role("textbox", name="Model").last.fill("gpt-5")
    page.get_by_role("button", name="Explain").click()
    expect(page.locator(".explanation")).to_contain_text("the built-in book lists openai/gpt-5")


def test_a_rate_prices_whatever_a_model_is_counted_by(
    open_page: OpenPage, site: Site, client: httpx.Client
) -> None:
    model = f"voice-{uuid.uuid4().hex[:8]}"
    page = open_page("prices")
    page.get_by_role("textbox", name="Provider").first.fill("acme")
    page.get_by_role("textbox", name="Model").first.fill(model)
    page.get_by_text("Other prices").click()
    seconds = page.get_by_label("Audio seconds (USD each)")
    seconds.fill("a lot")
    page.get_by_text("Other prices").click()
    page.get_by_role("button", name="Publish the rate").click()
    expect(seconds).to_be_focused()  # and so its part is open again
    expect(page.get_by_text("Must be an amount such as 0.25")).to_be_visible()
    seconds.fill("0.0001")
    page.get_by_label("Characters (USD a million)").fill("15")
    page.get_by_label("Images (USD each)").fill("0.04")
    page.get_by_label("Holds").select_option("back")
    page.get_by_role("button", name="Publish the rate").click()
    expect(page.get_by_text(f"for acme/{model} is published")).to_be_visible()
    [rate] = [one["rate"] for one in client.get("/v1/prices").json()["rates"]
              if one["rate"].get("model") == model]  # fmt: skip
    assert rate["per_million"] == {"characters": "15"}
    assert (rate["per_second"], rate["per_unit"]) == (
        {"audio_seconds": "0.0001"},
        {"images": "0.04"},
    )
    costs: list[str | None] = []

    def is_priced() -> bool:
        """A call's cost; the worker may hear of the rate later than the API."""
        port = f"booth-{uuid.uuid4().hex[:8]}"
        site.send(
            port_id=port, provider="acme", model=model, kind="tts", characters=2_000_000, images=1
        )
        site.wait(lambda: len(client.get(f"/v1/usage?port_id={port}").json()["rows"]) == 1)
        [row] = client.get(f"/v1/usage?port_id={port}").json()["rows"]
        costs.append(row["cost"])
        return costs[-1] is not None

    site.wait(is_priced)
    assert costs[-1] == "30.04"


def test_a_budget_for_every_port(open_page: OpenPage, client: httpx.Client, axe: str) -> None:
    page = open_page("ports", bypass_csp=True)
    page.get_by_role("link", name="Budget for every port").click()
    expect(page.get_by_role("heading", name="Every port")).to_be_visible()
    page.get_by_label("Unit").select_option("cost")
    expect(page.get_by_label("Hard cap (USD)")).to_be_visible()
    page.get_by_label("Period").focus()
    page.get_by_label("Period").select_option("week")
    expect(page.locator(".standing .badge")).to_have_text("No budget")
    expect(page.get_by_label("Hard cap (USD)")).to_be_enabled()
    expect(page.get_by_label("Period")).to_be_focused()
    page.get_by_label("Hard cap (USD)").fill("100000")
    page.get_by_role("button", name="Set budget").click()
    expect(page.locator(".standing .badge")).to_have_text("Within limits")
    assert serious(page, axe) == []
    assert client.get("/v1/budgets/port:*/cost/week").json()["hard_cap"] == "100000"
    page.goto(page.url.split("#")[0] + "#/changes")
    page.get_by_role("link", name="every port").first.click()
    expect(page.get_by_role("heading", name="Every port")).to_be_visible()
    client.delete("/v1/budgets/port:*/cost/week").raise_for_status()


def test_on_a_phone_what_matters_is_in_sight(open_page: OpenPage, site: Site) -> None:
    model = f"pocket-{uuid.uuid4().hex[:8]}"
    site.send(port_id="pocket", provider="acme", model=model, input_tokens=1)
    page = open_page("prices", viewport=PHONE)
    button = page.get_by_role("button", name=f"Add a rate for {model}")
    site.wait(lambda: page.reload() is not None and settled(page) is None and button.count() == 1)
    for wanted in (button, page.get_by_role("button", name=f"Price again calls of {model}")):
        box = wanted.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= PHONE["width"]
    page.goto(page.url.replace("#/prices", "#/ports/harbor-1"))
    cost = page.get_by_role("columnheader", name="Cost")
    expect(cost).to_be_visible()
    box = cost.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= PHONE["width"]


def test_the_overview_says_whether_anybody_is_told(open_page: OpenPage) -> None:
    page = open_page("overview")
    parts = page.locator(".parts li")
    expect(parts).to_have_count(5)
    expect(parts.last).to_contain_text("Alerts")
    expect(parts.last).to_contain_text("nobody is told")


def test_budget_records_that_are_not_used_are_told(
    open_page: OpenPage, site: Site, client: httpx.Client, axe: str
) -> None:
    page = open_page("overview", bypass_csp=True)
    settled(page)
    title = "Budget records that are not used"
    expect(page.get_by_role("heading", name=title)).to_have_count(0)
    path = "/v1/budgets/port:garbled/cost/day"
    client.put(path, json={"hard_cap": "5"}).raise_for_status()
    body = {"scope": "port:garbled", "unit": "cost", "period": "day", "hard_cap": "<b>-1</b>"}
    site.write_policy("port:garbled|cost|day", json.dumps(body).encode())
    site.wait(lambda: len(client.get("/v1/budgets").json()["invalid"]) == 1)
    page.reload()
    row = page.get_by_role("table", name=title).get_by_role("row").last
    expect(row).to_contain_text("port:garbled|cost|day")
    expect(row).to_contain_text("hard_cap: ")
    expect(row.get_by_role("link", name="garbled")).to_be_visible()
    assert serious(page, axe) == []
    # The last valid one stays in force; a valid one heals it.
    assert client.get(path).json()["hard_cap"] == "5"
    client.put(path, json={"hard_cap": "6"}).raise_for_status()
    page.reload()
    settled(page)
    expect(page.get_by_role("heading", name=title)).to_have_count(0)
    client.delete(path).raise_for_status()


def test_users_page_through_their_events(open_page: OpenPage, client: httpx.Client) -> None:
    user = client.get("/v1/usage/users?limit=1").json()["users"][0]["user_id"]
    total = client.get(f"/v1/usage/users/{user}?limit=1").json()["total"]
    page = open_page(f"users/{user}")
    expect(page.get_by_text(f"1–25 of {total} entries")).to_be_visible()
    first = page.locator("tbody tr").first.inner_text()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text(f"26–{min(50, total)} of {total} entries")).to_be_visible()
    assert page.locator("tbody tr").first.inner_text() != first
    page.get_by_role("button", name="Previous").click()
    expect(page.get_by_text(f"1–25 of {total} entries")).to_be_visible()


def test_rejected_records_by_reason(open_page: OpenPage) -> None:
    page = open_page("overview")
    page.get_by_role("link", name="malformed-json").click()
    expect(page.get_by_label("Shown reason")).to_have_value("malformed-json")
    expect(page.get_by_label("Reason", exact=True)).to_have_value("malformed-json")
    record = page.locator(".records li").first
    expect(record).to_contain_text("malformed-json")
    record.get_by_text("The record").click()
    expect(record.locator("pre")).to_be_visible()


def test_a_model_without_a_price_gets_one_and_what_is_booked_too(
    open_page: OpenPage, site: Site, client: httpx.Client, axe: str
) -> None:
    name = uuid.uuid4().hex[:8]
    model, port = f"frontier-{name}", f"pier-{name}"
    for _ in range(3):
        site.send(port_id=port, provider="acme", model=model, input_tokens=2_000_000)
    unpriced = f"/v1/usage/unpriced?port_id={port}"
    site.wait(lambda: sum_of(client, unpriced) == 3)
    page = open_page("prices", bypass_csp=True)
    page.get_by_role("button", name=f"Add a rate for {model}").click()
    page.get_by_label(re.compile("^Input")).fill("0.25")
    page.get_by_label("Holds").select_option("back")
    page.get_by_role("button", name="Publish the rate").click()
    page.get_by_role("button", name="Show what it would change").click()
    run = page.locator(".run")
    expect(run).to_have_attribute("data-state", "done")
    expect(run).to_contain_text("3 calls would change. Cost $0.00 → $1.50 (+$1.50)")
    since = page.get_by_label("From (UTC)").input_value()
    expect(run.get_by_role("row", name=re.compile(port))).to_contain_text("3 → 0")
    assert sum_of(client, unpriced) == 3
    assert serious(page, axe) == []
    run.get_by_role("button", name="Reprice these calls").click()
    expect(run).to_contain_text("3 calls changed, and are in the ledger.")
    expect(page.locator("#announcer")).to_have_text("It is done.")
    assert sum_of(client, unpriced) == 0
    [row] = client.get(f"/v1/usage?port_id={port}").json()["rows"]
    assert (row["cost"], row["requests"]) == ("1.5", 3)
    # What was done is shown again after a reload, and looking again finds nothing left to do.
    page.reload()
    expect(page.locator(".run")).to_contain_text("3 calls changed")
    page.get_by_role("textbox", name="Model").nth(1).fill(model)
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".run")).to_contain_text("Nothing would change. Left as they are: 3")
    expect(page.get_by_role("button", name="Reprice these calls")).to_have_count(0)
    # A rate may be named, also one that is for something else; what it cannot price is left.
    rate = client.get("/v1/prices").json()["rates"][-1]["rate"]["rate_id"]
    named = page.get_by_label("Rate", exact=True)
    expect(page.locator(f"datalist option[value='{rate}']")).to_have_count(1)
    named.fill("no-such-rate")
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".run")).to_contain_text("Left as they are: 3 that the rate cannot price")
    named.fill(rate)
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".run")).to_contain_text(f"rate id {rate}")
    expect(page.locator(".run")).to_contain_text("Left as they are: 3 priced right")
    # Who did it, and what it came to, is in the log.
    page.goto(page.url.replace("#/prices", "#/changes?what=run"))
    began, came = (page.locator("tbody tr").nth(at) for at in (1, 0))
    for row in (began, came):
        expect(row).to_contain_text("key:ada")
        expect(row).to_contain_text("pricing booked calls again")
    expect(began).to_contain_text(f"began from {since}")
    expect(began).to_contain_text(f"model {model}")
    expect(came).to_contain_text("done sent 3 cost $0.00 → $1.50")
    assert serious(page, axe) == []


def sum_of(client: httpx.Client, unpriced: str) -> int:
    models = client.get(unpriced).raise_for_status().json()["models"]
    return sum(one["unpriced_requests"] for one in models)


def test_wrong_dates_of_a_reprice_are_told_beside_their_field(open_page: OpenPage) -> None:
    page = open_page("prices")
    start = page.get_by_label("From (UTC)")
    for typed, told in (
        ("", "Is needed."),
        ("yesterday", "must be a date"),
        ("2099-01-01", "must lie before to"),
    ):
        start.fill(typed)
        page.get_by_role("button", name="Show what would change").click()
        expect(page.get_by_text(told)).to_be_visible()
        expect(start).to_have_attribute("aria-invalid", "true")
        expect(start).to_be_focused()


def test_rejected_records_are_sent_again(
    open_page: OpenPage, site: Site, client: httpx.Client, axe: str
) -> None:
    port = f"gate-{uuid.uuid4().hex[:8]}"
    site.reject(*(json.dumps({"port_id": port, "event_id": str(n)}).encode() for n in range(2)))
    site.wait(lambda: rejected_of(client, port) == 2)
    page = open_page("rejected?reason=missing-field", bypass_csp=True)
    page.get_by_label("Port").fill(port)
    page.get_by_role("button", name="Show what would be sent").click()
    run = page.locator(".run")
    expect(run).to_contain_text("2 records would be sent.")
    expect(run).to_contain_text("2 to be rejected again: missing-field")
    assert serious(page, axe) == []
    run.get_by_role("button", name="Send these records again").click()
    expect(run).to_contain_text("2 records were sent.")
    site.wait(lambda: rejected_of(client, port) == 4)
    page.get_by_role("button", name="Show what would be sent").click()
    expect(run).to_contain_text("0 records would be sent.")
    expect(run).to_contain_text("Left out: 4 sent again before.")
    expect(run.get_by_role("button", name="Send these records again")).to_have_count(0)


def rejected_of(client: httpx.Client, port: str) -> int:
    records = client.get("/v1/rejected?limit=200").raise_for_status().json()["records"]
    return sum(one["port_id"] == port for one in records)


def test_a_reader_is_not_offered_to_start_anything(open_page: OpenPage) -> None:
    page = open_page("prices", key="rita")
    for path, name in (
        ("prices", "Show what would change"),
        ("rejected", "Show what would be sent"),
    ):
        page.evaluate("path => { location.hash = `#/${path}`; }", path)
        settled(page)
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        expect(page.get_by_role("button", name=name)).to_have_count(0)
        expect(page.get_by_role("button", name=re.compile("^Price again"))).to_have_count(0)
        expect(page.locator(".run")).to_have_count(0)
    for path in ("reprices", "replays"):
        refused = page.evaluate(
            """async (path) => (await fetch(`/v1/${path}`, {method: 'POST', body: '{}', headers: {
                'Content-Type': 'application/json',
                Authorization: 'Bearer ' + sessionStorage.getItem('tallyport-key')}})).status""",
            path,
        )
        assert refused == 403


def test_a_key_of_one_port_prices_and_sends_again_only_its_own(
    open_page: OpenPage, site: Site, client: httpx.Client
) -> None:
    site.reject(*(json.dumps({"port_id": f"harbor-{n}", "event_id": "1"}).encode() for n in (7, 8)))
    site.wait(lambda: rejected_of(client, "harbor-8") >= 1)
    page = open_page("rejected", key="harbor")
    expect(page.get_by_label("Port", exact=True)).to_have_value("harbor-7")
    page.get_by_role("button", name="Show what would be sent").click()
    expect(page.locator(".run")).to_have_attribute("data-state", "done")
    with site.http("harbor") as own:
        newest = own.get("/v1/runs").json()["runs"][0]
    assert newest["result"]["chosen"] >= 1
    page.goto(page.url.replace("#/rejected", "#/prices"))
    expect(page.get_by_role("button", name="Publish the rate")).to_have_count(0)
    page.get_by_role("button", name="Show what would change").click()
    expect(page.locator(".run")).to_have_attribute("data-state", "done")


def test_ten_thousand_ports(open_page: OpenPage, site: Site, client: httpx.Client) -> None:
    at = client.get("/v1/usage/all").json()["period_start"]
    lines = [
        json.dumps({
            "event_id": f"many-{number}", "occurred_at": at, "port_id": f"many-{number:05}",
            "provider": "openai", "model": "gpt-5", "input_tokens": 1_000,
        })
        for number in range(10_000)
    ]  # fmt: skip
    with site.http("service") as sender:
        for first in range(0, len(lines), 1_000):
            kind = {"Content-Type": "application/x-ndjson"}
            body = "\n".join(lines[first : first + 1_000])
            sender.post("/v1/events", content=body, headers=kind).raise_for_status()
    site.wait(lambda: client.get("/v1/usage/ports?limit=1").json()["total"] >= 10_012)
    page = open_page("ports")
    expect(page.get_by_text(re.compile(r"1–25 of 10,0\d\d"))).to_be_visible()
    assert page.locator("tbody tr").count() == 25
    page.get_by_label("Search ports").fill("many-09876")
    expect(page.get_by_text("1–1 of 1")).to_be_visible()
    page.get_by_role("link", name="many-09876").click()
    expect(page.locator(".used strong")).to_have_text("1,000 tokens")
