/* What the boxes' colours say: cases A-D, origins, or which of two graphs. A letter says it again. */
import { all, h, percent, svg } from "./dom.js";

/** The eight groups of section 5.1 in the order of every table, with a short mark. */
export const GROUPS = [
  ["nowhere", "∅"], ["RES", "R"], ["MLP", "M"], ["ATT", "A"], ["RES & MLP", "RM"], ["RES & ATT", "RA"],
  ["MLP & ATT", "MA"], ["RES & MLP & ATT", "RMA"],
];
const CASES = [
  ["translated", "A", "It was there in the previous layer and is carried on."],
  ["processed", "B", "It was there in the previous layer, and a module of this layer writes it too."],
  ["newborn", "C", "The previous layer has nothing like it: a module of this layer writes it."],
  ["unexplained", "D", "No predecessor points its way: similarity alone does not explain it."],
];
const SIDES = { a: "only in a", b: "only in b", ab: "in both" };

/**
 * Colour a picture that was just drawn by cases.
 * @param {object} figure of figure.js
 * @param {"case"|"origin"|"graph"} by
 * @param {object} answer of the server: `groups`, and `in_a`, `in_b`, `both`, `edges_in`
 */
export function colour(figure, by, answer) {
  const { svg: picture } = figure;
  figure.root.dataset.by = by;
  for (const extra of all(".extra", picture)) extra.remove();
  picture.classList.toggle("by-origin", by === "origin");
  picture.classList.toggle("by-graph", Boolean(answer.in_a) && by === "graph");
  if (by === "origin") for (const [id, g] of figure.drawn) origin(g, answer.groups?.[id]);
  if (answer.in_a) sides(figure, answer);
  const small = figure.root.querySelector(".overview svg");
  small?.classList.add("flow");
  small?.classList.toggle("by-origin", by === "origin");
  small?.classList.toggle("by-graph", picture.classList.contains("by-graph"));
  all(".mark", small ?? figure.root).forEach((mark, i) => {
    const node = Array.from(figure.drawn.values())[i];
    mark.setAttribute("class", `mark ${node.getAttribute("class")}`);
  });
}

/** The largest group colours the box; a bar along its foot shows all of them. */
function origin(g, found) {
  const box = g.querySelector(".box");
  const [x, y, width, height] = ["x", "y", "width", "height"].map((key) => box[key].baseVal.value);
  for (const name of Array.from(g.classList)) if (name.startsWith("group-")) g.classList.remove(name);
  const shares = found && GROUPS.map(([name]) => shareOf(found.shares[name]));
  g.classList.add(shares ? `group-${shares.indexOf(Math.max(...shares))}` : "group-none");
  if (!shares) return;
  const largest = shares.indexOf(Math.max(...shares));
  g.append(svg("text", { class: "extra ink mark-letter", x: x + width - 8, y: y + 15, "text-anchor": "end", "font-size": 10 },
    `${GROUPS[largest][1]} ${percent(shares[largest])}`));
  let at = x + 3;
  shares.forEach((share, i) => {
    const wide = share * (width - 6);
    if (wide > 0.3) g.append(svg("rect", { class: `extra g${i}`, x: at, y: y + height - 5, width: wide, height: 3.5 }));
    at += wide;
  });
}

/** A share, whether it comes with its interval or alone. */
export function shareOf(found) {
  return (typeof found === "object" && found !== null ? found.share : found) ?? 0;
}

/** Letters beside boxes and dashes along edges: a, b, or both. */
function sides(figure, answer) {
  const [both, a] = [new Set(answer.both), new Set(answer.in_a)];
  const sideOf = (id) => (both.has(id) ? "ab" : a.has(id) ? "a" : "b");
  for (const [id, g] of figure.drawn) {
    const side = sideOf(id);
    const box = g.querySelector(".box");
    const [x, y, width] = [box.x.baseVal.value, box.y.baseVal.value, box.width.baseVal.value];
    g.classList.remove("side-a", "side-b", "side-ab");
    g.classList.add(`side-${side}`);
    g.setAttribute("aria-label", `${g.getAttribute("aria-label")}. ${SIDES[side]}`);
    const wide = side === "ab" ? 22 : 14;
    // a is round, b is square, both are a long pill.
    g.append(svg("rect", { class: "extra side-tag", x: x + width - wide - 6, y: y - 10, width: wide, height: 14, rx: side === "b" ? 1 : 7 }),
      svg("text", { class: "extra side-letter", x: x + width - wide / 2 - 6, y: y + 0.6, "text-anchor": "middle", "font-size": 10.5 }, side === "ab" ? "a b" : side));
  }
  const said = new Map(figure.data.edges.map((edge, i) => [`${edge.parent} ${edge.child}`, answer.edges_in?.[i]]));
  for (const wire of all(".wire", figure.svg)) {
    const { parent, child } = wire.dataset;
    const ends = [sideOf(parent), sideOf(child)];
    wire.classList.add(`side-${said.get(`${parent} ${child}`) ?? ends.find((side) => side !== "ab") ?? "ab"}`);
  }
}

/** Mark what is planned, and a second seed by a dashed ring. */
export function marks(figure, planned, secondSeed = "") {
  for (const [id, g] of figure.drawn) g.classList.toggle("planned", planned.has(id));
  for (const ring of all(".ring.second", figure.svg)) ring.remove();
  const g = secondSeed === figure.data.seed ? null : figure.drawn.get(secondSeed);
  if (!g) return;
  const box = g.querySelector(".box");
  const [x, y, width, height] = ["x", "y", "width", "height"].map((key) => box[key].baseVal.value);
  g.prepend(svg("rect", { class: "ring second ink-line", x: x - 4, y: y - 4, width: width + 8, height: height + 8, rx: 6, fill: "none", stroke: "#22201c", "stroke-width": 1.8, "stroke-dasharray": "6 3" }));
}

const key = (title, ...inner) => h("span", { class: "key", title }, ...inner);

/** What the colours mean, for the bar over the picture. */
export function legend(root, by, answer) {
  const parts = [];
  if (by === "case") {
    for (const [name, letter, sentence] of CASES) parts.push(key(sentence, h("i", { class: `swatch case-${name}` }, h("b", {}, letter)), name));
    parts.push(key("What a module writes", h("i", { class: "swatch module" }), "module"));
  } else if (by === "origin") {
    const seen = new Set(Object.values(answer.groups ?? {}).flatMap((found) => GROUPS.filter(([name]) => shareOf(found.shares[name]) > 0).map(([name]) => name)));
    GROUPS.forEach(([name, mark], i) => {
      if (seen.has(name)) parts.push(key(`predecessors active with it: ${name}`, h("i", { class: `swatch group-${i}` }), name === "nowhere" ? `${mark} nowhere` : name));
    });
    parts.push(key("Features of modules, and those that were not seen", h("i", { class: "swatch group-none" }), "not measured"));
  } else {
    for (const [side, text] of Object.entries(SIDES)) {
      const n = { a: answer.in_a, b: answer.in_b, ab: answer.both }[side].length;
      parts.push(key(`${n} features ${text}`, h("i", { class: `badge ${side}` }, side === "ab" ? "a b" : side), `${text} (${n})`));
    }
  }
  if (answer.data.nodes.some((node) => node.joins.length)) parts.push(key("A module joins the residual stream with a high score", h("i", { class: "joint module" }, "⊕"), "circuit"));
  parts.push(key("", h("i", { class: "ringed" }), "seed"));
  root.replaceChildren(...parts);
}
