/* Starts every figure of the page. */

addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("securitypolicyviolation", (event) => { document.documentElement.dataset.error = event.violatedDirective; });

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
  const figure = createFigure(root, card);
  setPicture(figure, root.querySelector("svg.flow"), JSON.parse(root.querySelector('script[type="application/json"]').textContent));
  for (const [id, g] of figure.drawn) wireNode(figure, id, g);
  wireTables(figure);
  addEventListener("keydown", (event) => { if (event.key === "Escape") choose(figure, null); });
  root.querySelector(".hint").hidden = false;
  open(figure);
  return figure.drawn.size;
}

const drawn = Array.from(document.querySelectorAll("figure.graph"), start);
document.documentElement.dataset.drawn = String(drawn.reduce((a, b) => a + b, 0));
