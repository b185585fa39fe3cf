/* Elements, and small things that every part of the page needs. Text is set with textContent only. */

/** The first element that fits. */
export const $ = (selector, root = document) => root.querySelector(selector);

/** All elements that fit, as an array. */
export const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

/**
 * A new element: `h("button", { class: "quiet", type: "button", onclick: act }, "Save")`.
 * Keys that begin with "on" are listeners; null and false leave an attribute out.
 * @param {string} tag
 * @param {Object<string, any>} attributes
 * @param {...(Node|string|null)} children
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Put these into `root` in the place of what is there; null leaves nothing. */
export function refill(root, ...children) {
  root.replaceChildren(...children.filter((child) => child !== null && child !== undefined && child !== ""));
}

const SVG = "http://www.w3.org/2000/svg";

/** A new SVG element with attributes and text. */
export function svg(tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  if (text) element.textContent = text;
  return element;
}

/** `act` at the earliest `wait` milliseconds after the last call. */
export function debounce(act, wait) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), wait);
  };
}

/** A share as percent with two digits that count. */
export function percent(share) {
  if (share === 0) return "0%";
  return share < 0.0001 ? "<0.01%" : `${Number((100 * share).toPrecision(2))}%`;
}

/** A score with two digits; a dash where there is none. */
export function digits(score) {
  return score === null || score === undefined ? "–" : score.toFixed(2).replace("-0.00", "0.00");
}

/** A p-value with two digits that count. */
export function pValue(p) {
  return p === null || p === undefined ? "" : `p ${p < 0.001 ? p.toExponential(0).replace("e-", "e−") : Number(p.toPrecision(2))}`;
}

/** "4/res/123" as its layer, part and number; null for anything else. */
export function parseId(id) {
  const found = /^(\d+)\/(res|mlp|att)\/(\d+)$/.exec(id ?? "");
  return found && { layer: Number(found[1]), part: found[2], index: Number(found[3]) };
}

/** Say something to screen readers, once. */
export function announce(text) {
  const live = $("#live");
  live.textContent = "";
  requestAnimationFrame(() => { live.textContent = text; });
}

/** Offer text as a file. */
export function download(name, text, type = "application/json") {
  save(name, new Blob([text], { type }));
}

/** Offer data as a file. */
export function save(name, data) {
  const url = URL.createObjectURL(data);
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** What went wrong and what to do, in the place of what was asked for. */
export function problem(error) {
  const said = error.message.replace(/^./u, (first) => first.toUpperCase());
  return h("div", { class: "problem", role: "alert" },
    h("p", { class: "what" }, said),
    error.todo ? h("p", { class: "todo" }, error.todo) : null);
}
