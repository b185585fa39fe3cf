/* The steering bench, right side: a prompt, plain and steered texts as they come, and their scores. */
import { gaveUp, stream } from "./api.js";
import { bench } from "./plan.js";
import { $, debounce, h, percent, problem } from "./dom.js";
import * as state from "./state.js";

const FIELDS = {
  samples: ["samples", { min: 1, step: 1 }, "2", "Pairs of texts, each with a seed of its own"],
  tokens: ["new tokens", { min: 1, step: 1 }, "40", "Tokens written after the prompt"],
  temperature: ["temperature", { min: 0, max: 100, step: 0.1 }, "0.8", "How evenly tokens are drawn; 0 takes the likeliest"],
  seed: ["seed", { min: 0, step: 1 }, "0", "Seed of the first sample"],
};
const SIDES = { plain: "plain", steered: "steered" };
const MEANS = { behavior: "How much the text is about the theme, by the offline judge", coherence: "How readable the text is, by the offline judge", final: "Behaviour times coherence, from 0 to 1" };
const MARKS = { behavior: "behaviour", coherence: "coherence", final: "final" };
let running = null;

/** Fill the right side. Returns `changed`, to be called when the plan changed. */
export function startRun(info) {
  const root = $("#run-side");
  const prompt = h("textarea", { id: "prompt", title: "What the model goes on from", rows: 2, maxlength: info.limits.prompt, spellcheck: "false" });
  const prompts = h("div", { class: "prompts" });
  const numbers = Object.fromEntries(Object.keys(FIELDS).map((key) => [key, numberField(key, info)]));
  const go = h("button", { type: "submit", class: "main", id: "run", title: "Write every sample twice: plain and steered" }, "Steer");
  const stop = h("button", { type: "button", id: "stop", title: "End the texts between two tokens", disabled: true }, "Stop");
  const status = h("p", { class: "status", id: "run-status", role: "status" });
  const out = h("div", { class: "samples", id: "samples" }, empty());
  const form = h("form", { class: "run", "aria-label": "What is written", autocomplete: "off" },
    h("label", { for: "prompt" }, "Prompt"), prompt, prompts,
    h("div", { class: "fields" }, ...Object.values(numbers).map((field) => field.root), h("div", { class: "row go" }, go, stop)), status);
  root.append(form, out);
  prompt.addEventListener("input", debounce(() => state.update({ prompt: prompt.value }), 250));
  const parts = { form, prompt, numbers, go, stop, status, out, info };
  form.addEventListener("submit", (event) => { event.preventDefault(); run(parts); });
  stop.addEventListener("click", () => running?.abort());
  addEventListener("pagehide", () => running?.abort());
  const show = () => {
    if (document.activeElement !== prompt) prompt.value = state.value("prompt", "I think that");
    for (const field of Object.values(numbers)) field.show();
    showPrompts(prompts, info);
    ready(parts);
  };
  state.subscribe(show);
  show();
  return () => { ready(parts); dispatchEvent(new Event("plan-changed")); };
}

function numberField(key, info) {
  const [text, more, otherwise, why] = FIELDS[key];
  const most = { samples: info.limits.samples, tokens: info.limits.new_tokens }[key];
  const input = h("input", { type: "number", id: `run-${key}`, ...more, max: most ?? more.max ?? null });
  input.addEventListener("input", debounce(() => state.update({ [key]: input.value === otherwise ? null : input.value }), 250));
  return { root: h("div", { class: "field", title: why }, h("label", { for: input.id }, text), input), input,
    show: () => { if (document.activeElement !== input) input.value = state.value(key, otherwise); } };
}

/** The theme's own prompts, to take one with a click. */
function showPrompts(root, info) {
  const theme = info.themes.find((one) => one.name === state.value("theme"));
  const key = `${theme?.name ?? ""}`;
  if (root.dataset.of === key) return;
  root.dataset.of = key;
  const buttons = (theme?.prompts ?? []).map((one) => {
    const button = h("button", { type: "button", class: "chip", title: `to ${one.direction}` }, one.prompt);
    button.addEventListener("click", () => {
      $("#prompt").value = one.prompt;
      state.update({ prompt: one.prompt, tokens: one.new_tokens, p_direction: one.direction === "activate" ? null : one.direction });
    });
    return button;
  });
  root.replaceChildren(...(buttons.length ? [h("span", { class: "muted small" }, "of the theme:"), ...buttons] : []));
}

function ready({ go, stop, status, info }) {
  const state_ = info.model_state;
  go.disabled = Boolean(running) || !bench.plan || state_ === "none";
  stop.disabled = !running;
  if (running) return;
  if (state_ === "none") status.textContent = "No model was given. Start with: saeflow serve … --model NAME";
  else if (!bench.plan) status.textContent = "A plan is needed first.";
  else if (!status.dataset.done) status.textContent = "";
}

function empty() {
  return h("p", { class: "none" }, "Plain and steered texts will stand here side by side. Both have the same seed, so they differ only where the models do.");
}

/* One run */

async function run(parts) {
  const { prompt, numbers, status, out, info } = parts;
  if (running || !bench.plan) return;
  running = new AbortController();
  ready(parts);
  const asked = {
    plan: bench.plan, prompt: prompt.value || "I think that", samples: Number(numbers.samples.input.value), new_tokens: Number(numbers.tokens.input.value),
    temperature: Number(numbers.temperature.input.value), seed: Number(numbers.seed.input.value), ...(state.value("theme") ? { theme: state.value("theme") } : {}),
  };
  const rows = Array.from({ length: asked.samples }, (_, i) => sampleRow(i, asked));
  const summary = h("div", { class: "summary", id: "summary", hidden: true });
  out.replaceChildren(summary, ...rows.map((row) => row.root));
  out.setAttribute("aria-busy", "true");
  delete status.dataset.done;
  status.textContent = info.model_state === "ready" ? "Writing…" : "Loading the model…";
  status.classList.add("at-work");
  try {
    for await (const event of stream("/api/steer", asked, running.signal)) take(event, { rows, status, summary, info, asked });
    status.dataset.done = "yes";
  } catch (error) {
    if (gaveUp(error)) {
      status.textContent = "Stopped.";
      status.dataset.done = "yes";
    } else {
      status.textContent = "";
      out.prepend(problem(error));
    }
  }
  for (const row of rows) finish(row);
  status.classList.remove("at-work");
  out.removeAttribute("aria-busy");
  running = null;
  ready(parts);
}

function sampleRow(i, asked) {
  const sides = Object.fromEntries(Object.keys(SIDES).map((side) => {
    const text = h("p", { class: "passage" }, h("span", { class: "prompt" }, asked.prompt));
    const shared = h("span", { class: "shared" });
    const own = h("span", { class: "own" });
    const cursor = h("span", { class: "cursor", "aria-hidden": "true" });
    text.append(shared, own, cursor);
    const marks = h("div", { class: "marks" });
    return [side, { root: h("div", { class: `side ${side}` }, h("h4", {}, SIDES[side]), text, marks), shared, own, cursor, marks, said: "", scores: null }];
  }));
  const root = h("article", { class: "sample", "aria-label": `Sample ${i + 1}` },
    h("h3", {}, `Sample ${i + 1}`, h("span", { class: "muted" }, ` seed ${asked.seed + i}`)), h("div", { class: "pair" }, ...Object.values(sides).map((side) => side.root)));
  return { root, sides };
}

function take(event, { rows, status, summary, info, asked }) {
  const side = rows[event.sample]?.sides[event.side];
  if (event.type === "state") {
    info.model_state = event.model;
    const says = { loading: "Loading the model: a moment the first time.", ready: event.what === "scoring" ? "Scoring…" : "Writing…" };
    if (says[event.model]) status.textContent = says[event.model];
  } else if (event.type === "token" && side) {
    side.said = event.replace ? event.text : side.said + event.text;
    if (event.replace) side.own.textContent = event.text;
    else side.own.append(event.text);
    side.n = (side.n ?? 0) + 1;
    progress(rows, status, asked);
  } else if (event.type === "sample" && side) {
    side.said = side.own.textContent = event.text;
    shares(side, event);
  } else if (event.type === "scores" && side) {
    side.scores = event;
    scores(side, event);
    summarize(rows, summary);
  } else if (event.type === "progress") {
    status.textContent = `${event.what === "scoring" ? "Scoring" : "Working"}… ${percent(event.done / Math.max(1, event.total))}`;
  } else if (event.type === "note") {
    summary.hidden = false;
    summary.append(h("span", {}, event.text));
  } else if (event.type === "done") {
    status.textContent = `Done in ${event.took_s.toFixed(1)} s.`;
  } else if (event.type === "error") {
    throw Object.assign(new Error(event.error ?? "Writing failed."), { todo: event.what_to_do ?? "" });
  }
}

let told = 0;

/** How far it is, not oftener than a few times a second: a line that changes at each token cannot be read. */
function progress(rows, status, asked) {
  const now = performance.now();
  if (now - told < 250) return;
  told = now;
  const written = rows.flatMap((row) => Object.values(row.sides)).reduce((sum, side) => sum + (side.n ?? 0), 0);
  status.textContent = `Writing… ${percent(Math.min(1, written / (2 * asked.samples * asked.new_tokens)))}`;
}

function shares(side, event) {
  if (event.side === "steered" && event.share_layer === 0)
    side.marks.append(h("p", { class: "shares" }, "the plan changed nothing here: none of its features was changed at any token"));
  if (!event.share_total) return;
  side.marks.append(h("p", { class: "shares", title: "what the plan changed, over the norm of the hidden state: at the strongest layer, and in all" },
    `changes ${percent(event.share_layer)} at its strongest layer, ${percent(event.share_total)} in all`));
}

/** Marks are 0 to 1, or 0 to 5 as judges give them; `final` is behaviour times coherence. */
function scores(side, event) {
  const most = { behavior: event.most ?? 5, coherence: event.most ?? 5, final: 1 };
  const list = h("dl", { class: "scores" });
  for (const [key, name] of Object.entries(MARKS)) {
    const value = event[key];
    if (value === null || value === undefined) continue;
    const bar = h("i");
    bar.style.width = `${100 * Math.max(0, Math.min(1, value / most[key]))}%`;
    list.append(h("div", { class: key, title: MEANS[key] }, h("dt", {}, name), h("dd", {}, h("span", { class: "gauge", "aria-hidden": "true" }, bar), number(value, most[key]))));
  }
  side.marks.append(list);
}

const number = (value, most) => (most === 1 ? value.toFixed(2) : `${Number(value.toFixed(1))} / ${most}`);

/** Means over the samples that have scores on both sides. */
function summarize(rows, summary) {
  const done = rows.filter((row) => Object.values(row.sides).every((side) => side.scores));
  if (!done.length) return;
  const mean = (side, key) => done.reduce((sum, row) => sum + (row.sides[side].scores[key] ?? 0), 0) / done.length;
  const said = Object.entries(MARKS).map(([key, name]) => `${name} ${mean("plain", key).toFixed(2)} → ${mean("steered", key).toFixed(2)}`);
  summary.hidden = false;
  summary.replaceChildren(h("b", {}, done.length === 1 ? "Plain → steered" : `Mean of ${done.length} samples, plain → steered`), ...said.map((text) => h("span", {}, text)));
}

/** What both texts begin with is set back, so that the eye falls on where they part. */
function finish({ sides }) {
  const { plain, steered } = sides;
  let same = 0;
  while (same < plain.said.length && plain.said[same] === steered.said[same]) same++;
  for (const side of [plain, steered]) {
    side.cursor.remove();
    side.shared.textContent = side.said.slice(0, same);
    side.own.textContent = side.said.slice(same);
  }
}
