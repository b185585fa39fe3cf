/* A figure's nodes: pointing, clicking, keys. Arrows move along edges, Enter chooses. */
import { bringIntoView, choose, follow, hideCard, showCard } from "./figure.js";

/** The neighbour an arrow key leads to: along the best edge, or up and down within a layer, row by row. */
export function neighbour(figure, id, key) {
  if (key === "ArrowLeft") return bestEnd(figure.into.get(id), "parent");
  if (key === "ArrowRight") return bestEnd(figure.outOf.get(id), "child");
  const layer = id.split("/")[0];
  const column = Array.from(figure.drawn.keys()).filter((name) => name.split("/")[0] === layer);
  column.sort((a, b) => place(figure, a, "y") - place(figure, b, "y") || place(figure, a, "x") - place(figure, b, "x"));
  return column[column.indexOf(id) + (key === "ArrowUp" ? -1 : 1)];
}

/** The residual stream first, as the path through the layers; else the best module. */
function bestEnd(edges, end) {
  if (!edges) return undefined;
  return (edges.find((edge) => edge[end].split("/")[1] === "res") || edges[0])[end];
}

function place(figure, id, axis) {
  return figure.drawn.get(id).querySelector(".box")[axis].baseVal.value;
}

export function focusNode(figure, id, share = null) {
  figure.drawn.get(id)?.focus({ preventScroll: true });
  bringIntoView(figure, id, share);
}

function onKey(figure, id, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(figure, figure.chosen === id && figure.letsGo ? null : id);
  } else if (event.key.startsWith("Arrow")) {
    const next = neighbour(figure, id, event.key);
    event.preventDefault();
    if (next) focusNode(figure, next);
  }
}

/** Let a node answer to pointer and keys. With `roving`, Tab enters the figure once and arrows move in it. */
export function wireNode(figure, id, g) {
  g.querySelector("title")?.remove();
  const lit = (on) => { if (figure.followsPointer) follow(figure, on ? id : null); };
  g.addEventListener("pointerenter", (event) => {
    if (event.pointerType === "touch" || figure.dragged) return;
    lit(true);
    showCard(figure, id);
  });
  g.addEventListener("pointerleave", () => { lit(false); hideCard(figure); });
  g.addEventListener("focus", () => {
    if (figure.roving) for (const [name, other] of figure.drawn) other.setAttribute("tabindex", name === id ? "0" : "-1");
    if (!g.matches(":focus-visible")) return;
    lit(true);
    bringIntoView(figure, id);
    showCard(figure, id);
  });
  g.addEventListener("blur", () => { lit(false); hideCard(figure); });
  g.addEventListener("keydown", (event) => onKey(figure, id, event));
  g.addEventListener("click", () => { if (!figure.dragged) choose(figure, figure.chosen === id && figure.letsGo ? null : id); });
}
