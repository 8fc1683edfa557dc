// What it costs today and this month, who and what drives it, and whether everything still counts.

import { get, query, session } from "./api.js";
import { fill, h } from "./dom.js";
import { ago, amount, compact, count, money, parseNano, percent, amountOf, A_PERIOD } from "./format.js";
import { label, learn, link } from "./names.js";
import { badge, capBar, card, figure, head, select, table } from "./widgets.js";
import { ranking, trend } from "./charts.js";

const AGAIN_MS = 20_000;
const PARTS = { worker: "Worker", sink: "Ledger sink" };
const KINDS = { llm: "Language models", stt: "Speech to text", tts: "Text to speech", embedding: "Embeddings", image: "Images", other: "Other" };

export async function show(page) {
  let scope = page.search.get("billing_scope") ?? "";
  const draw = async () => {
    const [summary, ports, unpriced, rejected, standing, budgets] = await Promise.all([
      get(`/v1/usage/summary${query({ billing_scope: scope })}`, page.signal),
      get("/v1/usage/ports?order=cap&limit=5", page.signal),
      get("/v1/usage/unpriced?limit=1000", page.signal),
      get("/v1/rejected/count", page.signal),
      health(page.signal),
      get("/v1/budgets?limit=1", page.signal),
    ]);
    if (page.signal.aborted) return;
    learn(summary.names);
    learn(ports.names);
    const chooser = select({ "": "Everything", org: "What the organisation pays", user: "What users pay" }, scope, { "aria-label": "Whose bill" });
    chooser.addEventListener("change", () => { scope = chooser.value; draw(); });
    fill(page.place,
      head("Overview", h("div", { className: "beside" }, chooser)),
      figures(summary, unpriced, rejected),
      budgets.invalid.length > 0 && card("Budget records that are not used", invalid(budgets.invalid)),
      h("div", { className: "grid" },
        h("section", { className: "card span-2", "aria-labelledby": "trend" }, h("h2", { id: "trend" }, "Last 30 days"), trend(summary.daily, summary.currency)),
        h("div", { className: "column" }, card("Spend by kind, this month", spendByKind(summary)), card("Freshness", freshness(standing, summary))),
        h("div", { className: "column" }, card("Closest to their caps", closest(ports, summary.currency)), card("Rejected in 24 hours", reasons(rejected))),
        card("Top users, this month", topUsers(summary)),
        card("Top models, this month", topModels(summary))));
  };
  await draw();
  const timer = window.setInterval(() => { if (!document.hidden && !page.place.contains(document.activeElement)) draw().catch(() => {}); }, AGAIN_MS);
  page.signal.addEventListener("abort", () => window.clearInterval(timer));
}

function figures(summary, unpriced, rejected) {
  const { currency } = summary;
  const events = unpriced.models.reduce((sum, row) => sum + row.unpriced_requests, 0);
  const limit = summary.org_policy?.monthly;
  const share = limit?.unit === "cost" && limit.limit !== null ? percent(amountOf(summary.month.cost ?? "0", "cost"), amountOf(limit.limit, "cost")) : null;
  return h("dl", { className: "figures" },
    figure("Today", money(summary.today.cost, currency), `${count(summary.today.requests)} calls`),
    figure("This month", money(summary.month.cost, currency), share !== null && summary.billing_scope !== "user" ? `${share} % of the limit of ${money(limit.limit, currency)}` : `${count(summary.month.requests)} calls`),
    figure("Tokens this month", h("span", { title: count(summary.month.total_tokens) }, compact(summary.month.total_tokens)), `${compact(summary.today.total_tokens)} today`),
    figure("Without a price", events ? h("a", { href: "#/prices?tab=unpriced" }, count(events)) : "0", unpriced.models.length ? `calls of ${unpriced.models.length} model${unpriced.models.length === 1 ? "" : "s"}` : "every call has a price"),
    figure("Rejected in 24 h", rejected.total ? h("a", { href: "#/rejected" }, `${rejected.complete ? "" : "≥ "}${count(rejected.total)}`) : "0", rejected.total ? "records that broke a rule" : "no record broke a rule"));
}

/** What somebody wrote to the topic of policies that is none; the last valid one stays in force. */
function invalid(records) {
  return table("Budget records that are not used", [
    { title: "Budget", cell: (row) => h("span", { className: "id" }, row.key || "(no key)") },
    { title: "Why", wide: true, cell: (row) => `${row.field}: ${row.rule}` },
    { title: "In force instead", cell: (row) => (row.last_valid ? link(row.last_valid.scope) : "nothing") },
    { title: "Offset", number: true, cell: (row) => count(row.offset) },
  ], records);
}

function spendByKind(summary) {
  const rows = summary.by_kind.filter((row) => row.currency === summary.currency);
  if (!rows.length) return h("p", { className: "empty" }, "Nothing was used this month.");
  return ranking(rows.map((row) => ({ what: KINDS[row.kind] ?? row.kind, value: money(row.cost, summary.currency), nano: parseNano(row.cost ?? "0") })));
}

function topUsers(summary) {
  if (!summary.top_users.length) return h("p", { className: "empty" }, "No call named a user this month.");
  return ranking(summary.top_users.map((row) => ({
    what: h("a", { href: `#/users/${encodeURIComponent(row.user_id)}` }, label(`user:${row.user_id}`, row.user_id)),
    value: money(row.cost, row.currency), nano: parseNano(row.cost ?? "0"),
  })));
}

function topModels(summary) {
  if (!summary.top_models.length) return h("p", { className: "empty" }, "Nothing was used this month.");
  return ranking(summary.top_models.map((row) => ({
    what: h("span", { className: "named" }, h("span", { className: "name" }, row.model), h("span", { className: "id small" }, row.provider)),
    value: money(row.cost, row.currency), nano: parseNano(row.cost ?? "0"),
  })));
}

function closest(ports, currency) {
  const capped = ports.ports.filter((row) => row.cap_used_pct !== null);
  if (!capped.length) return h("p", { className: "empty" }, "No port has a cap. ", h("a", { href: "#/ports" }, "Choose a port"), " to set one.");
  return h("ul", { className: "closest" }, capped.map((row) => h("li", {},
    h("div", { className: "line1" }, link(`port:${row.port_id}`), badge(row.tightest.status)),
    capBar(row.tightest, currency),
    h("div", { className: "note" }, `${row.cap_used_pct} % of ${amount(row.tightest.hard_cap, row.tightest.unit, currency)} ${A_PERIOD[row.tightest.period]}`))));
}

async function health(signal) {
  const [states, pipeline] = await Promise.all([
    get("/v1/state?limit=1", signal).catch(() => null),
    fetch("/health/pipeline", { signal, cache: "no-store" }).then((answer) => answer.json()).catch(() => null),
  ]);
  return { states, problems: pipeline?.problems ?? [], notes: pipeline?.notes ?? [] };
}

function freshness(standing, summary) {
  const about = (part) => standing.problems.find((text) => text.startsWith(part));
  const isLate = standing.states?.freshness !== "LIVE";
  const stopped = (part, says) => (about(part) ? { part, tone: "hard-cap-exceeded", word: "Stopped", says: about(part) } : { part, tone: "ok", word: "Running", says });
  const worker = stopped("worker", standing.states?.as_of ? `counted up to ${ago(standing.states.as_of)}` : "nothing counted yet");
  const rows = [
    isLate && worker.tone === "ok" ? { ...worker, tone: "soft-cap-exceeded", word: "Behind" } : worker,
    stopped("sink", summary.as_of ? `last wrote ${ago(summary.as_of)}` : "nothing written yet"),
    stopped("Kafka", "answers"),
    { part: "API", tone: "ok", word: "Running", says: "answers" },
    alerts(standing.notes),
  ];
  return h("ul", { className: "parts" }, rows.map(({ part, tone, word, says }) => h("li", {},
    badge(tone, word), h("strong", {}, PARTS[part] ?? part), h("span", { className: "note" }, says))));
}

/** Whether anybody hears of a line that is crossed. */
function alerts(notes) {
  if (notes.length) return { part: "Alerts", tone: "soft-cap-exceeded", word: "Trouble", says: notes.join("; ") };
  if (session.whoami.alerts.default) return { part: "Alerts", tone: "ok", word: "Running", says: session.whoami.alerts.mail ? "go out by mail" : "are posted" };
  return { part: "Alerts", tone: "disabled", word: "Off", says: "nobody is told: no mail and no webhook is set" };
}

function reasons(rejected) {
  const rows = Object.entries(rejected.by_reason).sort((a, b) => b[1] - a[1]);
  if (!rows.length) return h("p", { className: "empty" }, "No record was rejected.");
  return h("ul", { className: "reasons" }, rows.map(([reason, records]) => h("li", {},
    h("a", { href: `#/rejected?reason=${encodeURIComponent(reason)}` }, reason), " ", h("span", { className: "note" }, count(records)))));
}
