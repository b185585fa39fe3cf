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

function addTabs(root, plates) {
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

/* Figures of themes and directions: one choice for the whole page, made above any of them. */
const PICKED = ["theme", "direction"];
const MOST_BUTTONS = 3;
const choice = {};
const pickers = [];

/** The values of each key that differ among these plates, in the order they come. */
function differing(plates) {
  const keys = PICKED.map((key) => [key, Array.from(new Set(plates.map((plate) => plate.dataset[key] ?? "")))]);
  return keys.filter(([, values]) => values.length > 1);
}

function pick(key, value) {
  choice[key] = value;
  for (const show of pickers) show();
}

/** Buttons for a few values, a list for many; returns the control and how it shows what is chosen. */
function makeControl(key, values) {
  if (values.length > MOST_BUTTONS) {
    const list = document.createElement("select");
    list.append(...values.map((value) => new Option(value, value)));
    list.addEventListener("change", () => pick(key, list.value));
    return [[list], () => { list.value = choice[key]; }];
  }
  const buttons = values.map((value) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = value;
    button.addEventListener("click", () => pick(key, value));
    return button;
  });
  return [buttons, () => { for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === choice[key])); }];
}

/** Show the plate that is chosen, and say so where there is none. */
function addPicker(root, plates) {
  const bar = document.createElement("div");
  bar.className = "picker";
  const keys = differing(plates);
  const shows = keys.map(([key, values]) => {
    choice[key] ??= values[0];
    const [controls, show] = makeControl(key, values);
    const group = document.createElement(controls.length > 1 ? "span" : "label");
    group.className = "of-key";
    const name = document.createElement("span");
    name.textContent = key;
    if (controls.length > 1) { group.setAttribute("role", "group"); group.setAttribute("aria-label", key); }
    group.append(name, ...controls);
    bar.append(group);
    return show;
  });
  const none = document.createElement("p");
  none.className = "none notice";
  none.setAttribute("role", "status");
  none.hidden = true;
  root.before(bar);
  root.append(none);
  root.classList.add("tabbed");
  pickers.push(() => {
    for (const show of shows) show();
    const fits = (plate) => keys.every(([key]) => plate.dataset[key] === choice[key]);
    for (const plate of plates) plate.hidden = !fits(plate);
    none.hidden = plates.some(fits);
    none.textContent = none.hidden ? "" : `Nothing was measured for ${keys.map(([key]) => choice[key]).join(", ")}.`;
  });
  pickers.at(-1)();
}

/** A way to choose among the plates of a figure, where it has several. */
function addChoice(root) {
  const plates = Array.from(root.querySelectorAll(":scope > .plate"));
  if (plates.length < 2) return;
  if (differing(plates).length) addPicker(root, plates);
  else addTabs(root, plates);
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

for (const root of document.querySelectorAll(".plates")) addChoice(root);
for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
followReading();
document.documentElement.dataset.figures = String(document.querySelectorAll("svg.plot").length);
