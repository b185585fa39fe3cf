/* The strip above the graph: thresholds, matches, layers, direction, colours, a second graph, exports. */
import { published } from "./api.js";
import { exportMenu } from "./exports.js";
import { searchBox } from "./search.js";
import { $, debounce, h } from "./dom.js";
import * as state from "./state.js";

const CUTS = [
  ["t_res", "t(R)", "the flow stops where the residual score falls below it"],
  ["t_mlp", "t(M)", "MLP features below it are left out"],
  ["t_att", "t(A)", "attention features below it are left out"],
  ["high", "high", "from here a score counts as high, for the cases A to D and linear circuits"],
];
const FDRS = ["0.001", "0.01", "0.05", "0.1"];
const WAY = { both: "both ways", backward: "← back", forward: "forward →" };
const WAYS = { both: "Where the seed comes from and where it goes", backward: "Only where the seed comes from", forward: "Only where the seed goes" };
const COLOURS = { case: "case", origin: "origin", graph: "a / b" };
const COLOUR_OF = { case: "The case A to D of section 3.3", origin: "Which predecessors were active with it", graph: "In which of the two graphs it is" };

/** Keys of the address that the graph depends on, and how the server calls them. */
export function asked(info) {
  const { defaults } = info;
  const fdr = state.value("fdr");
  const cuts = fdr ? { fdr } : Object.fromEntries(CUTS.map(([key]) => [key, state.value(key, defaults[key])]));
  return {
    ...cuts, k: state.value("k", defaults.k), direction: state.value("direction", "both"),
    from_layer: state.value("from"), to_layer: state.value("to"), expand: state.value("expand"),
  };
}

/** What colours the boxes now: a comparison has colours of its own unless another is asked for. */
export function colouring() {
  const said = state.value("colour");
  if (state.value("b")) return said || "graph";
  return said === "origin" ? "origin" : "case";
}

/** Fill the form, and keep it in step with the address. */
export function buildControls(form, info) {
  form.addEventListener("submit", (event) => event.preventDefault());
  const sliders = CUTS.map(([key, name, why]) => slider(key, name, why, info));
  const k = numberField("k", "k", 1, info.k, info.defaults.k, "matches of each site that are followed");
  const layers = layerFields(info);
  const direction = segments("direction", "Direction", WAY, "both", { why: WAYS });
  const colour = segments("colour", "Colour", COLOURS, "case", { why: COLOUR_OF });
  const compare = h("div", { class: "compare" });
  const chosen = h("span", { class: "chosen", hidden: true });
  compare.append(chosen);
  form.append(h("div", { class: "cuts" }, ...sliders.map(([root]) => root), k.root),
    h("div", { class: "choices" }, calibrated(info), direction.root, layers.root, colour.root, compare, exportMenu(info)));
  const box = searchBox(compare, {
    label: "Compare with another feature", placeholder: "Compare with…",
    choose: (feature) => state.update({ b: feature, colour: null }, { push: true }),
  });
  const refresh = () => {
    const calibratedNow = Boolean(state.value("fdr"));
    for (const [, show] of sliders) show(calibratedNow);
    k.show();
    layers.show();
    direction.show(state.value("direction", "both"));
    colour.show(colouring(), { origin: info.origins ? "" : published ? null : "no origins were measured: saeflow serve … --results FOLDER of `saeflow origins`", graph: state.value("b") ? "" : null });
    colour.root.hidden = published && !info.origins && !state.value("b");
    $("#fdr").value = state.value("fdr");
    showCompared(chosen, box);
  };
  state.subscribe(refresh);
  refresh();
}

function showCompared(chosen, box) {
  const b = state.value("b");
  chosen.hidden = !b;
  box.input.hidden = Boolean(b);
  if (!b) return;
  const button = h("button", { type: "button", class: "quiet small", "aria-label": `Stop comparing with ${b}` }, "×");
  button.addEventListener("click", () => state.update({ b: null, colour: null }, { push: true }));
  chosen.replaceChildren(h("span", { class: "badge b", "aria-hidden": "true" }, "b"), h("span", { class: "id" }, b), button);
}

/** A slider with its number: either changes the other. Moving does not fill the history. */
function slider(key, name, why, info) {
  const otherwise = info.defaults[key];
  const shared = { min: "0", max: "1", step: "0.01" };
  const range = h("input", { type: "range", id: key, ...shared, "aria-describedby": `${key}-why` });
  const number = h("input", { type: "number", id: `${key}-number`, ...shared, "aria-label": `${name}, as a number` });
  const put = debounce((text) => {
    if (text === "" || !Number.isFinite(Number(text))) return;
    const held = Math.max(-1, Math.min(1, Number(text)));
    state.update({ [key]: held === otherwise ? null : held });
  }, 40);
  const fill = (at) => range.style.setProperty("--at", `${100 * Math.max(0, Math.min(1, Number(at)))}%`);
  range.addEventListener("input", () => { number.value = Number(range.value).toFixed(2); fill(range.value); put(range.value); });
  number.addEventListener("input", () => { range.value = number.value; fill(range.value); put(number.value); });
  const root = h("div", { class: "slider", title: why },
    h("label", { for: key }, name), range, number, h("span", { class: "unseen", id: `${key}-why` }, why));
  const show = (off) => {
    const now = Number(state.value(key, otherwise));
    range.disabled = number.disabled = off;
    root.classList.toggle("off", off);
    fill(now);
    if (document.activeElement !== range) range.value = now;
    if (document.activeElement !== number) number.value = now.toFixed(2);
  };
  return [root, show];
}

function numberField(key, name, min, max, otherwise, why) {
  const input = h("input", { type: "number", id: key, min, max, step: 1 });
  const put = () => {
    const held = Math.round(Math.max(min, Math.min(max, Number(input.value) || otherwise)));
    state.update({ [key]: held === otherwise ? null : held });
  };
  input.addEventListener("input", debounce(put, 150));
  const root = h("div", { class: "field", title: why }, h("label", { for: key }, name), input);
  return { root, show: () => { if (document.activeElement !== input) input.value = state.value(key, otherwise); } };
}

function calibrated(info) {
  const select = h("select", { id: "fdr", disabled: !info.calibrated },
    new Option("plain", ""), ...FDRS.map((rate) => new Option(`FDR ${Number(rate) * 100}%`, rate)));
  select.addEventListener("change", () => state.update({ fdr: select.value }, { push: true }));
  const why = info.calibrated
    ? "Calibrated: a threshold for each layer and part, from what matches score by chance"
    : "This atlas has no nulls. Make them with saeflow atlas calibrate";
  return h("div", { class: "field", title: why }, h("label", { for: "fdr" }, "cuts"), select);
}

function layerFields(info) {
  const make = (key, name) => {
    const select = h("select", { id: `layer-${key}`, "aria-label": name, title: name });
    select.addEventListener("change", () => state.update({ [key]: select.value }, { push: true }));
    return select;
  };
  const [from, to] = [make("from", "First layer shown"), make("to", "Last layer shown")];
  const [first, last] = [info.layers[0], info.layers.at(-1)];
  for (const layer of info.layers) {
    from.append(new Option(layer, layer === first ? "" : layer));
    to.append(new Option(layer, layer === last ? "" : layer));
  }
  const show = () => {
    from.value = state.value("from");
    to.value = state.value("to");
    // A first layer after the last one would be refused by the server.
    for (const option of from.options) option.disabled = Number(option.text) > Number(state.value("to", last));
    for (const option of to.options) option.disabled = Number(option.text) < Number(state.value("from", first));
  };
  return { root: h("div", { class: "field span" }, h("span", { class: "of" }, "layers"), from, h("span", {}, "–"), to), show };
}

/** A few choices side by side: radio buttons, so that arrows move between them. */
export function segments(key, name, choices, otherwise, { put = null, why = {} } = {}) {
  const root = h("fieldset", { class: "segments" }, h("legend", {}, name));
  for (const [value, text] of Object.entries(choices)) {
    const input = h("input", { type: "radio", name: key, id: `${key}-${value}`, value });
    input.addEventListener("change", () => (put ? put(value) : state.update({ [key]: value === otherwise ? null : value }, { push: true })));
    root.append(input, h("label", { for: `${key}-${value}`, title: why[value] ?? "" }, text));
  }
  const show = (value, off = {}) => {
    for (const input of root.querySelectorAll("input")) {
      input.checked = input.value === value;
      input.disabled = off[input.value] === null || Boolean(off[input.value]);
      input.nextElementSibling.title = off[input.value] || why[input.value] || "";
      input.nextElementSibling.hidden = off[input.value] === null;
    }
  };
  return { root, show };
}
