/* A plan as a table and as bars by layer, with what the server notes of it. */
import { h } from "./dom.js";
import * as state from "./state.js";

const shown = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : Number(value.toPrecision(3)).toString()).replace("-", "−");

const UNITS = { r: "What the feature's activation is multiplied by", strength: "The length added along the feature's unit direction" };

/**
 * The parts that show an answer of /api/plan.
 * @param {{plan: object, table: Array<{feature: string, label: string, value: number, layer: number, why: string}>, span: number[]|null, notes: string[]}} answer
 */
export function planTable(answer) {
  const { table, plan, notes, span } = answer;
  const unit = plan.direction === "suppress" ? "r" : "strength";
  const most = Math.max(...table.map((row) => Math.abs(row.value)), 1e-9);
  const n = table.length;
  const told = `${n} ${n === 1 ? "feature" : "features"}${span ? `, layers ${span[0]} to ${span[1]}` : ""}, ${plan.direction}`;
  const head = h("tr", {}, ...[["feature", "", "Where the plan works; opens its graph"], ["words", "", "What it stands for"], [unit, "number", UNITS[unit]]].map(([text, kind, title]) => h("th", { scope: "col", class: kind, title }, text)));
  return [
    h("p", { class: "told" }, told),
    ...(notes ?? []).map((note) => h("p", { class: "note" }, note)),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "The plan, a step a row" },
      h("table", { class: "plan" }, h("thead", {}, head), h("tbody", {}, ...table.map((row) => planRow(row, most))))),
  ];
}

function planRow(row, most) {
  const bar = h("i");
  bar.style.width = `${(100 * Math.abs(row.value)) / most}%`;
  return h("tr", { title: row.why || null },
    h("td", { class: "id" }, h("a", { href: state.address("flow", { feature: row.feature, node: row.feature }) }, row.feature)),
    h("td", { class: "words" }, row.label || "–"),
    h("td", { class: "number" }, h("span", { class: row.value < 0 ? "bar below" : "bar", "aria-hidden": "true" }, bar), h("span", {}, shown(row.value))));
}
