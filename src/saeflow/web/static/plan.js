/* The steering bench, left side: features and settings become a plan, shown as a table, saved and loaded. */
import { gaveUp, latest, post } from "./api.js";
import { $, announce, debounce, download, h, problem } from "./dom.js";
import { planTable } from "./plan_table.js";
import { planned, setPlanned } from "./picked.js";
import { segments } from "./controls.js";
import * as state from "./state.js";

const SETTINGS = { grow: "no", direction: "activate", kind: "linear", s: "1", s_end: "1.5", alpha: "-0.05", r: "0", reach: "span", upto: "", layer_budget: "", total_budget: "" };
const GROW = { no: "The picked features alone", yes: "Every feature of the picked features' flow graphs" };
const TOWARDS = { activate: "Add the features' directions to the hidden states", suppress: "Take the features' activations out, or rescale them" };
const WHY = {
  kind: "How strength is shared out over the layers", s: "Strength: of each step, or of the first layer where it decays", s_end: "Strength at the last layer",
  alpha: "How fast strength decays from layer to layer; 0 is constant", r: "What activations are multiplied by; 0 removes them", reach: "At which layers the plan works",
  upto: "The layer of the choice before", layer_budget: "Most that a layer may change, in percent of the centred norm |h - mean|", total_budget: "Most that all layers together may change, in percent of the centred norm",
};
const asking = latest();

/** What the bench knows: the plan the server answered with, and where it is from. */
export const bench = { plan: null, answer: null, loaded: "" };

/** A setting; in the address under a key of its own. */
const setting = (name) => state.value(`p_${name}`, SETTINGS[name]);
const put = (name, next) => state.update({ [`p_${name}`]: String(next) === SETTINGS[name] ? null : next });

/** Fill the left side; `changed()` is told when there is a plan, or none. */
export function startBench(info, changed) {
  const root = $("#plan-side");
  if (info.model_state !== "none") SETTINGS.total_budget = "40"; // only a model can measure it
  const list = h("ul", { class: "picked", id: "picked" });
  const out = h("div", { class: "plan-out", "aria-live": "polite" });
  const form = settings(info);
  root.append(h("div", { class: "head" }, h("h2", {}, "Plan"), files(changed)), themes(info), list, form.root, out);
  const make = debounce(() => makePlan(info, out, changed), 220);
  const refresh = () => {
    form.show();
    showPicked(list);
    if (state.view() === "steer") make();
  };
  state.subscribe((now, before) => {
    showCount();
    if (now.view !== "steer") return;
    if (bench.loaded && before.view === "steer" && JSON.stringify(planKeys(now)) !== JSON.stringify(planKeys(before))) bench.loaded = "";
    refresh();
  });
  addEventListener("plan-loaded", () => { showPicked(list); showAnswer(out); });
  showCount();
  refresh();
}

const planKeys = (where) => Object.entries(where.values).filter(([key]) => key === "plan" || key === "theme" || key.startsWith("p_"));

function showCount() {
  const n = planned().size;
  const badge = $("#plan-count");
  badge.hidden = !n;
  badge.textContent = n ? ` ${n}` : "";
}

/* Where features come from */

function themes(info) {
  const select = h("select", { id: "theme" }, new Option("no theme", ""), ...info.themes.map((theme) => new Option(theme.name, theme.name)));
  const about = h("p", { class: "muted small", id: "theme-about" });
  const use = h("button", { type: "button", title: "Pick the features that the theme starts from, with their flow graphs" }, "Use its start features");
  select.addEventListener("change", () => state.update({ theme: select.value }));
  use.addEventListener("click", () => {
    const theme = info.themes.find((one) => one.name === select.value);
    if (!theme) return;
    state.update({ p_grow: "yes" });
    setPlanned(theme.starts);
  });
  const show = () => {
    select.value = state.value("theme");
    const theme = info.themes.find((one) => one.name === select.value);
    about.textContent = theme ? theme.description : "A theme knows start features and prompts, and lets the texts be scored for its subject.";
    use.disabled = !theme;
  };
  state.subscribe(show);
  show();
  return h("div", { class: "theme" }, h("div", { class: "row" }, h("label", { for: "theme" }, "Theme"), h("span", { title: "A subject with start features, prompts and a way to score texts" }, select), use), about);
}

function showPicked(list) {
  const ids = Array.from(planned());
  if (bench.loaded) {
    list.replaceChildren(h("li", { class: "loaded" }, `The plan of ${bench.loaded} is loaded; change a setting below and a new one is made from the features picked.`));
    return;
  }
  if (!ids.length) {
    list.replaceChildren(h("li", { class: "none" }, "No features yet. Choose a theme above, or add features from the graph: ",
      h("kbd", {}, "p"), " on a node, or “Add to plan” in its panel."));
    return;
  }
  const items = ids.map((id) => {
    const go = h("a", { href: state.address("flow", { feature: id, node: id }), class: "id" }, id);
    const drop = h("button", { type: "button", class: "quiet small", "aria-label": `Take ${id} out`, title: `Take ${id} out` }, "×");
    drop.addEventListener("click", () => setPlanned(ids.filter((other) => other !== id)));
    return h("li", {}, go, drop);
  });
  const clear = h("button", { type: "button", class: "quiet small", title: "Take all features out" }, "Clear");
  clear.addEventListener("click", () => { bench.loaded = ""; setPlanned([]); });
  list.replaceChildren(...items, h("li", { class: "clear" }, clear));
}

/* Settings */

function number(name, text, more = {}) {
  const input = h("input", { type: "number", id: `p-${name}`, step: "any", ...more });
  input.addEventListener("input", debounce(() => put(name, input.value), 250));
  return { root: h("div", { class: "field", title: WHY[name] }, h("label", { for: `p-${name}` }, text), input), show: () => { if (document.activeElement !== input) input.value = setting(name); } };
}

function choice(name, text, options) {
  const select = h("select", { id: `p-${name}` }, ...Object.entries(options).map(([value, said]) => new Option(said, value)));
  select.addEventListener("change", () => put(name, select.value));
  return { root: h("div", { class: "field", title: WHY[name] }, h("label", { for: `p-${name}` }, text), select), show: () => { select.value = setting(name); } };
}

function settings(info) {
  const grow = segments("p_grow", "Features", { no: "these alone", yes: "with their flow graphs" }, "no", { put: (value) => put("grow", value), why: GROW });
  const direction = segments("p_direction", "Direction", { activate: "activate", suppress: "suppress" }, "activate", { put: (value) => put("direction", value), why: TOWARDS });
  const last = info.layers.at(-1);
  const fields = {
    kind: choice("kind", "schedule", { constant: "constant", linear: "linear", exponential: "exponential" }),
    s: number("s", "strength s", { step: "0.1" }),
    s_end: number("s_end", "s at the end", { step: "0.1" }),
    alpha: number("alpha", "decay α", { step: "0.05", max: 1 }),
    r: number("r", "factor r", { step: "0.1" }),
    reach: choice("reach", "layers", { span: "all of the span", cumulative: "0 up to…", single: "only layer…" }),
    upto: number("upto", "layer", { min: info.layers[0], max: last, step: 1, placeholder: last }),
    layer_budget: number("layer_budget", "most a layer, %", { min: 0, step: 1, placeholder: "no limit" }),
    total_budget: number("total_budget", "most in all, %", { min: 0, step: 1, placeholder: "no limit" }),
  };
  const root = h("form", { class: "settings", "aria-label": "Settings of the plan", autocomplete: "off" }, grow.root, direction.root,
    h("div", { class: "fields" }, ...Object.values(fields).map((field) => field.root)));
  root.addEventListener("submit", (event) => event.preventDefault());
  const show = () => {
    grow.show(setting("grow"));
    direction.show(setting("direction"));
    for (const field of Object.values(fields)) field.show();
    const [activate, kind] = [setting("direction") === "activate", setting("kind")];
    const hidden = { kind: !activate, s: !activate, s_end: !activate || kind !== "linear", alpha: !activate || kind !== "exponential", r: activate, upto: setting("reach") === "span" };
    for (const [name, off] of Object.entries(hidden)) fields[name].root.hidden = off;
  };
  return { root, show };
}

const numeric = (name) => (setting(name) === "" ? undefined : Number(setting(name)));

/** What /api/plan is asked. */
function request(info) {
  const ids = Array.from(planned());
  const activate = setting("direction") === "activate";
  const kind = setting("kind");
  const share = (name) => (numeric(name) ? numeric(name) / 100 : undefined);
  const fdr = state.value("fdr");
  const cut = (key) => Number(state.value(key, info.defaults[key]));
  return {
    [setting("grow") === "yes" ? "starts" : "features"]: ids,
    theme: state.value("theme"), direction: setting("direction"),
    ...(activate ? { schedule: { kind, s: numeric("s") ?? 1, ...(kind === "linear" ? { s_end: numeric("s_end") ?? 1.5 } : {}), ...(kind === "exponential" ? { alpha: numeric("alpha") ?? 0 } : {}) } } : { r: numeric("r") ?? 0 }),
    reach: setting("reach"), ...(setting("reach") === "span" ? {} : { upto: numeric("upto") ?? info.layers.at(-1) }),
    thresholds: { k: Number(state.value("k", info.defaults.k)), ...(fdr ? { fdr: Number(fdr) } : { t_res: cut("t_res"), t_mlp: cut("t_mlp"), t_att: cut("t_att") }) },
    budget_layer: share("layer_budget"), budget_total: activate || setting("total_budget") !== SETTINGS.total_budget ? share("total_budget") : undefined,
  };
}

async function makePlan(info, out, changed) {
  if (bench.loaded) return;
  if (!planned().size) {
    asking.stop();
    bench.plan = bench.answer = null;
    out.replaceChildren();
    changed();
    return;
  }
  out.setAttribute("aria-busy", "true");
  try {
    bench.answer = await post("/api/plan", request(info), asking.next());
    bench.plan = bench.answer.plan;
    showAnswer(out);
  } catch (error) {
    if (gaveUp(error)) return;
    bench.plan = bench.answer = null;
    out.replaceChildren(problem(error));
  }
  out.removeAttribute("aria-busy");
  changed();
}

function showAnswer(out) {
  out.replaceChildren(...planTable(bench.answer));
}

/* Files */

function files(changed) {
  const input = h("input", { type: "file", accept: ".json,application/json", id: "plan-file", class: "unseen" });
  const load = h("label", { for: "plan-file", class: "button", title: "Open a plan's file, edited by hand or not" }, "Load…");
  const save = h("button", { type: "button", id: "plan-save", title: "Write the plan as a file for saeflow steer --plan" }, "Save");
  save.addEventListener("click", () => {
    if (!bench.plan) return;
    const name = `plan-${[bench.plan.release, bench.plan.theme || planned().values().next().value || ""].filter(Boolean).join("-").replace(/[^\w.-]+/g, "-")}.json`;
    download(name, planText(bench.plan));
    announce(`Saved as ${name}.`);
  });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    if (file) await loadPlan(file, changed);
  });
  const show = () => { save.disabled = !bench.plan; };
  addEventListener("plan-changed", show);
  show();
  return h("div", { class: "row files" }, input, load, save);
}

/** A step a line, as `saeflow plan` writes it, so that a person can edit it. */
function planText(plan) {
  const lines = (rows) => (rows.length ? `[\n${rows.map((row) => `  ${JSON.stringify(row)}`).join(",\n")}\n ]` : "[]");
  const said = Object.entries(plan).map(([key, value]) => ` ${JSON.stringify(key)}: ${Array.isArray(value) ? lines(value) : JSON.stringify(value)}`);
  return `{\n${said.join(",\n")}\n}\n`;
}

async function loadPlan(file, changed) {
  const out = $(".plan-out");
  try {
    const text = await file.text();
    let plan;
    try {
      plan = JSON.parse(text);
    } catch (error) {
      throw Object.assign(new Error(`${file.name} is not JSON: ${error.message}.`), { todo: "Load a file that this page or `saeflow plan` wrote." });
    }
    asking.stop();
    bench.answer = await post("/api/plan/check", { plan });
    bench.plan = bench.answer.plan;
    bench.loaded = file.name;
    if (plan.theme) state.update({ theme: plan.theme });
    dispatchEvent(new Event("plan-loaded"));
  } catch (error) {
    out.replaceChildren(problem(error));
  }
  changed();
}
