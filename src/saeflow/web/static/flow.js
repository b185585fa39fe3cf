/* The flow view: asks for the graph that the address names, shows it, and keeps its place while it changes. */
import { gaveUp, get, latest, published } from "./api.js";
import { colour, legend, marks } from "./colours.js";
import { asked, colouring } from "./controls.js";
import { $, announce, digits, h, problem, refill } from "./dom.js";
import { planned, togglePlanned } from "./picked.js";
import { make } from "./report/card.js";
import { bringIntoView, choose, createFigure, GENTLE, hideCard, open, setPicture, setScale, fit } from "./report/figure.js";
import { focusNode, wireNode } from "./report/keys.js";
import * as state from "./state.js";

const asking = latest();
let figure = null;
let shown = { key: "", seed: "", answer: null };

/** Set up the view; `readNode(id, figure, answer)` opens the panel. */
export function startFlow(info, readNode) {
  figure = createFigure($("#figure"), $("#tip"), {
    fill: fillTip, pins: false, letsGo: false, followsPointer: true, roving: true,
    onChoose: (id) => { if (id) chosen(id); },
    tall: () => $("#frame").clientHeight,
  });
  figure.read = readNode;
  $("#frame").addEventListener("keydown", onKey);
  state.subscribe((now) => {
    if (now.view !== "flow") return;
    show(info);
  });
  addEventListener("planned", () => { if (figure.svg) marks(figure, planned(), state.value("b")); });
}

/** The figure on the screen, for the panel and the keys of the page. */
export const theFigure = () => figure;

function chosen(id) {
  if (state.value("node") === id) {
    $("#panel").focus();
    return;
  }
  state.update({ node: id });
}

/** Make a feature the seed of the graph. */
export function seedAt(id) {
  state.update({ feature: id, node: id, b: null, expand: null, colour: state.value("colour") === "origin" ? "origin" : null }, { push: true, to: "flow" });
}

/** Add a node's other matches to the graph, or take them away again. */
export function toggleExpanded(id) {
  const now = state.list("expand");
  const next = now.includes(id) ? now.filter((other) => other !== id) : [...now, id];
  state.update({ expand: next.join(",") }, { push: true });
}

function onKey(event) {
  const id = document.activeElement?.dataset?.id;
  if (event.ctrlKey || event.metaKey || event.altKey || !figure.svg) return;
  if (event.key === "+" || event.key === "=") setScale(figure, figure.scale * 1.25);
  else if (event.key === "-") setScale(figure, figure.scale / 1.25);
  else if (event.key === "0") fit(figure);
  else if (!id) return;
  else if (event.key === "g") seedAt(id);
  else if (event.key === "e") toggleExpanded(id);
  else if (event.key === "p" && !published) togglePlanned(id);
  else return;
  event.preventDefault();
}

/** Bring the graph of the address onto the screen, if it is not there already. */
async function show(info) {
  const feature = state.value("feature");
  if (!feature) return;
  const b = state.value("b");
  const values = asked(info);
  const key = JSON.stringify([feature, b, values]);
  if (key === shown.key) {
    repaint();
    return;
  }
  shown.key = key;
  $("#busy").classList.add("on");
  $("#figure").setAttribute("aria-busy", "true");
  try {
    const signal = asking.next();
    const answer = b ? await get("/api/compare", { a: feature, b, ...values }, signal) : await get("/api/graph", { feature, ...values }, signal);
    $("#flow-problem").replaceChildren();
    $("#figure").classList.remove("stale");
    draw(answer);
    done();
  } catch (error) {
    if (gaveUp(error)) return;
    done();
    shown.key = "";
    $("#flow-problem").replaceChildren(problem(error));
    $("#figure").classList.toggle("stale", Boolean(shown.answer));
  }
}

function done() {
  $("#busy").classList.remove("on");
  $("#figure").removeAttribute("aria-busy");
}

function draw(answer) {
  const before = places();
  const focused = document.activeElement?.closest?.(".node")?.dataset.id;
  const picture = document.importNode(new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement, true);
  const anchor = [state.value("node"), shown.seed, answer.data.seed].find((id) => before.has(id) && answer.data.nodes.some((node) => node.feature === id));
  const first = !anchor;
  $("#frame").replaceChildren(picture);
  setPicture(figure, picture, answer.data);
  for (const [id, g] of figure.drawn) {
    wireNode(figure, id, g);
    g.setAttribute("tabindex", id === answer.data.seed ? "0" : "-1");
  }
  shown = { ...shown, seed: answer.data.seed, answer };
  if (first) open(figure);
  else keepPlace(anchor, before);
  repaint();
  tellSize(answer);
  if (focused && figure.drawn.has(focused)) focusNode(figure, focused);
  else if (focused) focusNode(figure, answer.data.seed);
}

/** Where every node stood on the screen. */
function places() {
  const found = new Map();
  for (const [id, g] of figure.drawn ?? []) if (g.isConnected) found.set(id, g.getBoundingClientRect());
  return found;
}

/** The anchor stays where it was, and the other nodes glide to their places. */
function keepPlace(anchor, before) {
  setScale(figure, figure.scale);
  const now = figure.drawn.get(anchor).getBoundingClientRect();
  const was = before.get(anchor);
  figure.frame.scrollLeft += now.left - was.left;
  figure.frame.scrollTop += now.top - was.top;
  if (GENTLE.matches) return;
  for (const [id, g] of figure.drawn) {
    const old = before.get(id);
    const here = g.getBoundingClientRect();
    if (!old) g.animate([{ opacity: 0 }, { opacity: 1 }], 160);
    else if (Math.hypot(old.left - here.left, old.top - here.top) > 1) {
      const shift = `translate(${(old.left - here.left) / figure.scale}px, ${(old.top - here.top) / figure.scale}px)`;
      g.animate([{ transform: shift }, { transform: "none" }], { duration: 180, easing: "ease-out" });
    }
  }
}

/** Colours, marks and the panel: what changes without a new graph. */
function repaint() {
  const { answer } = shown;
  if (!answer || !figure.svg) return;
  const by = colouring();
  colour(figure, by, answer);
  legend($("#legend"), by, answer);
  if (by === "origin" && answer.groups && !Object.keys(answer.groups).length) askAgain();
  marks(figure, planned(), state.value("b"));
  const node = state.value("node");
  if (node && figure.chosen !== node && figure.drawn.has(node)) {
    const { onChoose } = figure;
    figure.onChoose = null;
    choose(figure, node);
    figure.onChoose = onChoose;
    bringIntoView(figure, node);
  }
  figure.read(node || answer.data.seed, answer);
}

let asks = 0;

/** Origins are read after the server's start: a graph that came before them is asked for again. */
function askAgain() {
  if (asks++ > 8) return;
  setTimeout(() => { shown.key = ""; state.update({}); }, 1500);
}

function tellSize(answer) {
  const { data } = answer;
  const counts = ["res", "mlp", "att"].map((part) => [data.nodes.filter((node) => node.feature.split("/")[1] === part).length, part]);
  const said = [
    counts.filter(([n]) => n).map(([n, part]) => `${n} ${part}`).join(", ") || "no features",
    `${data.edges.length} ${data.edges.length === 1 ? "edge" : "edges"}`,
    answer.in_a ? `${answer.both.length} features and ${answer.edges_both} edges in both graphs` : "",
    data.span ? (data.span[0] === data.span[1] ? `layer ${data.span[0]}` : `layers ${data.span[0]} to ${data.span[1]}`) : "",
  ].filter(Boolean).join(" · ");
  const ends = data.ends.filter((end) => end.reason === "below threshold").map((end) => end.sentence);
  refill($("#told"), h("span", {}, said), h("span", { class: "took", title: "Time the server took" }, `${answer.took_ms < 10 ? answer.took_ms.toFixed(1) : Math.round(answer.took_ms)} ms`),
    ends.length ? h("span", { class: "ends" }, ends.slice(0, 2).join(" ")) : null);
  announce(`Flow graph of ${data.seed}: ${said}.`);
}

/** The card beside a node one points at: the panel has the rest. */
function fillTip(card, its, node) {
  const words = node.words ?? {};
  const top = make("div", "top");
  top.append(make("span", "id", node.feature), make("span", "", node.case ? `${node.case} ${node.evolution}` : ""));
  card.replaceChildren(top);
  const said = words.label || (words.tokens ?? []).slice(0, 6).join(" ");
  card.append(make("p", "said", said || "no words known"));
  if (node.silent) card.append(make("p", "near", "† silent on the texts of its words"));
  if (node.scores) {
    const scores = ["res", "mlp", "att"].filter((part) => node.scores[part] !== null).map((part) => `s(${part[0].toUpperCase()}) ${digits(node.scores[part])}`);
    card.append(make("p", "near", scores.join("   ")));
  }
}

/** Let go of what is shown over the graph. */
export function letGo() {
  if (figure?.svg) hideCard(figure);
}
