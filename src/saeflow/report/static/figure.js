/* A figure: zoom and pan, the overview, paths through the graph. The picture is already drawn. */
import { fillCard, make } from "./card.js";

const SVG = "http://www.w3.org/2000/svg";
export const GENTLE = matchMedia("(prefers-reduced-motion: reduce)");
const FAR = 0.6; // below, only the number of a feature is written into its box
const TINY = 0.28; // below, that number is larger than its box's height allows, and boxes are full of colour
const MOST_STRETCH = 4.5;

/**
 * A figure without a picture yet: its frame listens. `options` change what pointing and choosing do:
 *   fill(card, figure, node)  what the card says; the whole of it by default
 *   pins                      whether the chosen node keeps its card; `letsGo`: choosing it again lets go
 *   followsPointer            whether a path lights up under the pointer, and not only when chosen
 *   roving                    whether Tab stops once in the figure
 *   tall()                    the height that a fitted picture has to fit into; without, its width alone counts
 *   onChoose(id), onScale()   told of what the reader does
 */
export function createFigure(root, card, options = {}) {
  const figure = {
    root, card, frame: root.querySelector(".frame"), scale: 1, stretch: 1, chosen: null, shown: null, fill: fillCard,
    pins: true, letsGo: true, followsPointer: false, roving: false, onChoose: null, onScale: null, ...options,
  };
  figure.head = make("div", "layer-head");
  figure.head.setAttribute("aria-hidden", "true");
  figure.frame.before(figure.head);
  addTools(figure);
  goByOverview(figure);
  dragToPan(figure);
  wheelToZoom(figure);
  const { frame } = figure;
  frame.addEventListener("scroll", () => moved(figure), { passive: true });
  frame.addEventListener("click", (event) => { if (figure.letsGo && !figure.dragged && !event.target.closest(".node")) choose(figure, null); });
  addEventListener("scroll", () => { if (figure.shown) placeCard(figure, figure.shown); }, { passive: true });
  addEventListener("resize", () => { if (figure.svg) moved(figure); });
  return figure;
}

/** Give a figure its picture, and the data that was drawn; its nodes still have to be wired. */
export function setPicture(figure, svg, data) {
  const size = svg.viewBox.baseVal;
  Object.assign(figure, {
    svg, data, width: size.width, height: size.height, chosen: null, shown: null,
    nodes: new Map(data.nodes.map((node) => [node.feature, node])),
    drawn: new Map(Array.from(svg.querySelectorAll(".node"), (g) => [g.dataset.id, g])),
    into: groupBy(data.edges, "child"),
    outOf: groupBy(data.edges, "parent"),
  });
  figure.toSeed.textContent = data.nodes.some((node) => node.kind) ? "Strongest" : "Seed";
  figure.card.hidden = true;
  svg.classList.add("headed");
  drawHead(figure);
  drawOverview(figure);
}

function groupBy(edges, end) {
  const groups = new Map();
  for (const edge of edges) groups.set(edge[end], [...(groups.get(edge[end]) || []), edge]);
  const weight = (edge) => Math.abs(edge.effect ?? edge.score);
  for (const group of groups.values()) group.sort((a, b) => weight(b) - weight(a));
  return groups;
}

/* Zoom and pan: the frame scrolls, the picture grows. */

export function setScale(figure, scale, at = figure.frame.clientWidth / 2) {
  const { frame, svg } = figure;
  const next = Math.max(Math.min(0.1, whole(figure)), Math.min(3, scale));
  const held = (frame.scrollLeft + at) / figure.scale;
  const heldDown = (frame.scrollTop + frame.clientHeight / 2) / (figure.scale * figure.stretch);
  figure.scale = next;
  figure.stretch = stretchAt(figure, next);
  svg.setAttribute("width", Math.round(figure.width * next));
  svg.setAttribute("height", Math.round(figure.height * next * figure.stretch));
  svg.setAttribute("preserveAspectRatio", "none");
  svg.style.setProperty("--flat", 1 / figure.stretch);
  svg.style.setProperty("--unit", `${1 / next}px`); // one pixel of the screen
  svg.classList.toggle("far", next < FAR);
  svg.classList.toggle("tiny", next < TINY);
  frame.scrollLeft = held * next - at;
  frame.scrollTop = heldDown * next * figure.stretch - frame.clientHeight / 2;
  moved(figure);
  figure.onScale?.();
}

/** A long graph seen from afar is a thin line: where there is height to spare, it is drawn taller. */
function stretchAt(figure, scale) {
  if (scale >= FAR) return 1;
  const room = figure.tall ? figure.tall() : 0.5 * innerHeight;
  return Math.max(1, Math.min(MOST_STRETCH, 0.75 / scale, room / (figure.height * scale)));
}

/** Keep lane names and the overview in step with the frame. */
function moved(figure) {
  const { frame, svg, scale } = figure;
  const left = frame.scrollLeft / scale;
  svg.querySelector(".lane-names").setAttribute("transform", `translate(${left} 0)`);
  const seen = frame.clientWidth / scale;
  const wide = figure.width * scale > frame.clientWidth + 2;
  frame.classList.toggle("pannable", wide);
  const overview = figure.root.querySelector(".overview");
  overview.hidden = !wide;
  const view = overview.querySelector(".view");
  if (view) for (const [key, value] of [["x", left], ["width", Math.min(seen, figure.width)]]) view.setAttribute(key, value);
  placeHead(figure);
  if (figure.shown) placeCard(figure, figure.shown);
}

/* The names of layers above the frame, which stay while it scrolls. */

function drawHead(figure) {
  figure.layers = Array.from(figure.svg.querySelectorAll(".layer"), (group) => {
    const band = group.querySelector(".band");
    const said = group.querySelector(".layer-name")?.textContent ?? `layer ${group.dataset.layer}`;
    return { name: make("span", ""), said, short: said.replace("layer ", ""), x: band.x.baseVal.value, width: band.width.baseVal.value };
  });
  figure.head.replaceChildren(...figure.layers.map(({ name }) => name));
}

/** Each name over the middle of what is seen of its band: it stands over that layer's features alone. */
function placeHead(figure) {
  const { frame, scale } = figure;
  const start = frame.scrollLeft - Math.max(0, (frame.clientWidth - figure.width * scale) / 2);
  for (const { name, said, short, x, width } of figure.layers) {
    const left = Math.max(x * scale - start, 0);
    const right = Math.min((x + width) * scale - start, frame.clientWidth);
    name.style.transform = `translateX(calc(${((left + right) / 2).toFixed(1)}px - 50%))`;
    const text = width * scale < 62 ? short : said;
    name.classList.toggle("out", right - left < Math.min(9 * text.length, width * scale));
    if (name.textContent !== text) name.textContent = text;
  }
}

/** The scale at which the whole graph is seen; without `tall` only its width counts, as the frame grows. */
function whole(figure) {
  const room = figure.tall ? figure.tall() / figure.height : Infinity;
  return Math.min(1.15, figure.frame.clientWidth / figure.width, room);
}

export function fit(figure) {
  setScale(figure, whole(figure));
}

/** Open with all of it where its features can still be told apart, else around the seed. */
export function open(figure) {
  const share = whole(figure);
  setScale(figure, share >= TINY ? share : 1);
  bringIntoView(figure, figure.data.seed, 0.5, false);
}

/** Scroll the frame so that a node stands where it can be seen. */
export function bringIntoView(figure, id, share = null, smooth = !GENTLE.matches) {
  const { frame, scale } = figure;
  const g = figure.drawn.get(id);
  if (!g) return;
  const box = g.querySelector(".box");
  const [x, w] = ["x", "width"].map((key) => box[key].baseVal.value * scale);
  const [y, h] = ["y", "height"].map((key) => box[key].baseVal.value * scale * figure.stretch);
  let left = frame.scrollLeft;
  if (share !== null) left = x + w / 2 - frame.clientWidth * share;
  else if (x - 60 - 40 * scale < left) left = x - 60 - 40 * scale;
  else if (x + w + 60 > left + frame.clientWidth) left = x + w + 60 - frame.clientWidth;
  let top = frame.scrollTop;
  if (y - 30 < top) top = y - 30;
  else if (y + h + 30 > top + frame.clientHeight) top = y + h + 30 - frame.clientHeight;
  frame.scrollTo({ left, top, behavior: smooth ? "smooth" : "auto" });
}

function dragToPan(figure) {
  const { frame } = figure;
  let from = null;
  frame.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse" && event.button === 0) from = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop];
    figure.dragged = false;
  });
  addEventListener("pointermove", (event) => {
    if (!from) return;
    const [left, top] = [from[0] - event.clientX, from[1] - event.clientY];
    if (Math.hypot(left - frame.scrollLeft, top - frame.scrollTop) > 4 || figure.dragged) {
      figure.dragged = true;
      frame.classList.add("dragging");
      frame.scrollLeft = left;
      frame.scrollTop = top;
    }
  });
  addEventListener("pointerup", () => {
    from = null;
    frame.classList.remove("dragging");
  });
}

function wheelToZoom(figure) {
  figure.frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const at = event.clientX - figure.frame.getBoundingClientRect().left;
    setScale(figure, figure.scale * Math.exp(-event.deltaY * 0.002), at);
  }, { passive: false });
}

function addTools(figure) {
  const bar = figure.root.querySelector(".tools");
  const tools = [
    ["−", "Zoom out", () => setScale(figure, figure.scale / 1.25)],
    ["+", "Zoom in", () => setScale(figure, figure.scale * 1.25)],
    ["Fit", "Fit the whole graph", () => fit(figure)],
    ["Seed", "Go to the node with the ring", () => { setScale(figure, Math.max(1, figure.scale)); bringIntoView(figure, figure.data.seed, 0.5); figure.drawn.get(figure.data.seed)?.focus({ preventScroll: true }); }],
  ];
  for (const [text, name, act] of tools) {
    const button = make("button", "", text);
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.title = name;
    button.addEventListener("click", act);
    bar.append(button);
    if (text === "Seed") figure.toSeed = button;
  }
  bar.hidden = false;
}

/** The whole graph in small below the frame, to see where one is and to go elsewhere. */
function drawOverview(figure) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${figure.width} ${figure.height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const [id, g] of figure.drawn) {
    const mark = g.querySelector(".box").cloneNode(false);
    mark.setAttribute("class", `mark ${g.getAttribute("class").replace("node ", "")}`);
    for (const name of ["stroke", "fill", "stroke-dasharray"]) mark.removeAttribute(name);
    mark.classList.toggle("seed", id === figure.data.seed);
    svg.append(mark);
  }
  const view = document.createElementNS(SVG, "rect");
  view.setAttribute("class", "view");
  view.setAttribute("height", figure.height);
  svg.append(view);
  figure.root.querySelector(".overview").replaceChildren(svg);
}

function goByOverview(figure) {
  const overview = figure.root.querySelector(".overview");
  const go = (event) => {
    const box = overview.getBoundingClientRect();
    const middle = ((event.clientX - box.left) / box.width) * figure.width * figure.scale;
    figure.frame.scrollLeft = middle - figure.frame.clientWidth / 2;
  };
  overview.addEventListener("pointerdown", (event) => { overview.setPointerCapture(event.pointerId); go(event); });
  overview.addEventListener("pointermove", (event) => { if (event.buttons) go(event); });
}

/* Paths: a node with everything it comes from and everything it goes into. */

function reach(edges, end, id) {
  const found = new Set([id]);
  for (const at of found) for (const edge of edges.get(at) || []) found.add(edge[end]);
  return found;
}

/** Light up everything before and after a node; null lets go. */
export function follow(figure, id) {
  const { svg } = figure;
  svg.classList.toggle("following", id !== null);
  const before = id === null ? new Set() : reach(figure.into, "parent", id);
  const after = id === null ? new Set() : reach(figure.outOf, "child", id);
  for (const [name, g] of figure.drawn) g.classList.toggle("on", before.has(name) || after.has(name));
  for (const wire of svg.querySelectorAll("[data-parent]")) {
    const { parent, child } = wire.dataset;
    wire.classList.toggle("on", (before.has(parent) && before.has(child)) || (after.has(parent) && after.has(child)));
  }
  for (const stub of svg.querySelectorAll(".stub")) stub.classList.toggle("on", before.has(stub.dataset.id) || after.has(stub.dataset.id));
}

/** Choose a node; where paths do not follow the pointer, follow its path. Null lets go. */
export function choose(figure, id) {
  figure.chosen = id;
  for (const [name, g] of figure.drawn) {
    g.classList.toggle("chosen", name === id);
    g.setAttribute("aria-pressed", String(name === id));
  }
  if (!figure.followsPointer) follow(figure, id);
  if (!figure.pins || id === null) hideCard(figure);
  else showCard(figure, id);
  figure.onChoose?.(id);
}

/* Cards */

export function showCard(figure, id) {
  const node = figure.nodes.get(id);
  if (!node || (!figure.pins && id === figure.chosen)) return;
  figure.fill(figure.card, figure, node);
  figure.card.classList.toggle("pinned", figure.pins && figure.chosen === id);
  figure.card.hidden = false;
  figure.shown = id;
  figure.card.scrollTop = 0;
  placeCard(figure, id);
}

/** Below the node or above it, where there is more room, so that its path stays in sight; else beside it. */
function placeCard(figure, id) {
  const { card } = figure;
  const node = figure.drawn.get(id).getBoundingClientRect();
  const gap = 10;
  const [pageWidth, pageHeight] = [document.documentElement.clientWidth, innerHeight];
  const [below, above] = [pageHeight - node.bottom - 2 * gap, node.top - 2 * gap];
  const room = Math.max(below, above);
  card.style.maxHeight = "";
  if (room >= 240 && pageWidth > 740) card.style.maxHeight = `${Math.min(room, 512)}px`;
  const [w, h] = [card.offsetWidth, card.offsetHeight];
  let left = node.left + node.width / 2 - w / 2;
  let top = h <= below ? node.bottom + gap : node.top - h - gap;
  if (h > room) {
    top = pageHeight - h - gap;
    left = node.right + gap + w < pageWidth ? node.right + gap : node.left - w - gap;
  }
  card.style.left = `${Math.max(8, Math.min(left, pageWidth - w - 8))}px`;
  card.style.top = `${Math.max(8, top)}px`;
}

/** Back to the chosen node's card, or to none. */
export function hideCard(figure) {
  figure.shown = null;
  if (figure.pins && figure.chosen !== null) showCard(figure, figure.chosen);
  else figure.card.hidden = true;
}
