// Elements from data. Text is only ever set as text: what an id or a name holds never becomes markup.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, properties, ...children) {
  return furnish(document.createElement(tag), properties, children);
}

export function svg(tag, properties, ...children) {
  return furnish(document.createElementNS(SVG, tag), properties, children);
}

function furnish(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "width%") node.style.setProperty("width", `${value}%`);
    else if (name === "left%") node.style.setProperty("left", `${value}%`);
    else node.setAttribute(name === "className" ? "class" : name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

/** Replaces what is in `node`. */
export function fill(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

/** Tells screen readers what changed without being asked. */
export function announce(text) {
  const place = document.getElementById("announcer");
  place.textContent = "";
  window.setTimeout(() => { place.textContent = text; }, 50);
}

let lastId = 0;

/** An id that no other element has. */
export function freshId(prefix) {
  lastId += 1;
  return `${prefix}-${lastId}`;
}
