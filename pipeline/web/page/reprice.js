// Pricing what is booked already again: the difference per port and day, and then the start of it.

import { session } from "./api.js";
import { h } from "./dom.js";
import { count, money, time } from "./format.js";
import { bodyOf, portField, runPanel } from "./runs.js";
import { field, table } from "./widgets.js";

const DAY_MS = 86_400_000;
const BACK_DAYS = 30;
const RATES = "rates-that-were-set";

/** A form that shows what repricing would change, and starts it; `rates` are those that were set. */
export function repriceForm(page, rates) {
  const text = (value, placeholder) => h("input", { type: "text", autocomplete: "off", spellcheck: "false", value, placeholder });
  const fields = {
    from: field("From (UTC)", text(dayText(-BACK_DAYS), "2026-11-01")),
    to: field("To (UTC, not included)", text(dayText(1), "2026-12-01")),
    provider: field("Provider", text("", "every provider")),
    model: field("Model", text("", "every model")),
    port_id: portField(null, true),
    rate_id: field("Rate", h("input", { type: "text", autocomplete: "off", spellcheck: "false", list: RATES, placeholder: "whichever applies" }), "One that was set, for all of these calls."),
    reason: field("Reason", text("", "reprice"), "Kept with every entry, with your key's name."),
  };
  const panel = runPanel({ page, kind: "reprice", path: "/v1/reprices", tell, changes: (result) => result.rows > 0, startText: "Reprice these calls" });
  const look = async () => {
    for (const one of Object.values(fields)) one.fail(null);
    for (const one of [fields.from, fields.to]) if (!one.input.value.trim()) { one.fail("Is needed."); one.input.focus(); return; }
    await panel.look(bodyOf(fields), fields);
  };
  const node = h("div", { className: "column" },
    h("p", { className: "note" }, "Calls that are booked keep their price until they are priced again by the rates as they are now. Nothing is written before you have seen the difference."),
    h("form", { novalidate: true, onsubmit: (event) => { event.preventDefault(); look(); } },
      h("div", { className: "fields" }, Object.values(fields).map((one) => one.node)),
      h("datalist", { id: RATES }, rates.toReversed().filter(isPrice).map((rate) => h("option", { value: rate.rate_id }, `${rate.provider}/${rate.model}, from ${time(rate.effective_from)}`))),
      h("div", { className: "actions" }, h("button", { type: "submit" }, "Show what would change"))),
    panel.node);
  return {
    node,
    /** Looks at the calls of one model since `first_day`. */
    start({ provider, model, first_day: firstDay }) {
      fields.provider.input.value = provider;
      fields.model.input.value = model;
      fields.rate_id.input.value = "";
      if (firstDay) fields.from.input.value = firstDay;
      fields.to.input.value = dayText(1);
      node.scrollIntoView({ block: "center" });
      return look();
    },
  };
}

function isPrice(rate) { return !rate.withdraws && !rate.fx && !rate.multiplier; }

function dayText(ahead) { return new Date(Date.now() + ahead * DAY_MS).toISOString().slice(0, 10); }

function tell(run) {
  const { result } = run;
  const { currency } = session.whoami;
  if (!result.rows) return h("p", { className: "empty" }, `Nothing ${run.dry_run ? "would change" : "changed"}. ${left(result.left)}`);
  const verb = run.dry_run ? "would change" : result.in_ledger ? "changed, and are in the ledger" : "were sent to be changed";
  return [
    h("p", {}, h("strong", {}, `${calls(result.total.events)} ${verb}.`), ` Cost ${money(result.total.cost_before, currency)} → ${money(result.total.cost_after, currency)} (${signed(result.total.cost_delta, currency)}), without a price ${count(result.total.unpriced_before)} → ${count(result.total.unpriced_after)}.`),
    table("The difference, by day and port", [
      { title: "Day", cell: (row) => row.date },
      { title: "Port", cell: (row) => h("span", { className: "id" }, row.port_id) },
      { title: "Calls", number: true, cell: (row) => count(row.events) },
      { title: "Cost before", number: true, cell: (row) => amount(row.cost_before, currency) },
      { title: "Cost after", number: true, cell: (row) => amount(row.cost_after, currency) },
      { title: "Difference", number: true, cell: (row) => h("span", { title: row.cost_delta }, signed(row.cost_delta, currency)) },
      { title: "Without a price", number: true, cell: (row) => `${count(row.unpriced_before)} → ${count(row.unpriced_after)}` },
    ], result.changes),
    result.rows > result.changes.length && h("p", { className: "note" }, `The first ${count(result.changes.length)} of ${count(result.rows)} rows; the sums above are of all.`),
    left(result.left) && h("p", { className: "note" }, left(result.left)),
    result.refused > 0 && h("p", { className: "note" }, `${count(result.refused)} corrections were rejected, the first: ${result.rejected[0]?.detail ?? "see the rejected records"}.`),
  ].filter(Boolean);
}

function calls(number) { return number === 1 ? "1 call" : `${count(number)} calls`; }

function amount(text, currency) { return h("span", { title: text }, money(text, currency)); }

function signed(text, currency) { return `${text.startsWith("-") ? "" : "+"}${money(text, currency)}`; }

function left({ unchanged, without_price: without, void: isVoid, refused }) {
  const parts = [[unchanged, "priced right"], [without, "without any price"], [isVoid, "void"], [refused, "that the rate cannot price"]].filter(([number]) => number);
  return parts.length ? `Left as they are: ${parts.map(([number, why]) => `${count(number)} ${why}`).join(", ")}.` : "";
}
