/* A search box that answers as one types: words or an id. Used for the seed and for the second graph. */
import { get, gaveUp, latest } from "./api.js";
import { visible } from "./report/card.js";
import { debounce, h, percent } from "./dom.js";

const WAIT = 70; // milliseconds after the last letter
let count = 0;

/**
 * Fill `root` with a search box.
 * @param {HTMLElement} root
 * @param {{label: string, placeholder: string, picks: Array, hint: string, choose: function(string): void}} options
 * `picks` are shown while nothing is written: {feature, label, why}; `hint` is the key that leads here.
 */
export function searchBox(root, { label, placeholder, picks = [], hint = "", choose }) {
  const id = `search-${++count}`;
  const box = {
    root, picks, choose, hits: [], at: -1, asked: latest(), shown: "",
    input: h("input", { title: "By words, by id (4/res/123), by row or within a site",
      id, type: "search", role: "combobox", "aria-label": label, placeholder, "aria-expanded": "false",
      "aria-controls": `${id}-list`, "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false", maxlength: "200",
    }),
    list: h("ul", { id: `${id}-list`, role: "listbox", "aria-label": `${label}: results` }),
    foot: h("p", { class: "foot", role: "status" }),
  };
  box.drop = h("div", { class: "drop", hidden: true }, box.list, box.foot);
  root.append(box.input, ...(hint ? [h("kbd", { class: "hint", "aria-hidden": "true" }, hint)] : []), box.drop);
  const look = debounce(() => {
    const said = box.input.value.trim();
    if (!said || said !== box.shown) search(box); // else an arrow key was faster, and its answer is there
  }, WAIT);
  box.input.addEventListener("input", look);
  box.input.addEventListener("focus", () => search(box));
  box.input.addEventListener("keydown", (event) => onKey(box, event));
  root.addEventListener("focusout", (event) => { if (!root.contains(event.relatedTarget)) close(box); });
  box.list.addEventListener("pointerdown", (event) => event.preventDefault());
  return box;
}

async function search(box) {
  const said = box.input.value.trim();
  if (!said) {
    box.asked.stop();
    box.shown = "";
    show(box, box.picks, box.picks.length ? "Worth a look" : "");
    return;
  }
  try {
    const found = await get("/api/search", { q: said, limit: 20 }, box.asked.next());
    if (document.activeElement !== box.input) return;
    const marked = box.shown === said ? box.hits[box.at]?.feature : undefined; // asked again while words are indexed
    box.shown = said;
    const took = `${found.took_ms < 10 ? found.took_ms.toFixed(1) : Math.round(found.took_ms)} ms`;
    const none = `Nothing is called “${said}”. Try fewer letters, another word, or an id such as 4/res/100.`;
    if (found.indexing) setTimeout(() => { if (box.shown === said && document.activeElement === box.input) search(box); }, 700);
    const waits = found.indexing ? ` Words are being indexed: ${found.indexing.done} of ${found.indexing.total} sites.` : "";
    show(box, found.hits, found.hits.length ? `${found.hits.length} ${found.hits.length === 1 ? "feature" : "features"}, ${took}.${waits}` : waits || none);
    if (marked) mark(box, found.hits.findIndex((hit) => hit.feature === marked), false);
  } catch (error) {
    if (!gaveUp(error)) show(box, [], `${error.message} ${error.todo ?? ""}`);
  }
}

function show(box, hits, foot) {
  box.hits = hits;
  box.at = -1;
  const most = Math.max(...hits.map((hit) => hit.frequency ?? 0), 1e-9);
  box.list.replaceChildren(...hits.map((hit, i) => option(box, hit, i, most)));
  box.foot.textContent = foot;
  box.drop.hidden = !hits.length && !foot;
  box.input.setAttribute("aria-expanded", String(hits.length > 0));
  box.input.removeAttribute("aria-activedescendant");
}

/** A result: its id, its words, and how often it fires as a bar on a scale of powers of ten. */
function option(box, hit, i, most) {
  const words = hit.label || (hit.tokens ?? []).slice(0, 5).map(visible).join("  ") || "no words known";
  const item = h("li", { id: `${box.list.id}-${i}`, role: "option", "aria-selected": "false" },
    h("span", { class: "id" }, hit.feature),
    h("span", { class: "words" }, words),
    hit.why ? h("span", { class: "why" }, hit.why) : tokensOf(hit),
    activity(hit.frequency, most));
  item.addEventListener("click", () => pick(box, i));
  item.addEventListener("pointermove", () => mark(box, i, false));
  return item;
}

function tokensOf(hit) {
  if (!hit.label || !hit.tokens?.length) return null;
  const said = hit.tokens.slice(0, 4).map((token) => token.trim()).join(", ");
  return said === hit.label ? null : h("span", { class: "why" }, hit.tokens.slice(0, 5).map(visible).join(" "));
}

function activity(frequency, most) {
  if (frequency === null || frequency === undefined) return h("span", { class: "activity none" });
  const share = frequency > 0 ? Math.max(0.06, 1 + Math.log10(frequency / most) / 4) : 0;
  const bar = h("i");
  bar.style.width = `${100 * Math.min(1, share)}%`;
  return h("span", { class: "activity", title: `fires on ${percent(frequency)} of all tokens` }, bar,
    h("span", { class: "unseen" }, `fires on ${percent(frequency)} of all tokens`));
}

function mark(box, i, scroll = true) {
  box.list.children[box.at]?.setAttribute("aria-selected", "false");
  box.at = i;
  const item = box.list.children[i];
  if (!item) return; // also for -1: what was marked is no longer found
  item.setAttribute("aria-selected", "true");
  box.input.setAttribute("aria-activedescendant", item.id);
  if (scroll) item.scrollIntoView({ block: "nearest" });
}

function pick(box, i) {
  const hit = box.hits[i];
  if (!hit) return;
  box.input.value = "";
  close(box);
  box.input.blur();
  box.choose(hit.feature);
}

function close(box) {
  box.asked.stop();
  box.drop.hidden = true;
  box.input.setAttribute("aria-expanded", "false");
  box.input.removeAttribute("aria-activedescendant");
}

/** Wait until what is shown is of what is written; a search that begins meanwhile gives up the one before. */
async function caughtUp(box) {
  for (let i = 0; i < 3 && box.input.value.trim() !== box.shown; i++) await search(box);
  return box.input.value.trim() === box.shown;
}

async function onKey(box, event) {
  // Someone who types and goes on at once is faster than the answer: what is there is of fewer letters.
  const stale = box.input.value.trim() !== box.shown;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (stale) await caughtUp(box);
    const n = box.hits.length;
    if (n) mark(box, event.key === "ArrowDown" ? (box.at + 1) % n : (Math.max(box.at, 0) - 1 + n) % n);
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (!stale || (await caughtUp(box))) pick(box, Math.max(box.at, 0));
  } else if (event.key === "Escape") {
    event.stopPropagation();
    if (box.drop.hidden) box.input.blur();
    event.preventDefault();
    box.input.value = "";
    close(box);
  }
}
