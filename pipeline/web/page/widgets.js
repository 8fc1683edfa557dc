// The parts that pages are made of.

import { fill, freshId, h, svg } from "./dom.js";
import { STATUSES, amount, amountOf, percent } from "./format.js";

const MARKS = {
  ok: "M3.5 8.5 6.5 11.5 12.5 4.5",
  "soft-cap-exceeded": "M8 3.5v5.5M8 12v.4",
  "hard-cap-exceeded": "M4.5 4.5l7 7M11.5 4.5l-7 7",
  disabled: "M4 8h8",
  "no-policy": "M4 8h8",
};

/** A status by sign, word and colour. */
export function badge(status, text) {
  const tone = { ok: "good", "soft-cap-exceeded": "warn", "hard-cap-exceeded": "bad" }[status] ?? "idle";
  return h("span", { className: `badge ${tone}`, "data-status": status },
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" },
      svg("path", { d: MARKS[status] ?? MARKS.disabled, fill: "none", stroke: "currentColor", "stroke-width": 2.2, "stroke-linecap": "round", "stroke-linejoin": "round" })),
    text ?? STATUSES[status] ?? status);
}

export function card(title, ...children) {
  const id = freshId("card");
  return h("section", { className: "card", "aria-labelledby": id }, h("h2", { id }, title), ...children);
}

export function figure(title, value, note) {
  return h("div", { className: "figure" }, h("dt", {}, title), h("dd", {}, value, note && h("span", { className: "note" }, note)));
}

/** A table of `columns` {title, cell, number, wide, roomy}; on a narrow screen it scrolls by itself, and roomy columns are left out on a phone. */
export function table(caption, columns, rows, empty = "Nothing here.") {
  if (!rows.length) return h("p", { className: "empty" }, empty);
  return h("div", { className: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { className: "unseen" }, caption),
      h("thead", {}, h("tr", {}, columns.map((column) =>
        h("th", { scope: "col", className: classesOf(column, ["number", "roomy"]) }, column.title)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, columns.map((column, at) =>
        h(at === 0 ? "th" : "td", { scope: at === 0 ? "row" : null, className: classesOf(column, ["number", "wide", "roomy"]) },
          column.cell(row))))))));
}

function classesOf(column, names) { return names.filter((name) => column[name]).join(" ") || null; }

/** Use against soft line and hard cap. The words beside it say the same. */
export function capBar(budget, currency) {
  const { unit } = budget;
  const used = amountOf(budget.used, unit);
  const hard = amountOf(budget.hard_cap, unit);
  const soft = amountOf(budget.soft_line ?? budget.soft_cap, unit);
  const scale = hard ?? soft;
  const share = scale === null ? null : percent(used, scale);
  const tone = { "soft-cap-exceeded": "warn", "hard-cap-exceeded": "bad", ok: "good" }[budget.status] ?? "idle";
  const softAt = soft !== null && hard !== null && hard > 0n ? Math.min(100, percent(soft, hard)) : null;
  const says = scale === null
    ? `${amount(budget.used, unit, currency)} used, no cap`
    : `${amount(budget.used, unit, currency)} of ${amount(budget.hard_cap ?? budget.soft_cap, unit, currency)}, ${share} percent`;
  return h("div", { className: `bar ${tone}`, role: "img", "aria-label": says },
    h("div", { className: "filled", "width%": Math.min(100, share ?? 0) }),
    softAt !== null && h("div", { className: "line", "left%": softAt, title: `soft line ${amount(budget.soft_line, unit, currency)}` }));
}

/** A labelled field. `fail` shows a message beside it, for eyes and ears. */
export function field(labelText, input, hint) {
  const id = freshId("field");
  const messageId = `${id}-message`;
  const hintId = `${id}-hint`;
  input.id = id;
  input.setAttribute("aria-describedby", hint ? `${hintId} ${messageId}` : messageId);
  const message = h("p", { id: messageId, className: "failure" });
  const node = h("div", { className: "field" },
    h("label", { for: id }, labelText), input,
    hint && h("p", { id: hintId, className: "hint" }, hint), message);
  return {
    node,
    input,
    fail(text) {
      fill(message, text ?? "");
      if (text) input.setAttribute("aria-invalid", "true");
      else input.removeAttribute("aria-invalid");
    },
  };
}

export function select(options, chosen, properties) {
  return h("select", properties, Object.entries(options).map(([value, text]) =>
    h("option", { value, selected: value === chosen }, text)));
}

export function toggle(labelText, checked, properties) {
  const input = h("input", { type: "checkbox", role: "switch", checked, ...properties });
  return { input, node: h("label", { className: "switch" }, input, h("span", { className: "track", "aria-hidden": "true" }), labelText) };
}

export function button(text, properties) {
  return h("button", { type: "button", ...properties }, text);
}

export function notice(tone, ...children) {
  return h("div", { className: `notice ${tone}`, role: tone === "bad" ? "alert" : "status" }, ...children);
}

/** The page's head line. */
export function head(title, ...beside) {
  return h("div", { className: "head" }, h("h1", {}, title), ...beside);
}

/** The head line of a part of a page. */
export function subhead(title, ...beside) {
  return h("div", { className: "head" }, h("h2", {}, title), ...beside);
}

/** Searches as one types, a moment after the last key. */
export function searchField(labelText, value, onSearch) {
  const input = h("input", { type: "search", value, autocomplete: "off", spellcheck: "false", placeholder: "Id or name" });
  let waiting = 0;
  input.addEventListener("input", () => {
    window.clearTimeout(waiting);
    waiting = window.setTimeout(() => onSearch(input.value.trim()), 250);
  });
  return field(labelText, input).node;
}

export function pager({ shown, total, hasPrevious, hasNext, onPrevious, onNext }) {
  return h("nav", { className: "pager", "aria-label": "Pages" },
    button("Previous", { disabled: !hasPrevious, onclick: onPrevious }),
    h("span", {}, total === null ? shown : `${shown} of ${total}`),
    button("Next", { disabled: !hasNext, onclick: onNext }));
}
