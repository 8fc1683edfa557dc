// Effective limits: which budgets would be asked for a call, and what they would say.

import { Refusal, ask, seesAll, session } from "./api.js";
import { announce, fill, h } from "./dom.js";
import { PERIODS, UNITS, amount, time } from "./format.js";
import { link, look } from "./names.js";
import { badge, card, field, head, notice, table } from "./widgets.js";

const FIELDS = [["port_id", "Port"], ["user_id", "User"], ["group_id", "Group"], ["organization_id", "Organisation"], ["provider", "Provider"], ["model", "Model"], ["estimated_tokens", "Estimated tokens"]];
const REASONS = {
  ok: "within every limit", "no-policy": "no budget applies", disabled: "the budget is switched off",
  "hard-cap-exceeded": "a hard cap is reached", "estimated-exceeds-cap": "the estimate exceeds what is left", stale: "the states are stale",
};

export async function show(page) {
  const place = h("div", { className: "column" });
  const fields = Object.fromEntries(FIELDS.map(([name, title]) => {
    const given = page.search.get(name) ?? (name === "port_id" && !seesAll() ? session.whoami.ports[0] : "");
    return [name, field(title, h("input", { type: "text", value: given, autocomplete: "off", spellcheck: "false", inputmode: name === "estimated_tokens" ? "numeric" : null }))];
  }));
  const form = h("form", { className: "card", novalidate: true, onsubmit: (event) => { event.preventDefault(); check().catch(failed); } },
    h("div", { className: "fields" }, FIELDS.map(([name]) => fields[name].node)),
    h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Ask")));
  fill(page.place, head("Effective limits"),
    h("p", { className: "lead" }, "The budgets that a call with these ids would be held against, and the verdict. Nothing is reserved."), form, place);

  const failed = (error) => {
    if (error.name === "AbortError") return;
    if (error instanceof Refusal && fields[error.field]) { fields[error.field].fail(error.message.replace(`${error.field}: `, "")); fields[error.field].input.focus(); return; }
    fill(place, notice("bad", error.message));
  };

  async function check() {
    for (const one of Object.values(fields)) one.fail(null);
    const body = {};
    for (const [name] of FIELDS) {
      const text = fields[name].input.value.trim();
      if (!text) continue;
      if (name === "estimated_tokens" && !/^\d{1,12}$/.test(text)) { fields[name].fail("Must be a whole number of tokens."); fields[name].input.focus(); return; }
      body[name] = name === "estimated_tokens" ? Number(text) : text;
    }
    const verdict = (await ask("POST", "/v1/check", { body, signal: page.signal })).content;
    await look(verdict.policies.map((one) => one.scope), page.signal);
    draw(verdict);
  }

  function draw(verdict) {
    const why = verdict.allowed && verdict.soft_cap_warning ? "within every hard cap, over a soft line" : REASONS[verdict.reason] ?? verdict.reason;
    const says = verdict.allowed ? "The call may go ahead" : "The call is refused";
    announce(`${says}: ${why}`);
    fill(place,
      h("div", { className: `verdict ${verdict.allowed ? "good" : "bad"}` }, badge(verdict.allowed ? (verdict.soft_cap_warning ? "soft-cap-exceeded" : "ok") : "hard-cap-exceeded", verdict.allowed ? (verdict.soft_cap_warning ? "Allowed, warned" : "Allowed") : "Refused"),
        h("strong", {}, `${says}: ${why}.`), h("span", { className: "note" }, ` States are ${verdict.freshness.toLowerCase()}${verdict.as_of ? `, as of ${time(verdict.as_of)}` : ""}.`)),
      card("Every budget that was asked", table("Budgets that were asked", [
        { title: "On", cell: (row) => link(row.scope) },
        { title: "Unit", cell: (row) => UNITS[row.unit] },
        { title: "Period", cell: (row) => PERIODS[row.period] },
        { title: "Used", number: true, cell: (row) => amount(row.used, row.unit, session.whoami.currency) },
        { title: "Hard cap", number: true, cell: (row) => amount(row.hard_cap, row.unit, session.whoami.currency) },
        { title: "Left", number: true, cell: (row) => amount(row.remaining, row.unit, session.whoami.currency) },
        { title: "Says", cell: (row) => badge(row.reason === "disabled" ? "disabled" : row.allowed ? (row.soft_cap_warning ? "soft-cap-exceeded" : "ok") : "hard-cap-exceeded", row.reason === "disabled" ? "Switched off" : row.allowed ? (row.soft_cap_warning ? "Allowed, warned" : "Allowed") : REASONS[row.reason] ?? row.reason) },
      ], verdict.policies, "No budget applies to these ids.")));
  }
  await check().catch(failed);
}
