/* What happened at a token of a text: the graph of the prompt in a frame, and where it is cut. */
import { query } from "./api.js";
import { $, announce, debounce, h } from "./dom.js";

const CUTS = [
  ["effect", "effect", 0.1, 0, "an edge stays from this effect on, either way: the share of the child that goes with the parent"],
  ["cosine", "cosine", -1, -1, "an edge between features stays from this cosine on"],
  ["share", "share", -1, -1, "a feature stays from this share of its site's reconstruction on"],
];
const TOKENS_BEFORE = 8;

/** A sheet that is hidden until a token is opened, and then stands in the place of `grid`. */
export function traceSheet(grid) {
  const frame = h("iframe", { id: "trace-frame", title: "What happened at a token" });
  const title = h("h2", { id: "trace-title", tabindex: "-1" });
  const status = h("p", { class: "status", role: "status" });
  const shut = h("button", { type: "button", class: "quiet small", "aria-label": "Back to all tokens" }, "← all tokens");
  const cuts = CUTS.map((cut) => slider(...cut, () => ask()));
  const before = h("input", { type: "number", id: "trace-before", min: 0, max: TOKENS_BEFORE, step: 1, value: 0 });
  before.addEventListener("input", debounce(() => ask(), 300));
  const field = h("div", { class: "field", title: "tokens before it that are traced too, and followed through attention" },
    h("label", { for: "trace-before" }, "tokens before"), before);
  const root = h("section", { class: "sheet trace-sheet", "aria-labelledby": "trace-title", hidden: true },
    h("header", { class: "row" }, title, h("span", { class: "grow" }), status, shut),
    h("form", { class: "cuts", autocomplete: "off" }, ...cuts.map((cut) => cut.root), field), frame);
  $("form", root).addEventListener("submit", (event) => event.preventDefault());
  let now = null;
  shut.addEventListener("click", () => { root.hidden = true; grid.hidden = false; now = null; frame.removeAttribute("src"); });
  frame.addEventListener("load", () => {
    status.textContent = "";
    status.classList.remove("at-work");
    if (now) announce(`What happened at token ${now.token} is shown.`);
  });
  function ask() {
    if (!now) return;
    const held = Math.max(0, Math.min(TOKENS_BEFORE, now.token, Math.round(Number(before.value)) || 0));
    const values = Object.fromEntries(cuts.map((cut) => [cut.key, cut.value()]));
    const address = `/trace?${query({ ...now, ...values, before: held })}`;
    if (frame.getAttribute("src") === address) return;
    status.textContent = "Removing every active feature…";
    status.classList.add("at-work");
    frame.setAttribute("src", address);
  }
  return {
    root,
    open(text, token, name) {
      now = { text, token };
      title.replaceChildren("What happened at token ", h("span", { class: "token" }, name));
      root.hidden = false;
      grid.hidden = true;
      ask();
      title.focus({ preventScroll: true });
    },
  };
}

function slider(key, name, otherwise, min, why, changed) {
  const id = `trace-${key}`;
  const range = h("input", { type: "range", id, min, max: 1, step: 0.01, value: otherwise });
  const number = h("input", { type: "number", id: `${id}-number`, min, max: 1, step: 0.01, value: otherwise, "aria-label": `${name}, as a number` });
  const fill = () => range.style.setProperty("--at", `${(100 * (Number(range.value) - min)) / (1 - min)}%`);
  const put = debounce(changed, 150);
  range.addEventListener("input", () => { number.value = Number(range.value).toFixed(2); fill(); put(); });
  number.addEventListener("input", () => { range.value = number.value; fill(); put(); });
  fill();
  return { key, root: h("div", { class: "slider", title: why }, h("label", { for: id }, name), range, number), value: () => Number(range.value) };
}
