/* What the page shows, as the part of its address after "#": `#flow?feature=4/res/100&t_res=0.6`.

   One flat set of keys for all views, so that going to another view and back loses nothing. Only what differs from
   the default is written. The token is in a cookie and never here. */
import { query } from "./api.js";

export const VIEWS = ["flow", "steer", "text", "results"];
const LONGEST = 600; // of one value: longer texts stay in this tab's storage

let current = { view: "flow", values: {} };
const readers = new Set();

function parse(hash) {
  const [view, said = ""] = hash.replace(/^#/, "").split("?");
  return { view: VIEWS.includes(view) && document.getElementById(view) ? view : "flow", values: Object.fromEntries(new URLSearchParams(said)) };
}

/** The address of a view with what is known now. */
export function address(view, changes = {}) {
  const values = { ...current.values, ...changes };
  const said = query(Object.fromEntries(Object.entries(values).filter(([, value]) => String(value ?? "").length <= LONGEST)));
  return `#${view}${said ? `?${said}` : ""}`;
}

export const view = () => current.view;

/** The value of a key, or `otherwise`. */
export function value(key, otherwise = "") {
  return current.values[key] ?? otherwise;
}

/** A list of ids under a key. */
export function list(key) {
  return value(key).split(",").filter(Boolean);
}

/**
 * Change what is shown. `push` makes a step that the back button undoes; else the present one is overwritten.
 * @param {Object<string, string|number|null>} changes null and "" take a key away
 */
export function update(changes, { push = false, to = current.view } = {}) {
  const values = { ...current.values };
  for (const [key, next] of Object.entries(changes)) {
    if (next === null || next === undefined || next === "") delete values[key];
    else values[key] = String(next);
  }
  const before = current;
  current = { view: to, values };
  const hash = address(to);
  if (hash !== location.hash) history[push ? "pushState" : "replaceState"](null, "", hash);
  tell(before);
}

/** Be told of every change: reader(now, before), each {view, values}. */
export function subscribe(reader) {
  readers.add(reader);
}

function tell(before) {
  for (const reader of readers) reader(current, before);
}

/** Read the address and follow the back button. */
export function start() {
  current = parse(location.hash);
  addEventListener("popstate", () => {
    const before = current;
    current = parse(location.hash);
    tell(before);
  });
  tell({ view: "", values: {} });
}
