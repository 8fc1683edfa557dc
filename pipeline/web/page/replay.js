// Sending rejected records again: what would become of them, and then the start of it.

import { h } from "./dom.js";
import { count } from "./format.js";
import { portField, runPanel } from "./runs.js";
import { field, select, toggle } from "./widgets.js";

const FATES = { accepted: "to be accepted", "for the worker to judge": "for the worker to judge" };

/** A form that shows what sending records again would do, and starts it. */
export function replayForm(page, reasons) {
  const reason = field("Reason", select(reasons, ""));
  const port = portField("That the record itself names.", false);
  const again = toggle("Also what was sent again before", false, {});
  const fields = { reasons: reason, port_id: port };
  const panel = runPanel({ page, kind: "replay", path: "/v1/replays", tell, changes: (result) => result.sent > 0, startText: "Send these records again" });
  const look = () => {
    for (const one of Object.values(fields)) one.fail(null);
    const body = { again: again.input.checked };
    if (reason.input.value) body.reasons = [reason.input.value];
    if (port.input.value.trim()) body.port_id = port.input.value.trim();
    return panel.look(body, fields);
  };
  const node = h("div", { className: "column" },
    h("p", { className: "note" }, "When what was wrong is right, records can be sent again as they came, once each; age is judged as of then. Nothing is sent before you have seen what would become of them."),
    h("form", { novalidate: true, onsubmit: (event) => { event.preventDefault(); look(); } },
      h("div", { className: "fields" }, reason.node, port.node), again.node,
      h("div", { className: "actions" }, h("button", { type: "submit" }, "Show what would be sent"))),
    panel.node);
  return { node, choose(value) { reason.input.value = value; } };
}

function tell({ dry_run: isDry, result }) {
  const left = [[result.replayed_before, "sent again before"], [result.in_ledger, "in the ledger by now"], [result.too_large, "too large for an event"]].filter(([number]) => number);
  const fates = Object.entries(result.expected).sort();
  return [
    h("p", {}, h("strong", {}, `${result.sent === 1 ? "1 record" : `${count(result.sent)} records`} ${isDry ? "would be sent" : result.sent === 1 ? "was sent" : "were sent"}.`), ` ${count(result.chosen)} chosen of ${count(result.read)} that were read.`),
    fates.length > 0 && h("ul", { className: "reasons" }, fates.map(([fate, number]) => h("li", {}, `${count(number)} ${FATES[fate] ?? `to be rejected again: ${fate}`}`))),
    left.length > 0 && h("p", { className: "note" }, `Left out: ${left.map(([number, why]) => `${count(number)} ${why}`).join(", ")}.`),
  ].filter(Boolean);
}
