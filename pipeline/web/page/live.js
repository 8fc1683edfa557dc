// Budget states as they change, over server-sent events. They are read with fetch, as EventSource
// cannot send the key. Ends when `signal` is aborted; comes back by itself after anything else.

import { authorization } from "./api.js";

const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 15_000;

export async function follow(scopes, { onEvent, onStanding, signal }) {
  const path = `/v1/state/stream?${new URLSearchParams(scopes.map((scope) => ["scope", scope]))}`;
  let lastId = null;
  let waitMs = FIRST_WAIT_MS;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...authorization() };
      if (lastId) headers["Last-Event-ID"] = lastId;
      const answer = await fetch(path, { headers, signal, cache: "no-store" });
      if (!answer.ok) throw new Error(String(answer.status));
      onStanding(true);
      waitMs = FIRST_WAIT_MS;
      for await (const event of events(answer.body)) {
        // A reset that is cut off is asked for again: an older id would resume past it.
        if (event.name === "reset") lastId = null;
        if (event.id) lastId = event.id;
        onEvent(event.name, event.data);
      }
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
    }
    onStanding(false);
    await new Promise((resolve) => { window.setTimeout(resolve, waitMs); });
    waitMs = Math.min(MOST_WAIT_MS, waitMs * 2);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { name: "message", data: null, id: null };
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) event.name = line.slice(7);
        else if (line.startsWith("id: ")) event.id = line.slice(4);
        else if (line.startsWith("data: ")) event.data = JSON.parse(line.slice(6));
      }
      if (event.data !== null) yield event;
    }
  }
}
