// Work that is looked at before it is started: a dry run, what it shows, and the button to start it.

import { Refusal, ask, get, seesAll, session } from "./api.js";
import { announce, fill, h } from "./dom.js";
import { count, time } from "./format.js";
import { button, field, notice, select } from "./widgets.js";

const AGAIN_MS = 500;

/**
 * The runs of one `kind`, of which the newest is shown, also after a reload. `path` takes the body
 * of a dry run; `tell(run)` draws a result; `changes(result)` says whether there is anything to start.
 */
export function runPanel({ page, kind, path, tell, changes, startText }) {
  const node = h("div", { className: "run" });
  let shown = null;
  let waiting = 0;
  page.signal.addEventListener("abort", () => window.clearTimeout(waiting));

  function draw(run) {
    shown = run;
    const isNews = node.dataset.run !== `${run.id} ${run.state}`;
    node.dataset.run = `${run.id} ${run.state}`;
    node.dataset.state = run.state;
    fill(node, drawn(run));
    if (run.state === "running") waiting = window.setTimeout(poll, AGAIN_MS);
    else if (isNews && node.dataset.awaited) announce(run.problem ?? (run.dry_run ? "This is what would change." : "It is done."));
  }

  function drawn(run) {
    const { done, total } = run.progress;
    if (run.state === "running") {
      const said = total ? `${count(done)} of ${count(total)}` : "Beginning";
      return h("div", { className: "progress" }, h("span", { className: "live" }, run.dry_run ? "Looking, nothing is written" : "Under way", ` · ${said}`),
        h("progress", { "aria-label": "Progress", max: total || null, value: total ? done : null }), button("Stop", { className: "quiet", onclick: stop }));
    }
    if (run.state === "failed") return notice("bad", run.problem);
    if (run.state === "stopped") return notice("warn", run.dry_run ? "Stopped." : "Stopped. What was done stays; looking again shows what is left.");
    return h("div", { className: "column" }, h("p", { className: "note" }, chosen(run)), tell(run), run.problem && notice("warn", run.problem),
      run.dry_run && changes(run.result) && h("div", { className: "actions" }, button(startText, { className: "primary", onclick: start })));
  }

  async function poll() {
    await carefully(async () => draw(await get(`/v1/runs/${shown.id}`, page.signal)));
  }

  async function start() {
    await carefully(async () => begun(await ask("POST", `/v1/runs/${shown.id}/start`, { signal: page.signal })));
  }

  async function stop() {
    await carefully(async () => { await ask("DELETE", `/v1/runs/${shown.id}`, { signal: page.signal }); });
  }

  function begun({ content }) { node.dataset.awaited = "yes"; window.clearTimeout(waiting); draw(content); }

  async function carefully(work) {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Refusal)) throw error;
      fill(node, notice(error.status === 409 ? "warn" : "bad", error.message));
    }
  }

  carefully(async () => {
    const { runs } = await get("/v1/runs", page.signal);
    const newest = runs.find((run) => run.kind === kind);
    if (newest && !shown) draw(newest);
  });

  return {
    node,
    /** Looks at what `body` chooses. A refusal that names one of `fields` is told there. */
    async look(body, fields) {
      await carefully(async () => {
        try {
          begun(await ask("POST", path, { body, signal: page.signal }));
        } catch (error) {
          const one = error instanceof Refusal && fields[error.field];
          if (!one) throw error;
          one.fail(error.message.replace(`${error.field}: `, ""));
          one.input.focus();
        }
      });
    },
  };
}

/** What a run is about, and whose it is: it may be somebody else's, or of before a reload. */
function chosen({ selection, started_by: who, started_at: at }) {
  const { from, to, again, ...names } = selection;
  const told = Object.entries(names).filter(([, value]) => value !== null && String(value)).map(([name, value]) => `${name.replaceAll("_", " ")} ${Array.isArray(value) ? value.join(", ") : value}`);
  const span = `${from ? `from ${moment(from)} ` : ""}up to ${moment(to)}`;
  return [span, ...told, again && "again", `by ${who.replace(/^key:/, "")}, ${time(at)}`].filter(Boolean).join(" · ");
}

/** A time, or the day alone where it begins one. */
export function moment(text) { return text.endsWith("T00:00:00Z") ? text.slice(0, 10) : time(text); }

/** The port that is meant: any for who sees all, else one of the key's own. */
export function portField(hint, isOneNeeded) {
  const input = seesAll()
    ? h("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: "every port" })
    : select(Object.fromEntries([...(isOneNeeded || session.whoami.ports.length === 1 ? [] : [["", "all of this key"]]), ...session.whoami.ports.map((port) => [port, port])]), "");
  return field("Port", input, hint);
}

/** The values of `fields` as the API takes them, without those that are empty. */
export function bodyOf(fields) {
  return Object.fromEntries(Object.entries(fields).map(([name, one]) => [name, one.input.value.trim()]).filter(([, value]) => value));
}
