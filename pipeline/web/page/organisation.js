// What holds for everything, and for one organisation: daily and monthly limits, and the warning.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { budgetCard } from "./budget.js";
import * as ids from "./ids.js";
import { head } from "./widgets.js";

export async function show(page) {
  const monthly = h("div", {});
  const daily = h("div", {});
  const list = h("div", { className: "nested" });
  fill(page.place, head("Organisation policy"),
    h("p", { className: "lead" }, "Cost limits of the whole deployment. They count what the organisation pays for, whichever port, group or user a call belongs to."),
    h("div", { className: "grid" }, h("div", {}, monthly), h("div", {}, daily)), list);
  const whole = { ...page, search: new URLSearchParams() };
  await Promise.all([
    budgetCard({ place: monthly, usagePlace: null, scope: "all", path: "all", page: whole, unit: "cost", period: "month", title: "Monthly limit" }),
    budgetCard({ place: daily, usagePlace: null, scope: "all", path: "all", page: whole, unit: "cost", period: "day", title: "Daily limit" }),
  ]);
  const found = await get("/v1/usage/organizations?limit=1", page.signal);
  if (found.total > 0) await ids.show({ ...page, place: list, nested: true }, "org");
}
