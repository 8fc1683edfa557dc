// Requests to the API with the key of this session, and its refusals as errors.

const STORED = "tallyport-key";

export const session = { key: null, whoami: null };

try { session.key = window.sessionStorage.getItem(STORED); } catch { /* kept in memory alone */ }

export function keep(key) {
  session.key = key;
  try {
    if (key) window.sessionStorage.setItem(STORED, key);
    else window.sessionStorage.removeItem(STORED);
  } catch { /* kept in memory alone */ }
}

/** A problem document, or what stands in for one. `field` names what was refused. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? (status ? `The server answered ${status}.` : "The server cannot be reached."));
    this.status = status;
    this.field = problem?.field ?? null;
  }
}

export function authorization() {
  return session.key ? { Authorization: `Bearer ${session.key}` } : {};
}

export async function ask(method, path, { body, headers, signal } = {}) {
  const options = { method, signal, cache: "no-store", headers: { Accept: "application/json", ...authorization(), ...headers } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, null);
  }
  const text = await answer.text();
  let content = null;
  try { content = text ? JSON.parse(text) : null; } catch { /* no JSON: the status says enough */ }
  if (!answer.ok) throw new Refusal(answer.status, content);
  return { content, etag: answer.headers.get("etag"), status: answer.status };
}

export async function get(path, signal) {
  return (await ask("GET", path, { signal })).content;
}

export function query(parameters) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") found.append(name, one);
    }
  }
  const text = found.toString();
  return text ? `?${text}` : "";
}

export const mayChange = () => session.whoami?.role === "admin";
export const seesAll = () => session.whoami?.ports === null;
/** Whether this session may change the budget or the name of a scope. */
export function mayChangeScope(scope) {
  if (!mayChange()) return false;
  return seesAll() || session.whoami.ports.some((port) => scope === `port:${port}`);
}
