/* The page of a results folder: one figure of several at a time, tables that sort, where one is. */

addEventListener("error", (event) => { document.documentElement.dataset.error = event.message; });
addEventListener("securitypolicyviolation", (event) => { document.documentElement.dataset.error = event.violatedDirective; });

/** Show one plate of a figure, chosen by the buttons above it. */
function choosePlate(root, plates, buttons, chosen) {
  plates.forEach((plate, i) => { plate.hidden = i !== chosen; });
  buttons.forEach((button, i) => {
    button.setAttribute("aria-selected", String(i === chosen));
    button.tabIndex = i === chosen ? 0 : -1;
  });
}

function addTabs(root) {
  const plates = Array.from(root.querySelectorAll(".plate"));
  if (plates.length < 2) return;
  const bar = document.createElement("div");
  bar.className = "tabs";
  bar.setAttribute("role", "tablist");
  const buttons = plates.map((plate, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = plate.dataset.of;
    button.setAttribute("role", "tab");
    button.addEventListener("click", () => choosePlate(root, plates, buttons, i));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = (i + step + plates.length) % plates.length;
      choosePlate(root, plates, buttons, next);
      buttons[next].focus();
    });
    plate.setAttribute("role", "tabpanel");
    plate.setAttribute("aria-label", plate.dataset.of);
    return button;
  });
  bar.append(...buttons);
  root.before(bar);
  root.classList.add("tabbed");
  choosePlate(root, plates, buttons, 0);
}

/** What a cell sorts by: its full number, or its words. */
function sortKey(cell) {
  if (!cell.classList.contains("number")) return cell.textContent;
  return Number(cell.dataset.value ?? cell.textContent);
}

/** Gaps last, numbers before words, as people would order them. */
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
}

function sortBy(table, heads, column) {
  const head = heads[column];
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => [sortKey(row.cells[column]), row]);
  rows.sort(([a], [b]) => (down && a !== "" && b !== "" ? compare(b, a) : compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

function makeSortable(table) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    if (table.tBodies[0].querySelector(`td.number:nth-child(${column + 1})`)) head.classList.add("number");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sortBy(table, heads, column));
    head.replaceChildren(button);
  });
}

/** Mark the section one reads in the list of sections. */
function followReading() {
  const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -75% 0px" });
  for (const id of links.keys()) {
    const section = document.getElementById(id);
    if (section) seen.observe(section);
  }
}

for (const root of document.querySelectorAll(".plates")) addTabs(root);
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
followReading();
document.documentElement.dataset.figures = String(document.querySelectorAll("svg.plot").length);
