// One port, group or organisation: its budget, live, and what it is spent on.

import { Refusal, ask, get, mayChangeScope, query, session } from "./api.js";
import { announce, fill, freshId, h } from "./dom.js";
import { PERIODS, STATUSES, UNITS, amount, amountOf, count, money, parseNano, percent, time } from "./format.js";
import { follow } from "./live.js";
import { label, learn, link, look } from "./names.js";
import { nameEditor } from "./name_editor.js";
import { badge, button, capBar, card, field, head, notice, select, table, toggle } from "./widgets.js";

const PATHS = { port: "ports", group: "groups", org: "organizations", all: "all" };
const TITLES = { port: "Port", group: "Group", org: "Organisation" };
const REFRESH_MS = [2_000, 5_000, 15_000, 45_000]; // once would miss a ledger that is further behind
const MAIL = /^[^\s@:/]+@[^\s@:/]+$/;
const BETWEEN = /\s+|[,;](?=https?:\/\/|mailto:|[^\s,;@/]+@)/; // an address may hold a comma itself
const WEB = /^https?:\/\/[^/]/;

export async function show(page, kind) {
  const plainId = page.parts.join("/");
  if (plainId === "*") return showWildcard(page, kind);
  const scope = `${kind}:${plainId}`;
  await look([scope], page.signal);
  const budgetPlace = h("div", {});
  const usagePlace = h("div", {});
  const title = () => head(h("span", {}, h("span", { className: "overline" }, TITLES[kind]), " ", label(scope, plainId)));
  const headPlace = h("div", {}, title());
  fill(page.place, headPlace, budgetPlace, usagePlace, mayChangeScope(scope) && nameEditor(scope, () => fill(headPlace, title()), page.signal));
  await budgetCard({ place: budgetPlace, usagePlace, scope, path: `${PATHS[kind]}/${encodeURIComponent(plainId)}`, page });
}

/** The budget that holds for every id without one of its own; nothing is used of it itself. */
async function showWildcard(page, kind) {
  const place = h("div", {});
  fill(page.place, head(h("span", {}, h("span", { className: "overline" }, "Budget"), ` Every ${TITLES[kind].toLowerCase()}`)),
    h("p", { className: "lead" }, `Each ${TITLES[kind].toLowerCase()} that has no budget of its own in a unit and period is held against this one, by itself.`), place);
  await budgetCard({ place, usagePlace: null, scope: `${kind}:*`, path: `${PATHS[kind]}/*`, page, title: null });
}

/** The budget card of a scope, kept up to date by the stream of states. */
export async function budgetCard({ place, usagePlace, scope, path, page, unit = null, period = null, title = null }) {
  const asked = { unit: page.search.get("unit") ?? unit, period: page.search.get("period") ?? period };
  let shown = null;
  let refreshing = 0;
  let taken = 0;

  const read = () => get(`/v1/usage/${path}${query(asked)}`, page.signal);
  const standing = h("div", { className: "standing" });
  const live = h("span", { className: "live" });
  const formPlace = h("div", {});
  const chooser = h("div", { className: "choosers" });
  const titleId = freshId("budget");
  fill(place, h("section", { className: "card budget", "aria-labelledby": titleId },
    h("div", { className: "head" }, h("h2", { id: titleId }, title ?? "Budget"), title ? live : chooser), standing, !title && live, formPlace));

  async function load() {
    shown = await read();
    learn(shown.names);
    asked.unit = shown.unit;
    asked.period = shown.period;
    drawChoosers();
    drawStanding();
    drawUsage();
    await drawForm();
  }

  /** Reads and draws anew. Until then nobody types into what is about to be replaced; afterwards the
   * one who works by keyboard is where they were. */
  function again(name) {
    for (const one of formPlace.querySelectorAll("input, select, button")) one.disabled = true;
    load().then(() => {
      const isFree = document.activeElement === document.body;
      if (isFree) place.querySelector(name ? `[name=${name}]` : "[type=submit]")?.focus({ preventScroll: true });
    }).catch(failed);
  }

  function drawChoosers() {
    const units = select(UNITS, asked.unit, { name: "unit" });
    const periods = select(PERIODS, asked.period, { name: "period" });
    units.addEventListener("change", () => { asked.unit = units.value; again(units.name); });
    periods.addEventListener("change", () => { asked.period = periods.value; again(periods.name); });
    fill(chooser, h("label", {}, h("span", {}, "Unit"), units), h("label", {}, h("span", {}, "Period"), periods));
  }

  function drawStanding() {
    const cost = shown.currency;
    const share = percent(amountOf(shown.used, shown.unit), amountOf(shown.hard_cap, shown.unit));
    const isOff = !shown.enabled;
    fill(standing,
      h("div", { className: "used" }, h("strong", { "data-used": String(shown.used) }, amount(shown.used, shown.unit, cost)),
        shown.hard_cap !== null && !isOff && h("span", {}, ` of ${amount(shown.hard_cap, shown.unit, cost)}`), badge(shown.status, isOff && shown.policy_source === "none" ? STATUSES["no-policy"] : null)),
      capBar(isOff ? { ...shown, hard_cap: null, soft_cap: null, soft_line: null } : shown, cost),
      h("dl", { className: "facts" },
        fact("Soft line", isOff ? "–" : amount(shown.soft_line, shown.unit, cost)),
        fact("Hard cap", isOff ? "–" : amount(shown.hard_cap, shown.unit, cost)),
        fact("Left", isOff ? "–" : amount(shown.remaining, shown.unit, cost)),
        fact("Used of the cap", isOff || share === null ? "–" : `${share} %`),
        fact("Starts again", time(shown.resets_at)),
        shown.unpriced_events > 0 && fact("Calls without a price", count(shown.unpriced_events))),
      !isOff && shown.hard_cap !== null && !shown.scope.endsWith(":*") && h("p", { className: "forecast" }, sentence(shown)),
      shown.policy_source === "wildcard" && h("p", { className: "note" }, `This budget holds for ${shown.policy.scope}; saving here gives this id one of its own.`));
  }

  function drawUsage() {
    if (!usagePlace) return;
    const cost = shown.currency;
    fill(usagePlace, h("div", { className: "grid" },
      h("section", { className: "card span-2", "aria-labelledby": "by-feature" }, h("h2", { id: "by-feature" }, shown.period === "rolling-30d" ? "By feature, last 30 days" : `By feature, this ${PERIODS[shown.period]}`),
        table("Tokens, calls and cost by feature", [
          { title: "Feature", cell: (row) => row.feature || "unspecified" },
          { title: "Tokens", number: true, cell: (row) => count(row.tokens) },
          { title: "Calls", number: true, cell: (row) => count(row.calls) },
          { title: "Cost", number: true, cell: (row) => h("span", { title: row.cost }, money(row.cost, row.currency)) },
        ], shown.features, "Nothing was used in this period.")),
      shown.budgets.length > 0 && h("section", { className: "card span-2", "aria-labelledby": "all-budgets" }, h("h2", { id: "all-budgets" }, "Every budget that counts it"), budgetTable(shown.budgets, cost))));
  }

  async function drawForm() {
    if (!mayChangeScope(shown.scope)) { fill(formPlace); return; }
    const path = `/v1/budgets/${encodeURIComponent(shown.scope)}/${shown.unit}/${shown.period}`;
    const isThere = shown.policy !== null && shown.policy_source !== "wildcard";
    const found = isThere ? await readPolicy(path, page.signal) : { path, policy: null, etag: null };
    fill(formPlace, policyForm({ shown, found, onSaved: (text) => { announce(text); again(null); }, onReload: () => drawForm().catch(failed), page }));
  }

  function failed(error) {
    if (error.name !== "AbortError") fill(formPlace, notice("bad", error.message));
  }

  function take(name, data) {
    if (name !== "state" || data.unit !== asked.unit || data.period !== asked.period || data.scope !== shown.scope) return;
    taken += 1;
    const before = shown.status;
    shown = { ...shown, used: data.used, remaining: data.remaining, soft_cap: data.soft_cap, hard_cap: data.hard_cap, status: data.status, enabled: data.status !== "disabled", resets_at: data.resets_at, unpriced_events: data.unpriced_events };
    drawStanding();
    tell(before);
    refreshLater(0);
  }

  function tell(before) {
    if (before !== shown.status) announce(`Budget: ${STATUSES[shown.status]}`);
  }

  function refreshLater(turn) {
    window.clearTimeout(refreshing);
    if (page.signal.aborted || turn === REFRESH_MS.length) return;
    refreshing = window.setTimeout(() => { refresh(); refreshLater(turn + 1); }, REFRESH_MS[turn]);
  }

  /** What the ledger knows follows a moment later; what is typed in the form stays. */
  async function refresh() {
    const asOf = taken;
    try {
      const fresh = await read();
      if (page.signal.aborted || fresh.unit !== asked.unit || fresh.period !== asked.period) return;
      if (taken !== asOf) return; // older than the state that came meanwhile
      const before = shown.status;
      shown = fresh;
      drawStanding();
      drawUsage();
      tell(before);
    } catch { /* the next state tries again */ }
  }

  await load();
  follow([scope], {
    signal: page.signal,
    onEvent: take,
    onStanding: (isOn) => fill(live, isOn ? h("span", { className: "dot" }) : null, isOn ? "Live" : "Not live: the stream of states is away, trying again"),
  });
}

function fact(title, value) { return h("div", {}, h("dt", {}, title), h("dd", {}, value)); }

function sentence(shown) {
  const { forecast } = shown;
  const text = forecast.text[0].toUpperCase() + forecast.text.slice(1);
  const pace = forecast.per_day !== null ? ` The pace is ${amount(forecast.per_day, shown.unit, shown.currency)} a day, from ${forecast.days} complete days.` : "";
  return `${text}.${pace}`;
}

export function budgetTable(budgets, currency) {
  return table("Budgets", [
    { title: "On", cell: (row) => link(row.scope) },
    { title: "Unit", cell: (row) => UNITS[row.unit] },
    { title: "Period", cell: (row) => PERIODS[row.period] },
    { title: "Used", number: true, cell: (row) => amount(row.used, row.unit, currency) },
    { title: "Hard cap", number: true, cell: (row) => amount(row.hard_cap, row.unit, currency) },
    { title: "Status", cell: (row) => badge(row.status) },
  ], budgets, "No budget.");
}

async function readPolicy(path, signal) {
  try {
    const found = await ask("GET", path, { signal });
    return { path, policy: found.content, etag: found.etag };
  } catch (error) {
    if (error.status === 404) return { path, policy: null, etag: null };
    throw error;
  }
}

/** Caps, warning, switch. Messages stand beside their fields, whoever found the mistake. */
function policyForm({ shown, found, onSaved, onReload, page }) {
  const { policy } = found;
  const isSet = shown.policy_source === "own";
  const unitText = shown.unit === "cost" ? shown.currency : "tokens";
  const inputMode = shown.unit === "cost" ? "decimal" : "numeric";
  const text = (value) => h("input", { type: "text", inputmode: inputMode, autocomplete: "off", value: value ?? "" });
  const enabled = toggle("Budget is on", policy ? policy.enabled || !isSet : true, { name: "enabled" });
  const soft = field(`Soft cap (${unitText})`, text(policy?.soft_cap), "Warns above it. Empty: the percentage below counts.");
  const hard = field(`Hard cap (${unitText})`, text(policy?.hard_cap), "Blocks from it on. Empty: never blocks.");
  const warn = field("Warn at (% of the hard cap)", h("input", { type: "text", inputmode: "numeric", value: policy?.warn_threshold_pct ?? 80 }), "Used where there is no soft cap.");
  const stale = field("When states are stale", select({ allow: "allow calls", deny: "refuse calls" }, policy?.on_stale ?? "allow"));
  const told = field("Who is told", h("input", { type: "text", autocomplete: "off", spellcheck: "false", inputmode: "email", value: addressesText(policy?.notify ?? []) }), toldHint());
  const fields = { soft_cap: soft, hard_cap: hard, warn_threshold_pct: warn, on_stale: stale, notify: told };
  const said = h("div", { className: "said" });
  const save = h("button", { type: "submit", className: "primary" }, isSet ? "Save" : "Set budget");

  const submit = async (event) => {
    event.preventDefault();
    for (const one of Object.values(fields)) one.fail(null);
    fill(said);
    const body = checked({ soft, hard, warn, told }, shown.unit);
    if (!body) { form.querySelector("[aria-invalid]")?.focus(); return; }
    hold(true); // until the form is drawn anew, with the tag of what is in force then
    try {
      const headers = found.etag ? { "If-Match": found.etag } : { "If-None-Match": "*" };
      await ask("PATCH", found.path, { body: { ...body, enabled: enabled.input.checked, on_stale: stale.input.value }, headers, signal: page.signal });
      onSaved("Saved.");
    } catch (error) {
      refused(error);
    }
  };

  function hold(isHeld) {
    for (const one of [save, remove]) if (one) one.disabled = isHeld;
  }

  function refused(error) {
    hold(false);
    if (!(error instanceof Refusal)) throw error;
    if (error.status === 412) {
      fill(said, notice("warn", "Somebody else changed this budget meanwhile. What you typed is still here. ", button("Load theirs", { onclick: onReload })));
    } else if (error.field && fields[error.field]) {
      fields[error.field].fail(error.message.replace(`${error.field}: `, ""));
      fields[error.field].input.focus();
    } else {
      fill(said, notice("bad", error.message));
    }
  }

  const remove = isSet && button("Remove budget", { className: "danger", onclick: async () => {
    if (!window.confirm(`Remove the budget of ${shown.scope} in ${shown.unit} per ${shown.period}?`)) return;
    hold(true);
    try {
      await ask("DELETE", found.path, { headers: found.etag ? { "If-Match": found.etag } : {}, signal: page.signal });
      onSaved("Removed.");
    } catch (error) { refused(error); }
  } });

  const form = h("form", { className: "policy", novalidate: true, onsubmit: submit },
    enabled.node, h("div", { className: "fields" }, soft.node, hard.node, warn.node, stale.node), told.node,
    h("div", { className: "actions" }, save, remove), said);
  return h("details", { open: true }, h("summary", {}, isSet ? "Change the budget" : "Set a budget"), form);
}

/** The fields as the API takes them; null after telling what is wrong with them. */
function checked({ soft, hard, warn, told }, unit) {
  let isGood = true;
  const cap = (one) => {
    const text = one.input.value.replaceAll(/[,_\s]/g, "");
    if (!text) return null;
    const value = unit === "cost" ? parseNano(text) : /^-?\d{1,19}$/.test(text) ? BigInt(text) : null;
    if (value === null) {
      one.fail(unit === "cost" ? "Must be an amount such as 12.50, with at most nine decimals." : "Must be a whole number of tokens.");
    } else if (value < 0n) one.fail("Must not be negative.");
    else if (unit === "tokens" && value > BigInt(Number.MAX_SAFE_INTEGER)) one.fail("Is too large.");
    else return { value, wire: unit === "cost" ? text : Number(value) };
    isGood = false;
    return null;
  };
  const softCap = cap(soft);
  const hardCap = cap(hard);
  if (softCap && hardCap && softCap.value > hardCap.value) { soft.fail("Must not be above the hard cap."); isGood = false; }
  const percentText = warn.input.value.trim();
  if (!/^\d{1,3}$/.test(percentText) || Number(percentText) > 100) { warn.fail("Must be a whole number from 0 to 100."); isGood = false; }
  const notify = addresses(told.input.value);
  if (notify === null) { told.fail("Must be mail or https: addresses, separated by commas."); isGood = false; }
  return isGood ? { soft_cap: softCap?.wire ?? null, hard_cap: hardCap?.wire ?? null, warn_threshold_pct: Number(percentText), notify } : null;
}

/** What is typed as a policy has it: mail addresses get their `mailto:`. Null where one is neither. */
function addresses(text) {
  const found = text.split(BETWEEN).map((one) => one.replace(/[,;]+$/, "")).filter(Boolean).map((one) => (MAIL.test(one) ? `mailto:${one}` : one));
  return found.every((one) => WEB.test(one) || (one.startsWith("mailto:") && MAIL.test(one.slice(7)))) ? found : null;
}

function addressesText(notify) { return notify.map((one) => one.replace(/^mailto:/, "")).join(", "); }

function toldHint() {
  const { alerts } = session.whoami;
  const empty = alerts.default ? "Empty: those of the deployment's settings." : "Empty: nobody, as the deployment's settings name no one.";
  return `At the soft line and at the cap: mail or https: addresses. ${empty}${alerts.mail ? "" : " No mail can be sent until a mail server is set."}`;
}

