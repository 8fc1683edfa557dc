// What ids are called. Answers bring the names of the ids in them; others are asked for.

import { h } from "./dom.js";
import { get, query } from "./api.js";

const known = new Map();

export function learn(names) {
  for (const [scope, name] of Object.entries(names ?? {})) known.set(scope, name);
}

export function forget(scope) { known.delete(scope); }

/** Asks for the names of scopes that no answer brought. */
export async function look(scopes, signal) {
  const wanted = [...new Set(scopes)].filter((scope) => scope.includes(":")).slice(0, 200);
  if (!wanted.length) return;
  try {
    const found = await get(`/v1/names${query({ scope: wanted })}`, signal);
    for (const name of found.names) known.set(name.scope, name);
  } catch (error) {
    if (error.name === "AbortError") throw error; // without names ids stand for themselves
  }
}

export function nameOf(scope) { return known.get(scope)?.display_name ?? null; }

/** An id with its name, if it has one. */
export function label(scope, plainId) {
  const name = nameOf(scope);
  if (!name) return h("span", { className: "id" }, plainId);
  return h("span", { className: "named" }, h("span", { className: "name" }, name), " ", h("span", { className: "id small" }, plainId));
}

const PAGES = { port: "ports", user: "users", group: "groups", org: "organisations" };

export function pathOf(scope) {
  const at = scope.indexOf(":");
  const kind = at < 0 ? scope : scope.slice(0, at);
  if (kind === "all") return "#/organisation";
  if (scope === "user:*") return null;
  return `#/${PAGES[kind]}/${encodeURIComponent(scope.slice(at + 1))}`;
}

export function link(scope) {
  if (scope === "all") return h("a", { href: pathOf(scope) }, "everything");
  const plainId = scope.slice(scope.indexOf(":") + 1);
  const path = pathOf(scope);
  const shown = scope.endsWith(":*") ? h("span", {}, `every ${scope.slice(0, -2)}`) : label(scope, plainId);
  return path ? h("a", { href: path }, shown) : shown;
}
