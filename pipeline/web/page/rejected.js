// Records that broke a rule: the reason, the place, and the bytes as they came.

import { get, mayChange, query } from "./api.js";
import { fill, h } from "./dom.js";
import { count, time } from "./format.js";
import { link, look } from "./names.js";
import { replayForm } from "./replay.js";
import { card, head, notice, pager, select } from "./widgets.js";

const PAGE = 20;
const REASONS = ["too-large", "bad-cloudevent", "malformed-json", "not-an-object", "missing-field", "wrong-type", "out-of-range", "bad-timestamp", "inconsistent-tokens", "too-old", "in-the-future", "unknown-event", "unknown-rate", "already-void", "wrong-currency"];

export async function show(page) {
  let reason = page.search.get("reason") ?? "";
  let places = [null];
  const place = h("div", { className: "column" });
  const reasons = Object.fromEntries([["", "Every reason"], ...REASONS.map((one) => [one, one])]);
  const chooser = select(reasons, reason, { "aria-label": "Shown reason" });
  const replay = mayChange() && replayForm(page, reasons);
  if (replay) replay.choose(reason);
  chooser.addEventListener("change", () => { reason = chooser.value; places = [null]; if (replay) replay.choose(reason); again(); });
  fill(page.place, head("Rejected records", h("div", { className: "beside" }, chooser)),
    h("p", { className: "lead" }, "Newest first. They are kept for 30 days as they came, and change nothing that is counted."),
    replay && card("Send records again", replay.node), place);

  async function draw() {
    const found = await get(`/v1/rejected${query({ limit: PAGE, reason, cursor: places.at(-1) })}`, page.signal);
    await look(found.records.map((one) => `port:${one.port_id ?? ""}`), page.signal);
    fill(place,
      found.records.length ? h("ul", { className: "records" }, found.records.map(record)) : h("p", { className: "empty" }, found.next ? "None among the newest; older ones may follow." : "No record was rejected."),
      (places.length > 1 || found.next) && pager({
        shown: `Page ${count(places.length)}`, total: null, hasPrevious: places.length > 1, hasNext: found.next !== null,
        onPrevious: () => { places.pop(); again(); }, onNext: () => { places.push(found.next); again(); },
      }));
  }
  const again = () => draw().catch((error) => { if (error.name !== "AbortError") fill(place, notice("bad", error.message)); });
  await draw();
}

function record(one) {
  return h("li", { className: "card" },
    h("div", { className: "line1" }, h("strong", {}, one.reason), h("span", { className: "note" }, time(one.rejected_at)), one.port_id && link(`port:${one.port_id}`)),
    h("p", {}, one.detail),
    h("p", { className: "id small" }, `${one.source_topic}, partition ${one.source_partition ?? "?"}, offset ${one.source_offset ?? "?"} · ${count(one.size_bytes)} bytes`),
    h("details", {}, h("summary", {}, "The record"), h("pre", { tabindex: 0, "aria-label": "The record as it came" }, one.preview || "(empty)", one.is_cut && "\n… (cut)")));
}
