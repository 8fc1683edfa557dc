// Who changed what, and when.

import { get, query, session } from "./api.js";
import { fill, h } from "./dom.js";
import { count, money, time } from "./format.js";
import { look, link } from "./names.js";
import { moment } from "./runs.js";
import { head, notice, pager, select, table } from "./widgets.js";

const PAGE = 25;
const WHAT = { "": "Everything", policy: "Budgets", price: "Prices", name: "Names", key: "API keys", run: "Runs" };
const SUBJECTS = { policy: "budget", price: "price", name: "name", key: "API key", run: "run" };
const RUNS = { reprice: "pricing booked calls again", replay: "sending rejected records again" };

export async function show(page) {
  let what = page.search.get("what") ?? "";
  let places = [null];
  const place = h("div", {});
  const chooser = select(WHAT, what, { "aria-label": "What was changed" });
  chooser.addEventListener("change", () => { what = chooser.value; places = [null]; again(); });
  fill(page.place, head("Changes", h("div", { className: "beside" }, chooser)), place);

  async function draw() {
    const found = await get(`/v1/changes${query({ limit: PAGE, what, cursor: places.at(-1) })}`, page.signal);
    await look(found.changes.map(scopeOf).filter(Boolean), page.signal);
    fill(place,
      table("Changes, newest first", [
        { title: "When", cell: (row) => time(row.at) },
        { title: "Who", cell: (row) => row.who },
        { title: "What", cell: (row) => SUBJECTS[row.what] ?? row.what },
        { title: "Of", cell: subject },
        { title: "Change", wide: true, cell: difference },
      ], found.changes, found.next ? "None among the newest; older ones may follow." : "Nothing was changed yet."),
      (places.length > 1 || found.next) && pager({
        shown: `Page ${places.length}`, total: null, hasPrevious: places.length > 1, hasNext: found.next !== null,
        onPrevious: () => { places.pop(); again(); }, onNext: () => { places.push(found.next); again(); },
      }));
  }
  const again = () => draw().catch((error) => { if (error.name !== "AbortError") fill(place, notice("bad", error.message)); });
  await draw();
}

function subject(row) {
  if (row.what === "run") return RUNS[row.key.split(":")[0]] ?? row.key;
  const scope = scopeOf(row);
  if (!scope) return h("span", { className: "id" }, row.key);
  const { unit, period } = row.after ?? row.before;
  return h("span", {}, link(scope), row.what === "policy" && h("span", { className: "note" }, ` ${unit}, ${period}`));
}

function scopeOf(row) {
  if (row.what === "policy") return (row.after ?? row.before)?.scope ?? null;
  if (row.what === "name") { try { return decodeURIComponent(row.key); } catch { return row.key; } }
  return null;
}

/** That a run began and what it was to touch, or how it ended and what that came to. */
function outcome({ before, after }) {
  const { state, sent, problem, ...chosen } = after;
  const says = (name, value) => [" ", h("span", { className: "one" }, h("span", { className: "note" }, `${name.replaceAll("_", " ")} `), Array.isArray(value) ? value.join(", ") : ["from", "to"].includes(name) ? moment(value) : String(value))];
  const told = before
    ? [sent !== undefined && says("sent", count(sent)), after.cost_delta !== undefined && says("cost", `${money(after.cost_before, session.whoami.currency)} → ${money(after.cost_after, session.whoami.currency)}`), problem && says("because", problem)]
    : Object.entries(chosen).filter(([, value]) => value !== null && value !== false && String(value)).map(([name, value]) => says(name, value));
  return h("div", { className: "difference" }, h("span", { className: "verb" }, before ? state : "began"), told);
}

function difference(row) {
  if (row.what === "run") return outcome(row);
  const before = row.before ?? {};
  const after = row.after ?? {};
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].filter((name) => !["scope", "unit", "period", "rate_id", "published_at"].includes(name));
  const changed = names.filter((name) => JSON.stringify(before[name] ?? null) !== JSON.stringify(after[name] ?? null));
  const verb = !row.before ? "added" : !row.after ? "removed" : null;
  const shown = (value) => (typeof value === "boolean" && row.what === "name" ? (value ? "set" : "not set") : value === null || value === undefined ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const unset = (value) => value === null || (row.what === "name" && value === false) || value === undefined || (Array.isArray(value) && !value.length);
  const told = row.after === null ? [] : changed.filter((name) => row.before || !unset(after[name]));
  return h("div", { className: "difference" }, verb && h("span", { className: "verb" }, verb),
    told.map((name) => [" ", h("span", { className: "one" }, h("span", { className: "note" }, `${name.replaceAll("_", " ")} `), row.before ? `${shown(before[name])} → ${shown(after[name])}` : shown(after[name]))]));
}
