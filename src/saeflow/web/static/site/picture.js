/* A flow graph as SVG: what saeflow.report.svg draws, to the letter. Every string is escaped. */
import { parts } from "./blocks.js";
import { cutOf, letterOf } from "./growth.js";
import { BAND_GAP, BOX_WIDTH, GUTTER, ID_LINE, LANE_FOOT, LANE_HEAD, LINE, layOut, port } from "./layout.js";
import { fixed, general } from "./numbers.js";

const [INK, MUTED, PAPER, BAND, WIRE, MODULE] = ["#22201c", "#6a655b", "#fffefb", "#f4f1e9", "#5c574d", "#17786a"];
const TONES = { translated: "#2a66a8", processed: "#946900", newborn: "#bf4318", unexplained: "#77726a" };
const FACE = "Helvetica, Arial, sans-serif";
const SILENT = "†";
const ESCAPED = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#x27;" };

const escaped = (text) => text.replace(/[&<>"']/g, (char) => ESCAPED[char]);

const scoreText = (score) => fixed(score, 2).replace("-0.00", "0.00");

/**
 * A graph as an element for a page that brings figure.css and a legend of its own.
 * @param {object} graph its data
 * @param {function(string): {headline: string, lines: string[], silent: boolean|null}} words of a feature
 */
export function figureSvg(graph, words) {
  const layout = layOut(graph, (feature) => words(feature).lines);
  const label = escaped(`Feature flow of ${graph.seed}, ${graph.nodes.length} features`);
  const empty = layout.lanes.filter((lane) => lane.empty && lane.part !== "res");
  const drawn = tag("g", { "font-family": FACE },
    ...layout.bands.map((band) => bandOf(band, layout.height)), ...layout.wires.map(wireOf), ...layout.stubs.map(stubOf),
    ...layout.boxes.map((box) => nodeOf(graph, words(box.node.feature), box)), ...layout.wires.map(scoreOf),
    ...empty.map((lane) => emptyLane(graph, lane)), tag("g", { class: "lane-names" }, ...layout.lanes.map(laneName)));
  return `<svg xmlns="http://www.w3.org/2000/svg" class="flow" role="group" aria-label="${label}" width="${fixed(layout.width, 0)}" height="${fixed(layout.height, 0)}" `
    + `viewBox="0 0 ${fixed(layout.width, 1)} ${fixed(layout.height, 1)}">${drawn}</svg>`;
}

/** An element: attributes escaped, `inner` as it is. */
function tag(name, attributes, ...inner) {
  const said = Object.entries(attributes).map(([key, value]) => ` ${key}="${escaped(typeof value === "number" ? (Math.abs(value) < 10 ? general(value, 4) : fixed(value, 1)) : value)}"`);
  return `<${name}${said.join("")}>${inner.join("")}</${name}>`;
}

/** A line of text; its first class is `ink` or `muted`, and gives its colour. */
function line(x, y, text, kind, more = {}) {
  const base = { x, y, "font-size": 10.5, fill: kind.startsWith("ink") ? INK : MUTED };
  return tag("text", { class: kind, ...base, ...more }, escaped(text));
}

function bandOf(band, height) {
  const ground = tag("rect", { class: "band", x: band.x, y: 0, width: band.width, height, rx: 6, fill: BAND });
  const name = line(band.x + band.width / 2, 17, `layer ${band.layer}`, "muted layer-name", { "text-anchor": "middle", "font-size": 11.5 });
  return tag("g", { class: "layer", "data-layer": String(band.layer) }, ground, name);
}

function laneName(lane) {
  const ground = tag("rect", { class: "paper", x: 0, y: lane.y, width: GUTTER - 4, height: lane.height, fill: PAPER });
  return ground + line(GUTTER / 2 - 2, lane.y + (lane.height + LANE_HEAD - LANE_FOOT) / 2 + 4, lane.part, "muted lane-name", { "text-anchor": "middle", "font-size": 12 });
}

function emptyLane(graph, lane) {
  const matched = graph.nodes.some((node) => node.scores && node.scores[lane.part] !== null);
  const cut = graph.thresholds.fdr ? "its threshold" : general(cutOf(graph.thresholds, lane.part), 6);
  return line(GUTTER + BAND_GAP + 6, lane.y + 15, `no ${lane.part} feature of any layer ${matched ? `reaches ${cut}` : "was matched"}`, "muted");
}

function wireOf({ edge, path }) {
  const module = parts(edge.parent).part !== "res";
  const title = `${edge.parent} to ${edge.child}: ${scoreText(edge.score)}, match ${edge.rank + 1}`
    + (edge.p === null ? "" : `, p = ${general(edge.p, 2)}`) + (edge.mutual ? ", mutual best match" : "") + (edge.by_chance ? ", no better than chance" : "");
  return tag("path", {
    class: (module ? "wire module" : "wire") + (edge.by_chance ? " chance" : ""), "data-parent": edge.parent, "data-child": edge.child, d: path, fill: "none",
    color: module ? MODULE : WIRE, stroke: "currentColor", "stroke-width": 0.6 + 4.2 * Math.max(edge.score, 0),
    "stroke-opacity": 0.25 + 0.6 * Math.min(Math.max(edge.score, 0), 1), ...(edge.by_chance ? { "stroke-dasharray": "2 4" } : {}),
  }, tag("title", {}, escaped(title)));
}

function scoreOf({ edge, label }) {
  if (!label) return "";
  const anchor = parts(edge.parent).part === "res" ? "middle" : "start";
  return line(...label, scoreText(edge.score), "muted wire-score", { "text-anchor": anchor, "data-parent": edge.parent, "data-child": edge.child });
}

function stubOf({ end, x, y, outward }) {
  const at = x + 11 * outward;
  const d = `M${fixed(x, 1)} ${fixed(y, 1)}H${fixed(at, 1)}M${fixed(at, 1)} ${fixed(y - 8, 1)}v16`;
  return tag("path", { class: "stub", "data-id": end.feature, d, fill: "none", color: MUTED, stroke: "currentColor", "stroke-width": 1.5 }, tag("title", {}, escaped(end.sentence)));
}

function nodeOf(graph, { headline, lines, silent }, box) {
  const { node } = box;
  const { part, row } = parts(node.feature);
  const seed = node.feature === graph.seed;
  const letter = letterOf(node.evolution);
  const kind = part !== "res" ? "module" : node.evolution ? `case-${node.evolution}` : "case-none";
  const colour = part !== "res" ? MODULE : TONES[node.evolution ?? "unexplained"];
  const name = [
    node.feature, headline, seed ? "the seed" : "", letter ? `case ${letter}, ${node.evolution}` : "",
    ...node.joins.map((join) => `linear circuit with ${join}`), silent ? "silent: it fired on none of the texts its words were made from" : "",
  ].filter(Boolean).join(". ").split(/\s+/).filter(Boolean).join(" ");
  const [x, y, h] = [box.x + 13, box.y + ID_LINE - 4, box.height];
  const edge = { class: "box paper", x: box.x, y: box.y, width: BOX_WIDTH, height: h, rx: 3, fill: PAPER, stroke: "currentColor", "stroke-width": 1.2, ...(node.evolution === "unexplained" ? { "stroke-dasharray": "4 3" } : {}) };
  const side = `M${fixed(box.x + 3, 1)} ${fixed(box.y, 1)}h3v${fixed(h, 1)}h-3a3 3 0 0 1 -3 -3v-${fixed(h - 6, 1)}a3 3 0 0 1 3 -3z`;
  return tag("g", { class: `node ${kind}${silent ? " silent" : ""}${seed ? " seed" : ""}`, "data-id": node.feature, tabindex: "0", role: "button", "aria-label": name, color: colour },
    tag("title", {}, escaped(name)),
    seed ? tag("rect", { class: "ring ink-line", x: box.x - 4, y: box.y - 4, width: BOX_WIDTH + 8, height: h + 8, rx: 6, fill: "none", stroke: INK, "stroke-width": 1.8 }) : "",
    tag("rect", edge), tag("path", { d: side, fill: "currentColor" }),
    line(x, y, silent ? `${node.feature} ${SILENT}` : node.feature, "muted id", { "font-family": "Menlo, Consolas, monospace" }),
    letter ? tag("text", { class: "letter", x: box.right - 8, y, "font-size": 11, "text-anchor": "end", "font-weight": "700", fill: "currentColor" }, letter) : "",
    ...lines.map((text, i) => line(x, y + (i + 1) * LINE, text, "ink words", { "font-size": 11.5 })),
    line(box.x + BOX_WIDTH / 2 + 3, box.middle + 10, String(row), "ink brief", { "text-anchor": "middle", "font-size": 27, display: "none" }),
    ...node.joins.map((join) => joint(box.x, box.middle + port(join) * h)));
}

/** The mark of a linear circuit, where the module's edge enters the box. */
function joint(x, y) {
  const stroke = { stroke: "currentColor", "stroke-width": 1.5 };
  const disc = tag("circle", { class: "paper", cx: x, cy: y, r: 6, fill: PAPER, ...stroke });
  const plus = tag("path", { d: `M${fixed(x - 3.2, 1)} ${fixed(y, 1)}h6.4M${fixed(x, 1)} ${fixed(y - 3.2, 1)}v6.4`, ...stroke });
  return tag("g", { class: "circuit module", color: MODULE }, disc, plus);
}
