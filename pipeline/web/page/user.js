// One user: every call, newest first.

import { get, mayChangeScope, query } from "./api.js";
import { fill, h } from "./dom.js";
import { count, money, time } from "./format.js";
import { label, learn, link } from "./names.js";
import { nameEditor } from "./name_editor.js";
import { badge, head, notice, pager, table } from "./widgets.js";

const PAGE = 25;

export async function show(page) {
  const userId = page.parts.join("/");
  const scope = `user:${userId}`;
  const places = [null];
  const headPlace = h("div", {});
  const place = h("div", {});
  const title = () => fill(headPlace, head(h("span", {}, h("span", { className: "overline" }, "User"), " ", label(scope, userId)),
    h("div", { className: "beside" }, h("a", { href: `#/limits?user_id=${encodeURIComponent(userId)}` }, "Effective limits"))));
  fill(page.place, headPlace, h("section", { className: "card", "aria-labelledby": "events" }, h("h2", { id: "events" }, "Calls"), place),
    mayChangeScope(scope) && nameEditor(scope, title, page.signal));

  async function draw() {
    const found = await get(`/v1/usage/users/${encodeURIComponent(userId)}${query({ limit: PAGE, cursor: places.at(-1) })}`, page.signal);
    learn(found.names);
    title();
    const first = (places.length - 1) * PAGE;
    fill(place, table("Calls of this user, newest first", COLUMNS, found.events, "This user has no calls in the ledger."),
      found.total > 0 && pager({
        shown: `${count(first + 1)}–${count(first + found.events.length)}`, total: `${count(found.total)} entries`,
        hasPrevious: places.length > 1, hasNext: found.next !== null,
        onPrevious: () => { places.pop(); again(); },
        onNext: () => { places.push(found.next); again(); },
      }));
  }
  const again = () => draw().catch((error) => { if (error.name !== "AbortError") fill(place, notice("bad", error.message)); });
  await draw();
}

const COLUMNS = [
  { title: "When", cell: (row) => time(row.occurred_at) },
  { title: "Port", cell: (row) => link(`port:${row.port_id}`) },
  { title: "Feature", cell: (row) => row.feature },
  { title: "Model", cell: (row) => h("span", { className: "named" }, h("span", { className: "name" }, row.model), h("span", { className: "id small" }, row.provider)) },
  { title: "Input", number: true, cell: (row) => count(row.input_tokens) },
  { title: "Output", number: true, cell: (row) => count(row.output_tokens) },
  { title: "Cost", number: true, cell: (row) => (row.price_status === "unpriced" ? badge("soft-cap-exceeded", "No price") : h("span", { title: row.cost }, money(row.cost, row.currency))) },
  { title: "Paid by", cell: (row) => (row.billing_scope === "user" ? "user" : "organisation") },
  { title: "Entry", cell: (row) => (row.entry_no === 0 ? "event" : `correction ${row.entry_no}: ${row.correction_reason}`) },
];
