// Lists of ports, users, groups and organisations: paged and searched by the server.

import { get, mayChange, query, seesAll } from "./api.js";
import { fill, h } from "./dom.js";
import { A_PERIOD, amount, count, money } from "./format.js";
import { label, learn, pathOf } from "./names.js";
import { badge, button, capBar, head, pager, searchField, select, subhead, table } from "./widgets.js";

const PAGE = 25;
const LISTS = {
  port: { path: "ports", title: "Ports", one: "port", field: "port_id" },
  user: { path: "users", title: "Users", one: "user", field: "user_id" },
  group: { path: "groups", title: "Groups", one: "group", field: "group_id" },
  org: { path: "organizations", title: "Organisations", one: "organisation", field: "organization_id" },
};

export async function show(page, kind) {
  const list = LISTS[kind];
  const asked = { search: page.search.get("search") ?? "", order: page.search.get("order") ?? "cost", at: 0 };
  const place = h("div", {});
  const order = select({ cost: "Dearest first", cap: "Closest to a cap first", id: "By id" }, asked.order, { "aria-label": "Order" });
  order.addEventListener("change", () => { asked.order = order.value; asked.at = 0; draw(); });
  fill(page.place, (page.nested ? subhead : head)(list.title, h("div", { className: "beside" }, order, kind !== "user" && seesAll() && h("a", { href: pathOf(`${kind}:*`) }, `Budget for every ${list.one}`), mayChange() && kind !== "user" && opener(kind, list))),
    searchField(`Search ${list.title.toLowerCase()}`, asked.search, (text) => { asked.search = text; asked.at = 0; draw(); }), place);

  let turn = 0;
  async function draw() {
    turn += 1;
    const mine = turn;
    const found = await get(`/v1/usage/${list.path}${query({ search: asked.search, order: asked.order, limit: PAGE, cursor: asked.at })}`, page.signal);
    if (mine !== turn) return;
    learn(found.names);
    const rows = found[list.path];
    fill(place, table(`${list.title} and what each used this month`, columns(kind, list), rows, asked.search ? `No ${list.one} matches “${asked.search}”.` : `No ${list.one} has used anything this month.`),
      found.total > 0 && pager({
        shown: `${count(asked.at + 1)}–${count(asked.at + rows.length)}`, total: `${count(found.total)}${found.complete ? "" : "+"}`,
        hasPrevious: asked.at > 0, hasNext: found.next !== null,
        onPrevious: () => { asked.at = Math.max(0, asked.at - PAGE); draw(); },
        onNext: () => { asked.at += PAGE; draw(); },
      }),
      !found.complete && h("p", { className: "note" }, "There are more than 50,000; the dearest are listed. Any other can be opened by its id."));
  }
  await draw();
}

function columns(kind, list) {
  return [
    { title: list.one[0].toUpperCase() + list.one.slice(1), cell: (row) => h("a", { href: pathOf(`${kind}:${row[list.field]}`) }, label(`${kind}:${row[list.field]}`, row[list.field])) },
    { title: "Cost this month", number: true, cell: (row) => h("span", { title: row.cost }, money(row.cost, row.currency)) },
    { title: "Calls", number: true, cell: (row) => count(row.requests) },
    { title: "Tokens", number: true, cell: (row) => count(row.total_tokens) },
    { title: "Tightest budget", wide: true, cell: (row) => (row.tightest ? h("div", { className: "tight" }, badge(row.tightest.status), row.cap_used_pct === null ? null : capBar(row.tightest, row.currency), h("span", { className: "note" }, row.cap_used_pct === null ? "no hard cap" : `${row.cap_used_pct} % of ${amount(row.tightest.hard_cap, row.tightest.unit, row.currency)} ${A_PERIOD[row.tightest.period]}`)) : h("span", { className: "note" }, "no budget")) },
  ];
}

function opener(kind, list) {
  return button(`Open a ${list.one} by id`.replace("a organisation", "an organisation"), { onclick: (event) => {
    const input = h("input", { type: "text", "aria-label": `Id of the ${list.one}`, placeholder: "Id", maxlength: 256 });
    const form = h("form", { className: "inline", onsubmit: (submitted) => { submitted.preventDefault(); if (input.value) window.location.hash = pathOf(`${kind}:${input.value}`); } }, input, h("button", { type: "submit" }, "Open"));
    event.target.replaceWith(form);
    input.focus();
  } });
}
