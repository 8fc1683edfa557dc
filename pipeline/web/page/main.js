// The frame: signing in, the navigation, and which page the address asks for.

import { Refusal, get, keep, mayChange, seesAll, session } from "./api.js";
import { fill, h, svg } from "./dom.js";
import { button, field, head, notice } from "./widgets.js";
import * as overview from "./overview.js";
import * as ids from "./ids.js";
import * as budget from "./budget.js";
import * as user from "./user.js";
import * as organisation from "./organisation.js";
import * as limits from "./limits.js";
import * as prices from "./prices.js";
import * as rejected from "./rejected.js";
import * as changes from "./changes.js";

const content = document.getElementById("content");
const masthead = document.getElementById("masthead");

const NAVIGATION = [
  ["overview", "Overview"], ["ports", "Ports"], ["users", "Users"], ["groups", "Groups"],
  ["organisation", "Organisation"], ["limits", "Limits"], ["prices", "Prices"],
  ["rejected", "Rejected"], ["changes", "Changes"],
];

// Each page gets {place, parts, signal} and draws into `place`; `signal` ends with the page.
const PAGES = {
  overview: overview.show,
  ports: (page) => (page.parts.length ? budget.show(page, "port") : ids.show(page, "port")),
  groups: (page) => (page.parts.length ? budget.show(page, "group") : ids.show(page, "group")),
  organisations: (page) => (page.parts.length ? budget.show(page, "org") : ids.show(page, "org")),
  users: (page) => (page.parts.length ? user.show(page) : ids.show(page, "user")),
  organisation: organisation.show,
  limits: limits.show,
  prices: prices.show,
  rejected: rejected.show,
  changes: changes.show,
};

let current = null;

async function start() {
  try {
    session.whoami = await get("/v1/whoami");
  } catch (error) {
    if (error.status === 401) return signIn(session.key ? "This key is not in use." : null);
    return fill(content, head("tallyport"), notice("bad", `${error.message}`), button("Try again", { onclick: start }));
  }
  if (session.whoami.role === "ingest") {
    keep(null);
    return signIn("That key may send usage, but not see it. Use one with the role read or admin.");
  }
  drawMasthead();
  route();
}

function signIn(message) {
  current?.abort();
  session.whoami = null;
  fill(masthead, brand());
  const key = field("API key", h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true }),
    "Kept in this tab until it is closed, and sent to this server only.");
  const form = h("form", {
    className: "card signin",
    novalidate: true,
    onsubmit: (event) => {
      event.preventDefault();
      const text = key.input.value.trim();
      if (!text) { key.fail("Enter a key."); key.input.focus(); return; }
      keep(text);
      start();
    },
  }, h("h1", {}, "Sign in"), key.node, h("button", { type: "submit", className: "primary" }, "Sign in"),
  h("p", { className: "hint" }, "An administrator makes keys with ", h("code", {}, "tallyport keys create NAME --role read"), "."));
  fill(content, form);
  document.title = "Sign in · tallyport";
  if (message) key.fail(message);
  key.input.focus();
}

function brand() {
  return h("a", { className: "brand", href: "#/overview" },
    svg("svg", { viewBox: "0 0 32 32", "aria-hidden": "true" }, svg("rect", { width: 32, height: 32, rx: 7, className: "plate" }),
      svg("path", { d: "M8 8v16M13 8v16M18 8v16M23 8v16", className: "strokes" }), svg("path", { d: "M5 21 27 11", className: "slash" })),
    "tallyport");
}

function drawMasthead() {
  const who = session.whoami;
  const allowed = seesAll() ? "" : ` · ${who.ports.length === 1 ? `port ${who.ports[0]}` : `${who.ports.length} ports`}`;
  fill(masthead, h("div", { className: "masthead" }, brand(),
    h("nav", { "aria-label": "Pages", className: "pages" }, h("ul", {}, NAVIGATION
      .filter(([name]) => seesAll() || !["groups", "organisation"].includes(name))
      .map(([name, title]) => h("li", {}, h("a", { href: `#/${name}`, "data-page": name }, title))))),
    h("div", { className: "who" }, h("span", {}, `${who.name.replace(/^key:/, "")} (${mayChange() ? "admin" : "read only"}${allowed})`),
      session.key && button("Sign out", { className: "quiet", onclick: () => { keep(null); window.location.hash = ""; start(); } }))));
}

function route() {
  if (!session.whoami) return;
  current?.abort();
  current = new AbortController();
  const [path, search] = window.location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...parts] = path.split("/").filter(Boolean).map(decode);
  const draw = PAGES[name || "overview"];
  for (const link of masthead.querySelectorAll("[data-page]")) {
    const isCurrent = link.dataset.page === (name === "organisations" ? "organisation" : name || "overview");
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const place = h("div", { className: "page", "data-page": name || "overview" }, h("p", { className: "loading" }, "Loading…"));
  fill(content, place);
  if (!draw) {
    fill(place, head("No such page"), h("p", {}, h("a", { href: "#/overview" }, "To the overview")));
    return;
  }
  const page = { place, parts, search: new URLSearchParams(search ?? ""), signal: current.signal };
  Promise.resolve(draw(page)).then(() => settle(page)).catch((error) => failed(page, error));
}

function settle(page) {
  if (page.signal.aborted) return;
  const title = page.place.querySelector("h1")?.textContent;
  document.title = title ? `${title} · tallyport` : "tallyport";
}

function failed(page, error) {
  if (page.signal.aborted || error.name === "AbortError") return;
  if (error instanceof Refusal && error.status === 401) { keep(null); signIn("This key is not in use any more."); return; }
  if (!(error instanceof Refusal)) console.error(error);
  const told = error instanceof Refusal ? error.message : "The page failed; the browser's console says why.";
  fill(page.place, head("This cannot be shown now"), notice("bad", told), button("Try again", { onclick: route }));
}

function decode(part) {
  try { return decodeURIComponent(part); } catch { return part; }
}

window.addEventListener("hashchange", () => { route(); content.focus({ preventScroll: true }); window.scrollTo(0, 0); });
start();
