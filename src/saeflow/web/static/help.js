/* Keys, and the dialog that lists them. */
import { published } from "./api.js";
import { $, h } from "./dom.js";
import { letGo } from "./flow.js";

const KEYS = [
  ["/", "search"], ...(published ? [] : [["1 2 3 4", "flow, steer, text, results"]]), ["?", "this list"], ["Esc", "close, let go, back to the graph"],
  ["← →", "in the graph: along the best edge"], ["↑ ↓", "within a layer"], ["Enter", "read the feature; again: go into its panel"],
  ["g", "its own graph"], ["e", "expand: its next matches"], ...(published ? [] : [["p", "into the plan, or out"]]), ["+ − 0", "zoom, fit"],
  ["Ctrl + wheel", "zoom where the pointer is"], ["drag", "pan"],
];

/** Fill the dialog and listen to the keys of the whole page. */
export function startHelp(info) {
  const dialog = $("#help");
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => dialog.close());
  dialog.append(h("div", { class: "head" }, h("h2", { id: "help-title" }, "Keys"), close),
    h("dl", { class: "keys" }, ...KEYS.map(([key, does]) => h("div", {}, h("dt", {}, ...key.split(" ").map((one) => (/^(\+|wheel)$/.test(one) && key.includes("Ctrl") ? ` ${one} ` : h("kbd", {}, one)))), h("dd", {}, does)))),
    h("p", { class: "muted small" }, published ? "The address of this page holds what you see: a link to it shows the same." : "The address of this page holds what you see, without the token: keep it as a bookmark while the server runs on the same port."),
    h("p", { class: "muted small" }, `saeflow ${info.saeflow} · ${info.release} · made by ${info.made_by || "unknown"} · `, published ? "a site of files: nothing is asked of any other place" : h("a", { href: "/api/openapi.json", target: "_blank", rel: "noopener" }, "the API")));
  $("#help-open").addEventListener("click", () => dialog.showModal());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("keydown", (event) => onKey(event, dialog));
}

const writes = (element) => element?.matches?.("input:not([type=range], [type=radio], [type=checkbox]), textarea, select");

function onKey(event, dialog) {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  if (event.key === "Escape") {
    letGo();
    if ($("#panel").contains(document.activeElement)) $("#frame .node.chosen")?.focus();
    return;
  }
  if (writes(event.target)) return;
  const views = [...document.querySelectorAll("#views a")];
  if (event.key === "/") $("#search input").focus();
  else if (event.key === "?") dialog.showModal();
  else if (/^[1-4]$/.test(event.key)) views[Number(event.key) - 1]?.click();
  else return;
  event.preventDefault();
}
