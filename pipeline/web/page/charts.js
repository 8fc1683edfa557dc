// Charts as SVG, each with the same figures as a table for those who do not see it.

import { h, svg } from "./dom.js";
import { count, day, money, parseNano } from "./format.js";

const HEIGHT = 150;
const NARROW = 620;
const LEFT = 56;
const BOTTOM = 24;
const TOP = 12;

/** Thirty days: what the organisation pays for, and on top of it what users pay for. */
export function trend(days, currency) {
  const width = window.innerWidth < NARROW ? 360 : 720;
  const nanos = days.map((one) => [parseNano(one.org_cost ?? "0"), parseNano(one.user_cost ?? "0")]);
  const most = nanos.reduce((top, [org, user]) => (org + user > top ? org + user : top), 0n);
  const ceiling = niceCeiling(most);
  const step = (width - LEFT) / days.length;
  const tall = HEIGHT - TOP - BOTTOM;
  // Heights are drawn in thousandths of a pixel, so no amount has to become a float.
  const heightOf = (nano) => (ceiling === 0n ? 0 : Number(nano * BigInt(tall * 1000) / ceiling) / 1000);
  const bars = days.flatMap((one, at) => {
    const [org, user] = nanos[at];
    const x = LEFT + at * step + step * 0.14;
    const thick = step * 0.72;
    const orgHeight = heightOf(org);
    const userHeight = heightOf(user);
    const says = `${day(one.date)}: ${money(one.cost, currency)}, ${count(one.requests)} calls`;
    return [
      svg("rect", { className: "bar-org", x, width: thick, y: HEIGHT - BOTTOM - orgHeight, height: orgHeight, rx: 1.5 }, svg("title", {}, says)),
      user > 0n && svg("rect", { className: "bar-user", x, width: thick, y: HEIGHT - BOTTOM - orgHeight - userHeight, height: userHeight, rx: 1.5 }, svg("title", {}, says)),
    ];
  });
  const lines = [0n, 1n, 2n].map((part) => {
    const y = HEIGHT - BOTTOM - (tall * Number(part)) / 2;
    const nano = ceiling * part / 2n;
    return [
      svg("line", { className: "rule", x1: LEFT, x2: width, y1: y, y2: y }),
      svg("text", { className: "tick", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, money(`${nano / 1_000_000_000n}.${String(nano % 1_000_000_000n).padStart(9, "0")}`, currency).replace(/\.00$/, "")),
    ];
  });
  const marks = days.map((one, at) => (at % (width < 500 ? 14 : 7) === 1 || at === days.length - 1) &&
    svg("text", { className: "tick", x: LEFT + at * step + step / 2, y: HEIGHT - 6, "text-anchor": at === days.length - 1 ? "end" : "middle" }, day(one.date)));
  return h("figure", { className: "chart" },
    svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": "Cost of each of the last 30 days; the same figures are in the table below" }, lines.flat(), bars, marks),
    h("figcaption", {},
      h("span", { className: "key org" }, "organisation pays"), h("span", { className: "key user" }, "users pay"),
      h("details", {}, h("summary", {}, "As a table"),
        h("div", { className: "scroll", tabindex: 0, role: "region", "aria-label": "Cost of the last 30 days" },
          h("table", {}, h("thead", {}, h("tr", {}, ["Day", "Calls", "Organisation", "Users", "Without price"].map((title, at) => h("th", { scope: "col", className: at && "number" }, title)))),
            h("tbody", {}, days.toReversed().map((one) => h("tr", {}, h("th", { scope: "row" }, day(one.date)),
              [count(one.requests), money(one.org_cost, currency), money(one.user_cost, currency), count(one.unpriced_requests)].map((text) => h("td", { className: "number" }, text))))))))));
}

/** The next of 1, 2, 5, 10, … above. */
function niceCeiling(nano) {
  if (nano <= 0n) return 1_000_000_000n;
  let step = 1n;
  while (true) {
    for (const factor of [1n, 2n, 5n]) if (step * factor >= nano) return step * factor;
    step *= 10n;
  }
}

/** Lines with a bar behind each: the length is the share of the largest. */
export function ranking(rows) {
  const most = rows.reduce((top, row) => (row.nano > top ? row.nano : top), 1n);
  return h("ol", { className: "ranking" }, rows.map((row) => h("li", {},
    h("div", { className: "what" }, row.what),
    h("div", { className: "value" }, row.value),
    h("div", { className: "length", "aria-hidden": "true" }, h("div", { "width%": Math.max(0.5, Number(row.nano * 1000n / most) / 10) })))));
}
