/* The text view: which features fire on each token of a text, a column a layer. A cell leads to its graph. */
import { gaveUp, latest, post } from "./api.js";
import { segments } from "./controls.js";
import { $, all, announce, debounce, h, percent, problem } from "./dom.js";
import { seedAt } from "./flow.js";
import { planned, togglePlanned } from "./picked.js";
import { visible } from "./report/card.js";
import * as state from "./state.js";
import { traceSheet } from "./trace.js";

const PARTS = { res: "residual", mlp: "MLP", att: "attention" };
const KEPT = "saeflow-text"; // under which this tab keeps a text that is too long for the address
const SAMPLE = "The price of bread rose because the harvest failed, and the old woman walked home through the snow.";
const RANKED = "Ranked by activation over the feature's own strongest, in the passages of its words.";
const asking = latest();
let read = null;

/** Fill the view. */
export function startText(info) {
  const root = $("#text");
  const area = h("textarea", { id: "text-input", title: "The text whose features are shown", rows: 3, maxlength: info.limits.text, spellcheck: "false", placeholder: "Paste a text…" });
  const go = h("button", { type: "submit", class: "main", id: "text-read", title: "Run the model and its dictionaries on the text" }, "Read");
  const part = segments("part", "Part", PARTS, "res", { why: { res: "Features of the residual stream", mlp: "Features of MLP outputs", att: "Features of attention outputs" } });
  const status = h("p", { class: "status", role: "status" });
  const grid = h("div", { class: "grid-frame", id: "text-grid", tabindex: "-1" });
  const detail = h("aside", { class: "panel cell-panel", id: "cell", "aria-label": "Features of a token", tabindex: "-1" }, hint());
  const form = h("form", { class: "text-form", autocomplete: "off" }, h("label", { for: "text-input" }, "Text"), area,
    h("div", { class: "row" }, part.root, h("span", { class: "grow" }), status, go));
  const stage = h("div", { class: "text-stage" }, grid, detail);
  const sheet = traceSheet(stage, info);
  root.append(form, stage, sheet.root);
  area.value = state.value("text") || sessionStorage.getItem(KEPT) || "";
  grid.replaceChildren(blank(area));
  area.addEventListener("input", debounce(() => keep(area.value), 300));
  const parts = { area, go, status, grid, detail, info, sheet };
  form.addEventListener("submit", (event) => { event.preventDefault(); state.update({ at: null }); keep(area.value); ask(parts); });
  const show = (now, before) => {
    part.show(state.value("part", "res"));
    if (now?.view !== "text") return;
    if (document.activeElement !== area && state.value("text")) area.value = state.value("text");
    if (info.model_state === "none") {
      go.disabled = true;
      status.textContent = "No model was given. Start with: saeflow serve … --model NAME";
    } else if (area.value && read?.text !== area.value && before?.view !== "text") ask(parts);
    else if (read) draw(parts);
    sheet.sync(read?.text, read?.answer.tokens);
  };
  state.subscribe(show);
  show();
}

function keep(text) {
  sessionStorage.setItem(KEPT, text);
  state.update({ text: text.length <= 600 ? text : null });
}

function hint() {
  return h("p", { class: "none" }, "Choose a cell to see all features that fire there.");
}

function blank(area) {
  const button = h("button", { type: "button", title: SAMPLE }, "Try a sentence");
  button.addEventListener("click", () => { area.value = SAMPLE; area.form.requestSubmit(); });
  return h("div", { class: "none" }, h("p", {}, "Each token becomes a row and each layer a column; a cell names the feature that fires most strongly for itself."), h("p", { class: "muted small" }, RANKED), button);
}

async function ask(parts) {
  const { area, go, status, grid, info } = parts;
  const text = area.value;
  if (!text.trim()) {
    area.focus();
    return;
  }
  go.disabled = true;
  grid.setAttribute("aria-busy", "true");
  status.classList.add("at-work");
  status.textContent = info.model_state === "ready" ? "Reading…" : "Loading the model: a moment the first time.";
  try {
    read = { text, answer: await post("/api/text", { text, top: 8 }, asking.next()) };
    info.model_state = "ready";
    const n = read.answer.tokens.length;
    status.textContent = `${n} tokens, ${Math.round(read.answer.took_ms)} ms`;
    draw(parts);
    parts.sheet.sync(read.text, read.answer.tokens);
    announce(`${n} tokens were read.`);
  } catch (error) {
    if (gaveUp(error)) return;
    status.textContent = "";
    grid.replaceChildren(problem(error));
  }
  status.classList.remove("at-work");
  go.disabled = false;
  grid.removeAttribute("aria-busy");
}

/** The grid of one part: rows are tokens, columns layers; colour says how strong a feature fires for itself. */
function draw(parts) {
  const { grid, detail } = parts;
  const { answer } = read;
  const part = state.value("part", "res");
  if (grid.dataset.part === part && grid.dataset.text === read.text && $("table", grid)) return;
  grid.dataset.part = part;
  grid.dataset.text = read.text;
  const sites = Object.keys(answer.active).filter((site) => site.endsWith(`/${part}`)).sort((a, b) => Number.parseInt(a, 10) - Number.parseInt(b, 10));
  if (!sites.length) {
    grid.replaceChildren(h("p", { class: "none" }, `There is no dictionary of ${PARTS[part]} sites here.`));
    return;
  }
  const head = h("tr", { role: "row" }, h("th", { scope: "col", class: "token-head" }, "token"), ...sites.map((site) => h("th", { scope: "col" }, `layer ${Number.parseInt(site, 10)}`)));
  const body = answer.tokens.map((token, row) => h("tr", {}, h("th", { scope: "row", class: "token-cell" }, opener(token.text, row, parts)),
    ...sites.map((site, column) => h("td", {}, cell(answer.active[site][row] ?? [], site, row, column, parts)))));
  const table = h("table", { class: "cells", "aria-label": `Strongest ${PARTS[part]} feature of each token and layer` }, h("thead", {}, head), h("tbody", {}, ...body));
  table.addEventListener("keydown", (event) => move(event, table));
  grid.replaceChildren(table);
  const first = $("button.cell", table);
  if (first) first.tabIndex = 0;
  detail.replaceChildren(hint());
}

/** A token: a click shows what happened there. */
function opener(text, row, { info }) {
  const button = h("button", { type: "button", class: "quiet token-open", title: "What happened at this token", "aria-label": `What happened at token ${row}, ${visible(text)}`, disabled: read.text.length > info.limits.prompt }, visible(text));
  button.addEventListener("click", () => state.update({ at: row }, { push: true }));
  return button;
}

function cell(found, site, row, column, parts) {
  const strongest = found[0];
  const button = h("button", { type: "button", class: strongest ? "cell" : "cell silent", tabindex: "-1", "data-row": row, "data-column": column });
  if (!strongest) {
    button.append("·");
    button.setAttribute("aria-label", "no feature fires");
    return button;
  }
  button.style.setProperty("--heat-share", Math.min(1, strongest.share ?? 0).toFixed(3));
  button.dataset.feature = `${site}/${strongest.index}`;
  button.append(h("span", { class: "words" }, strongest.label || String(strongest.index)));
  button.title = `${button.dataset.feature}: ${told(strongest)}`;
  button.addEventListener("click", () => choose(button, found, site, row, parts));
  button.addEventListener("pointerenter", () => alike(button.dataset.feature, true));
  button.addEventListener("pointerleave", () => alike(button.dataset.feature, false));
  button.addEventListener("focus", () => alike(button.dataset.feature, true));
  button.addEventListener("blur", () => alike(button.dataset.feature, false));
  return button;
}

/** An activation, and how strong that is for the feature. */
function told(one) {
  const value = `activation ${Number(one.value.toPrecision(3))}`;
  return one.share === null ? `${value}; its strongest is not known` : `${value}, ${percent(one.share)} of its strongest`;
}

/** Mark every token on which the same feature leads. */
function alike(feature, on) {
  for (const other of all(`button.cell[data-feature="${feature}"]`)) other.classList.toggle("alike", on);
}

function move(event, table) {
  const from = event.target.closest("button.cell");
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!from || !step) return;
  event.preventDefault();
  const next = $(`button.cell[data-row="${Number(from.dataset.row) + step[0]}"][data-column="${Number(from.dataset.column) + step[1]}"]`, table);
  if (!next) return;
  from.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

/** All features of a cell, with ways to their graphs and into the plan. */
function choose(button, found, site, row, { detail, info }) {
  for (const other of all("button.cell[aria-pressed]")) other.removeAttribute("aria-pressed");
  button.setAttribute("aria-pressed", "true");
  const token = read.answer.tokens[row].text;
  const rows = found.map((one) => featureRow(`${site}/${one.index}`, one, row, info.limits.prompt));
  detail.replaceChildren(h("header", {}, h("p", { class: "where" }, h("span", { class: "id" }, site), h("span", {}, `token ${row}`)),
    h("h2", {}, h("span", { class: "token" }, visible(token))), h("p", { class: "muted small" }, RANKED)), h("ul", { class: "fires" }, ...rows));
}

function featureRow(id, one, token, limit) {
  const bar = h("i");
  bar.style.width = `${100 * Math.min(1, one.share ?? 0)}%`;
  const go = h("button", { type: "button", class: "near", title: `${told(one)}; opens its graph` }, h("span", { class: "id" }, id), h("span", { class: "words" }, one.label || "no words known"),
    h("span", { class: "score-bar", "aria-hidden": "true" }, bar), h("span", { class: "value" }, one.share === null ? "–" : percent(one.share)));
  go.addEventListener("click", () => seedAt(id));
  const plan = h("button", { type: "button", class: "quiet small", title: "Pick it for the plan, or take it out", "aria-label": `${id} in the plan`, "aria-pressed": String(planned().has(id)) }, planned().has(id) ? "✓" : "+");
  plan.addEventListener("click", () => {
    togglePlanned(id);
    plan.textContent = planned().has(id) ? "✓" : "+";
    plan.setAttribute("aria-pressed", String(planned().has(id)));
  });
  return h("li", {}, go, id.includes("/res/") && Number.parseInt(id, 10) > 0 ? remover(id, token, limit) : null, plan);
}

/** What is left of a feature at a token without its matched predecessors: a click removes them, and a table says it. */
function remover(id, token, limit) {
  const button = h("button", { type: "button", class: "quiet small", title: "Remove its matched predecessors at this token, and see what is left of it", "aria-label": `${id} without its predecessors`, "aria-expanded": "false", disabled: read.text.length > limit }, "cut");
  const { text } = read;
  button.addEventListener("click", async () => {
    const row = button.closest("li");
    const open = $(".removals", row);
    button.setAttribute("aria-expanded", String(!open));
    if (open) {
      open.remove();
      return;
    }
    const place = h("div", { class: "removals", role: "status" }, "Removing…");
    row.append(place);
    try {
      place.replaceChildren(removals(await post("/api/deactivate", { text, token, feature: id })));
    } catch (error) {
      place.replaceChildren(problem(error));
    }
  });
  return button;
}

function removals(answer) {
  const left = (change) => (change === null ? "–" : percent(Math.max(0, 1 - change)));
  if (!answer.removals.some((one) => one.features.length)) return "None of its matched predecessors is active at this token.";
  const head = h("tr", {}, ...[["without", "The matched predecessors that are removed at this token, each at its own site"], ["left", "What is left of the activation"],
    ["control", "What is left without as many other active features of the same sites, alike in norm"]].map(([word, why]) => h("th", { scope: "col", title: why }, word)));
  const rows = answer.removals.map((one) => h("tr", {}, h("th", { scope: "row" }, one.features.join(" ")),
    h("td", { title: `activation ${Number(one.after.toPrecision(3))}, ${Number(answer.before.toPrecision(3))} before` }, left(one.change)),
    h("td", { title: one.control.join(" ") }, left(one.control_change))));
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...rows));
}
