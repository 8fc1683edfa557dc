// What an id is called, and where its mail goes.

import { Refusal, ask, get, query } from "./api.js";
import { announce, fill, h } from "./dom.js";
import { forget, learn } from "./names.js";
import { field, notice } from "./widgets.js";

export function nameEditor(scope, onChanged, signal) {
  const path = `/v1/names/${encodeURIComponent(scope)}`;
  const said = h("div", { className: "said" });
  const name = field("Display name", h("input", { type: "text", maxlength: 200, autocomplete: "off" }), "Shown beside the id. Never part of events or ledger.");
  const email = field("Mail address", h("input", { type: "email", maxlength: 254, autocomplete: "off" }), "For reports and alerts.");
  const fields = { display_name: name, email };
  const save = h("button", { type: "submit" }, "Save name");
  // Until what there is has come: it would replace what was typed, and saving would remove it.
  const controls = [name.input, email.input, save];
  for (const control of controls) control.disabled = true;
  const form = h("form", { className: "name", novalidate: true, onsubmit: async (event) => {
    event.preventDefault();
    fill(said);
    for (const one of Object.values(fields)) one.fail(null);
    const body = { display_name: name.input.value.trim() || null, email: email.input.value.trim() || null };
    try {
      await ask("PUT", path, { body, signal });
      if (body.display_name || body.email) learn({ [scope]: body }); else forget(scope);
      fill(said, notice("good", "Saved."));
      announce("Name saved.");
      onChanged();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      if (fields[error.field]) fields[error.field].fail(error.message.replace(`${error.field}: `, ""));
      else fill(said, notice("bad", error.message));
    }
  } }, h("div", { className: "fields" }, name.node, email.node), h("div", { className: "actions" }, save), said);
  get(`/v1/names${query({ scope })}`, signal).then((found) => {
    name.input.value = found.names[0]?.display_name ?? "";
    email.input.value = found.names[0]?.email ?? "";
    for (const control of controls) control.disabled = false;
  }).catch((error) => {
    if (!signal.aborted) fill(said, notice("bad", `The name cannot be read: ${error.message}. Load the page again.`));
  });
  return h("section", { className: "card", "aria-labelledby": "name-title" }, h("h2", { id: "name-title" }, "Name"), form);
}
