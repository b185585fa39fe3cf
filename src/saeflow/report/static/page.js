/* Starts every figure of the page: pointing, clicking, keys. */

addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("securitypolicyviolation", (event) => { document.documentElement.dataset.error = event.violatedDirective; });

/** The neighbour an arrow key leads to: along the best edge, or up and down within a layer. */
function neighbour(figure, id, key) {
  if (key === "ArrowLeft") return bestEnd(figure.into.get(id), "parent");
  if (key === "ArrowRight") return bestEnd(figure.outOf.get(id), "child");
  const layer = id.split("/")[0];
  const column = Array.from(figure.drawn.keys()).filter((name) => name.split("/")[0] === layer);
  column.sort((a, b) => heightOf(figure, a) - heightOf(figure, b));
  return column[column.indexOf(id) + (key === "ArrowUp" ? -1 : 1)];
}

/** The residual stream first, as the path through the layers; else the best module. */
function bestEnd(edges, end) {
  if (!edges) return undefined;
  return (edges.find((edge) => edge[end].split("/")[1] === "res") || edges[0])[end];
}

function heightOf(figure, id) {
  return figure.drawn.get(id).querySelector(".box").y.baseVal.value;
}

function focusNode(figure, id, share = null) {
  figure.drawn.get(id)?.focus({ preventScroll: true });
  bringIntoView(figure, id, share);
}

function onKey(figure, id, event) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(figure, figure.chosen === id ? null : id);
  } else if (event.key.startsWith("Arrow")) {
    const next = neighbour(figure, id, event.key);
    event.preventDefault();
    if (next) focusNode(figure, next);
  }
}

function wireNode(figure, id, g) {
  g.querySelector("title")?.remove();
  g.addEventListener("pointerenter", (event) => { if (event.pointerType !== "touch" && !figure.dragged) showCard(figure, id); });
  g.addEventListener("pointerleave", () => hideCard(figure));
  g.addEventListener("focus", () => {
    if (!g.matches(":focus-visible")) return;
    bringIntoView(figure, id);
    showCard(figure, id);
  });
  g.addEventListener("blur", () => hideCard(figure));
  g.addEventListener("keydown", (event) => onKey(figure, id, event));
  g.addEventListener("click", () => { if (!figure.dragged) choose(figure, figure.chosen === id ? null : id); });
}

/** Ids in tables lead to their nodes. */
function wireTables(figure) {
  for (const link of document.querySelectorAll("a[data-feature]")) {
    link.addEventListener("click", (event) => {
      const id = link.dataset.feature;
      if (!figure.drawn.has(id)) return;
      event.preventDefault();
      figure.root.scrollIntoView({ block: "nearest", behavior: GENTLE.matches ? "auto" : "smooth" });
      focusNode(figure, id, 0.5);
      choose(figure, id);
    });
  }
}

function start(root) {
  const card = make("div", "card");
  card.setAttribute("role", "status");
  card.hidden = true;
  document.body.append(card);
  const figure = readFigure(root, card);
  for (const [id, g] of figure.drawn) wireNode(figure, id, g);
  addTools(figure);
  addOverview(figure);
  dragToPan(figure);
  wheelToZoom(figure);
  wireTables(figure);
  figure.frame.addEventListener("scroll", () => moved(figure), { passive: true });
  addEventListener("scroll", () => { if (figure.shown) placeCard(figure, figure.shown); }, { passive: true });
  addEventListener("resize", () => moved(figure));
  addEventListener("keydown", (event) => { if (event.key === "Escape") { figure.chosen = null; choose(figure, null); } });
  figure.frame.addEventListener("click", (event) => { if (!figure.dragged && !event.target.closest(".node")) choose(figure, null); });
  root.querySelector(".hint").hidden = false;
  open(figure);
  return figure.drawn.size;
}

const drawn = Array.from(document.querySelectorAll("figure.graph"), start);
document.documentElement.dataset.drawn = String(drawn.reduce((a, b) => a + b, 0));
