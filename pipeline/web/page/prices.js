// The rates that were set, why a price is what it is, and the models that lack one.

import { Refusal, ask, get, mayChange, query, seesAll, session } from "./api.js";
import { announce, fill, h } from "./dom.js";
import { count, time } from "./format.js";
import { repriceForm } from "./reprice.js";
import { badge, card, field, head, notice, select, table } from "./widgets.js";

const COUNTERS = {
  input_tokens: "Input", cached_input_tokens: "Cached input", cache_write_tokens: "Cache writes", cache_write_1h_tokens: "Cache writes, 1 h",
  input_audio_tokens: "Audio input", input_image_tokens: "Image input", output_tokens: "Output", reasoning_tokens: "Reasoning", output_audio_tokens: "Audio output",
  characters: "Characters", audio_seconds: "Audio seconds", images: "Images", web_searches: "Web searches", request: "Call",
};
const BASES = ["per_million", "per_second", "per_unit"];
// What a rate may price beside input, output and the call, and by what.
const MORE = [
  ["cached_input_tokens", "per_million"], ["cache_write_tokens", "per_million"], ["cache_write_1h_tokens", "per_million"], ["input_audio_tokens", "per_million"],
  ["input_image_tokens", "per_million"], ["reasoning_tokens", "per_million"], ["output_audio_tokens", "per_million"], ["characters", "per_million"],
  ["audio_seconds", "per_second"], ["images", "per_unit"], ["web_searches", "per_unit"],
];

export async function show(page) {
  const [rates, unpriced] = await Promise.all([
    get("/v1/prices", page.signal),
    get("/v1/usage/unpriced", page.signal).catch((error) => { if (error.name === "AbortError") throw error; return { models: null, problem: error.message }; }),
  ]);
  const explained = h("div", {});
  const mayPublish = mayChange() && seesAll();
  const setter = mayPublish && rateForm(page, () => show(page));
  const repricer = mayChange() && repriceForm(page, rates.rates.map((one) => one.rate));
  fill(page.place, head("Prices"),
    h("div", { className: "grid" },
      h("section", { className: "card span-2", id: "unpriced", "aria-labelledby": "unpriced-title" }, h("h2", { id: "unpriced-title" }, "Models without a price"),
        unpriced.models === null ? notice("bad", unpriced.problem) : unpricedTable(unpriced.models, setter, repricer)),
      setter && h("section", { className: "card span-2", "aria-labelledby": "set-title" }, h("h2", { id: "set-title" }, "Add a rate"), setter.node),
      repricer && h("section", { className: "card span-2", "aria-labelledby": "reprice-title" }, h("h2", { id: "reprice-title" }, "Price booked calls again"), repricer.node),
      h("section", { className: "card span-2", "aria-labelledby": "explain-title" }, h("h2", { id: "explain-title" }, "Explain a price"), explainForm(page, explained), explained),
      h("section", { className: "card span-2", "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, "Rates that were set"), history(rates)),
      rates.ignored.length > 0 && h("section", { className: "card span-2", "aria-labelledby": "ignored-title" }, h("h2", { id: "ignored-title" }, "Rates that are not used"),
        table("Rates that are not used", [
          { title: "Rate", cell: (row) => row.rate_id || `record ${row.offset}` },
          { title: "Why", cell: (row) => `${row.reason}: ${row.detail}` },
        ], rates.ignored))),
    h("p", { className: "note" }, `Everything else is priced by the built-in book: ${rates.book.source}.`));
  return { repricer, models: unpriced.models ?? [] };
}

function unpricedTable(models, setter, repricer) {
  return [
    table("Models without a price", [
      { title: "Model", cell: (row) => h("span", { className: "named" }, h("span", { className: "name" }, row.model), h("span", { className: "id small" }, row.provider)) },
      { title: "Calls", number: true, cell: (row) => count(row.unpriced_requests) },
      { title: "First seen", roomy: true, cell: (row) => row.first_day },
      { title: "Last seen", roomy: true, cell: (row) => row.last_day },
      repricer && { title: "", cell: (row) => h("div", { className: "actions" },
        setter && h("button", { type: "button", onclick: () => setter.start(row) }, "Add a rate", h("span", { className: "unseen" }, ` for ${row.model}`)),
        h("button", { type: "button", onclick: () => repricer.start(row) }, "Price again", h("span", { className: "unseen" }, ` calls of ${row.model}`))) },
    ].filter(Boolean), models, "Every call in the ledger has a price."),
    models.length > 0 && h("p", { className: "note" }, "Their tokens count; their cost is unknown, not zero. A rate added now prices what comes; what is booked already changes when it is priced again."),
  ];
}

function history(rates) {
  return table("Rates that were set, newest first", [
    { title: "Applies to", cell: ({ rate }) => (rate.withdraws ? `withdraws ${rate.withdraws}` : rate.fx ? `1 ${rate.fx}` : h("span", { className: "named" }, h("span", { className: "name" }, rate.model), h("span", { className: "id small" }, rate.provider))) },
    { title: "From", cell: ({ rate }) => time(rate.effective_from) },
    { title: "Price", wide: true, cell: ({ rate }) => priceText(rate) },
    { title: "Rate", cell: ({ rate }) => h("span", { className: "id small" }, rate.rate_id) },
  ], rates.rates.toReversed(), "No rate was set; the built-in book prices everything.");
}

function priceText(rate) {
  if (rate.multiplier) return `× ${rate.multiplier}`;
  if (rate.rate) return rate.rate;
  const parts = [["per_million", "per million"], ["per_second", "per second"], ["per_unit", "each"]].flatMap(([name, text]) =>
    Object.entries(rate[name] ?? {}).map(([counter, amount]) => `${COUNTERS[counter] ?? counter} ${amount} ${text}`));
  return `${parts.join(", ")}${rate.currency ? ` ${rate.currency}` : ""}${rate.backdated ? " (backdated)" : ""}`;
}

function explainForm(page, place) {
  const provider = field("Provider", h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "openai" }));
  const model = field("Model", h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "gpt-5" }));
  const at = field("At (UTC, empty for now)", h("input", { type: "text", autocomplete: "off", placeholder: "2026-11-22" }));
  const fields = { provider, model, at };
  return h("form", { novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    for (const one of Object.values(fields)) one.fail(null);
    for (const one of [provider, model]) if (!one.input.value.trim()) { one.fail("Is needed."); one.input.focus(); return; }
    try {
      const found = await get(`/v1/prices/explain${query({ provider: provider.input.value.trim(), model: model.input.value.trim(), at: at.input.value.trim() })}`, page.signal);
      fill(place, explanation(found));
      announce(`${found.status}: ${found.why}`);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error instanceof Refusal && fields[error.field]) fields[error.field].fail(error.message.replace(`${error.field}: `, ""));
      else fill(place, notice("bad", error.message));
    }
  } }, h("div", { className: "fields" }, provider.node, model.node, at.node), h("div", { className: "actions" }, h("button", { type: "submit" }, "Explain")));
}

function explanation(found) {
  const tone = { priced: "ok", free: "ok", unpriced: "soft-cap-exceeded" }[found.status];
  return h("div", { className: "explanation" },
    h("p", {}, badge(tone, { priced: "Priced", free: "Free", unpriced: "No price" }[found.status]), ` ${found.why[0].toUpperCase()}${found.why.slice(1)}.`, found.rate_id && h("span", { className: "id small" }, ` ${found.rate_id}`)),
    found.multiplier && h("p", { className: "note" }, `Multiplied by ${found.multiplier}.`),
    found.prices.length > 0 && table("Prices", [
      { title: "Of", cell: (row) => COUNTERS[row.counter] ?? row.counter },
      { title: `Price in ${found.currency}`, number: true, cell: (row) => row.amount },
      { title: "For", number: true, cell: (row) => count(row.per) },
      { title: "", cell: (row) => [row.like !== row.counter && `as ${COUNTERS[row.like] ?? row.like}`, row.above > 0 && `above ${count(row.above)} input tokens`].filter(Boolean).join(", ") },
    ], found.prices),
    found.lost.length > 0 && table("Rates that lost", [
      { title: "Instead of", cell: (row) => row.rate_id },
      { title: "Because", cell: (row) => row.reason },
    ], found.lost));
}

/** Publishes a rate for one model, and offers to price what is booked already. */
function rateForm(page, onPublished) {
  const text = (placeholder) => h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder });
  const amount = () => h("input", { type: "text", inputmode: "decimal", autocomplete: "off" });
  const provider = field("Provider", text("acme"));
  const model = field("Model", text("frontier-x1"));
  const input = field(`Input (${session.whoami.currency} a million)`, amount());
  const output = field(`Output (${session.whoami.currency} a million)`, amount());
  const per = field(`Each call (${session.whoami.currency})`, amount());
  const more = Object.fromEntries(MORE.map(([name, basis]) => [name, field(`${COUNTERS[name]} (${session.whoami.currency}${basis === "per_million" ? " a million" : " each"})`, amount())]));
  const from = field("Holds", select({ soon: `from in ${session.whoami.price_lead_s} s on`, back: "backdated by 30 days" }, "soon"), "What is booked already keeps its price until it is repriced.");
  const fields = { provider, model, input_tokens: input, output_tokens: output, request: per, ...more };
  const others = h("details", {}, h("summary", {}, "Other prices: parts of input and output, audio, characters, images"),
    h("p", { className: "hint" }, "A part without a price of its own costs what input or output costs."), h("div", { className: "fields" }, Object.values(more).map((one) => one.node)));
  const said = h("div", { className: "said" });
  const node = h("form", { novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    fill(said);
    for (const one of Object.values(fields)) one.fail(null);
    const body = rate();
    if (!body) return;
    try {
      const { content } = await ask("PUT", "/v1/prices", { body, signal: page.signal });
      announce("The rate is published.");
      const { repricer, models } = await onPublished();
      page.place.querySelector("#unpriced")?.append(published(content.rates[0], repricer, models));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      const name = (error.field ?? "").split(".").at(-1);
      if (fields[name]) { fields[name].fail(error.message); fields[name].input.focus(); } else fill(said, notice("bad", error.message));
    }
  } }, h("div", { className: "fields" }, provider.node, model.node, input.node, output.node, per.node, from.node), others,
  h("div", { className: "actions" }, h("button", { type: "submit", className: "primary" }, "Publish the rate")), said);

  function rate() {
    for (const one of [provider, model]) if (!one.input.value.trim()) { one.fail("Is needed."); one.input.focus(); return null; }
    const body = { provider: provider.input.value.trim(), model: model.input.value.trim(), currency: session.whoami.currency, per_million: {}, per_second: {}, per_unit: {} };
    for (const [name, basis] of [["input_tokens", "per_million"], ["output_tokens", "per_million"], ["request", "per_unit"], ...MORE]) {
      const value = fields[name].input.value.trim();
      if (!value) continue;
      if (!/^\d{1,9}(\.\d{1,12})?$/.test(value)) { if (more[name]) others.open = true; fields[name].fail("Must be an amount such as 0.25, not negative."); fields[name].input.focus(); return null; }
      body[basis][name] = value;
    }
    for (const name of BASES) if (!Object.keys(body[name]).length) delete body[name];
    if (!BASES.some((name) => body[name])) { input.fail("At least one price is needed."); input.input.focus(); return null; }
    if (from.input.value === "back") {
      const start = new Date(Date.now() - 30 * 86_400_000);
      Object.assign(body, { backdated: true, effective_from: `${start.toISOString().slice(0, 10)}T00:00:00Z` });
    }
    return body;
  }

  return { node, start(row) { provider.input.value = row.provider; model.input.value = row.model; input.input.focus(); node.scrollIntoView({ block: "center" }); } };
}

function published(rate, repricer, models) {
  const row = models.find((one) => one.provider === rate.provider && one.model === rate.model);
  const isGlob = [rate.provider, rate.model].some((text) => /[*?[]/.test(text));
  return notice("good", h("p", {}, `Rate ${rate.rate_id} for ${rate.provider}/${rate.model} is published. Calls that are booked already keep their price until they are priced again.`),
    !isGlob && h("button", { type: "button", onclick: () => repricer.start({ provider: rate.provider, model: rate.model, first_day: row?.first_day }) }, "Show what it would change"));
}
