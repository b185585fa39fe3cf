/* What happened at a token of a text: the graph of the prompt, where it is cut, and what was measured of a node. */
import { gaveUp, latest, post, postForFile } from "./api.js";
import { $, all, announce, debounce, digits, h, parseId, problem, refill, save } from "./dom.js";
import { readFeature } from "./panel.js";
import { inPassage, visible } from "./report/card.js";
import { bringIntoView, choose, createFigure, hideCard, open as showAll, setPicture, setScale } from "./report/figure.js";
import { focusNode, wireNode } from "./report/keys.js";
import * as state from "./state.js";

const CUTS = [
  ["effect", "effect", 0.1, 0, "an edge stays from this effect on, either way: the share of the child that goes with the parent"],
  ["cosine", "cosine", -1, -1, "an edge between features stays from this cosine on"],
  ["share", "share", -1, -1, "a feature stays from this share of its site's reconstruction on"],
];
const TOKENS_BEFORE = 8;
const BESIDE = 12; // tokens of the text shown on either side

/** A sheet that is hidden until the address names a token (`at`), and then stands in the place of `grid`. */
export function traceSheet(grid, info) {
  const asking = latest();
  const title = h("h2", { id: "trace-title", tabindex: "-1" });
  const passage = h("p", { class: "trace-passage" });
  const status = h("p", { class: "status", role: "status" });
  const shut = h("button", { type: "button", class: "quiet small", "aria-label": "Back to all tokens" }, "← all tokens");
  const cuts = CUTS.map((cut) => slider(...cut, () => ask()));
  const asked = debounce(() => ask(), 400);
  const before = h("input", { type: "number", id: "trace-before", min: 0, max: TOKENS_BEFORE, step: 1, value: 0 });
  const target = h("input", { type: "text", id: "trace-target", maxlength: 60, placeholder: "most likely", spellcheck: "false" });
  const against = h("input", { type: "text", id: "trace-against", maxlength: 60, placeholder: "mean of all", spellcheck: "false" });
  for (const input of [before, target, against]) input.addEventListener("input", asked);
  const exports = exportMenu(info.formats, async (format) => {
    try {
      const { name, data } = await postForFile("/api/trace/export", { ...values(), format });
      save(name, data);
    } catch (error) {
      wrong.replaceChildren(problem(error));
    }
  });
  const form = h("form", { class: "controls open trace-cuts", autocomplete: "off", "aria-label": "What the graph of the token shows" }, ...cuts.map((cut) => cut.root),
    field(before, "tokens before", "tokens before it that are traced too, and followed through attention"),
    field(target, "target", "the token whose logit is explained; most tokens begin with a space"),
    field(against, "against", "a token whose logit is taken off the target's"));
  const legend = h("div", { class: "legend" });
  const frame = h("div", { class: "frame", id: "trace-frame" });
  const root = h("figure", { class: "graph", id: "trace-figure" },
    h("div", { class: "bar" }, legend, h("div", { class: "tools", role: "toolbar", "aria-label": "Zoom", hidden: true })),
    frame, h("div", { class: "overview", hidden: true }));
  const wrong = h("div", { class: "trace-problem" });
  const told = h("p", { class: "told" });
  const measured = h("section", { class: "measured", "aria-label": "What was measured of the node", tabindex: "-1" });
  const side = h("div", { class: "trace-side" }, measured);
  const sheet = h("section", { class: "sheet trace-sheet", "aria-labelledby": "trace-title", hidden: true },
    h("header", { class: "row" }, title, passage, status, exports, shut), form,
    h("div", { class: "stage" }, h("div", { class: "picture" }, wrong, root, told), side));
  form.addEventListener("submit", (event) => event.preventDefault());
  shut.addEventListener("click", () => state.update({ at: null }, { push: true }));

  let now = null; // the text, the token and its name
  let kept = { pins: new Set(), groups: new Map() };
  let shown = "";
  let answer = null;
  const figure = createFigure(root, $("#tip"), {
    fill: fillTip, pins: false, letsGo: false, followsPointer: true, roving: true,
    onChoose: (id) => { if (id) read(id); },
    tall: () => frame.clientHeight,
  });

  function values() {
    const held = Math.max(0, Math.min(TOKENS_BEFORE, now.token, Math.round(Number(before.value)) || 0));
    return { text: now.text, token: now.token, before: held, target: target.value, against: against.value,
      ...Object.fromEntries(cuts.map((cut) => [cut.key, cut.value()])), pins: [...kept.pins], groups: Object.fromEntries([...kept.groups].map(([name, nodes]) => [name, [...nodes]])) };
  }

  async function ask() {
    if (!now) return;
    const wanted = values();
    const key = JSON.stringify(wanted);
    if (key === shown) return;
    shown = key;
    status.textContent = "Removing every active feature…";
    status.classList.add("at-work");
    root.setAttribute("aria-busy", "true");
    try {
      answer = await post("/api/trace", wanted, asking.next());
      wrong.replaceChildren();
      root.classList.remove("stale");
      draw();
    } catch (error) {
      if (gaveUp(error)) return;
      shown = "";
      wrong.replaceChildren(problem(error));
      root.classList.toggle("stale", Boolean(answer));
    }
    status.textContent = "";
    status.classList.remove("at-work");
    root.removeAttribute("aria-busy");
  }

  function draw() {
    const first = !figure.svg?.isConnected;
    const was = figure.chosen;
    const focused = frame.contains(document.activeElement);
    const picture = document.importNode(new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement, true);
    frame.replaceChildren(picture);
    legend.replaceChildren(...new DOMParser().parseFromString(answer.legend, "text/html").body.children);
    setPicture(figure, picture, answer.data);
    for (const [id, g] of figure.drawn) {
      wireNode(figure, id, g);
      g.setAttribute("tabindex", id === answer.data.seed ? "0" : "-1");
      g.classList.toggle("planned", kept.pins.has(nodeOf(id)));
    }
    const wires = all("path.wire", picture);
    answer.data.edges.forEach((edge) => {
      const wire = wires.find((path) => path.dataset.parent === edge.parent && path.dataset.child === edge.child);
      if (wire) wireEdge(figure, wire, edge);
    });
    if (first) showAll(figure);
    else setScale(figure, figure.scale);
    refill(told, ...Object.entries(answer.facts).map(([name, value]) => h("span", {}, `${name} ${value}`)), h("span", { class: "took" }, `${Math.round(answer.took_ms)} ms`),
      ...answer.notes.map((note) => h("span", {}, note)));
    const next = figure.drawn.has(was) ? was : answer.data.seed;
    choose(figure, next);
    if (focused) focusNode(figure, next);
    announce(`What happened at token ${now.token}: ${Object.entries(answer.facts).map(([name, value]) => `${name} ${value}`).join(", ")}.`);
  }

  /** The node of the graph that a box is: its id has the token where several are traced. */
  function nodeOf(id) {
    return id.includes("@") ? id : `${id}@${now.token}`;
  }

  /** What was measured of a node, and the card of a feature. */
  function read(id) {
    const node = figure.nodes.get(id);
    const panel = $("#panel");
    const held = measured.dataset.node === nodeOf(id) ? $(".acts :focus", measured) : null;
    const typing = held?.localName === "input" ? held : null;
    const caret = [typing?.selectionStart, typing?.selectionEnd];
    measured.dataset.node = nodeOf(id);
    const pin = h("button", { type: "button", "aria-pressed": String(kept.pins.has(nodeOf(id))) }, kept.pins.has(nodeOf(id)) ? "Pinned ✓" : "Pin");
    pin.title = "A pinned node stays wherever the graph is cut";
    pin.addEventListener("click", () => {
      if (!kept.pins.delete(nodeOf(id))) kept.pins.add(nodeOf(id));
      ask();
      read(id);
    });
    const mine = [...kept.groups].find(([, nodes]) => nodes.has(nodeOf(id)))?.[0] ?? "";
    const names = h("datalist", { id: "trace-groups" }, ...[...kept.groups.keys()].map((name) => h("option", { value: name })));
    const group = h("input", { type: "text", maxlength: 60, value: typing?.value ?? mine, placeholder: "group…", list: "trace-groups", "aria-label": "Group of this node", title: "Nodes of one group are one supernode in exports" });
    group.addEventListener("input", () => { // at every key: the panel may be made anew while a name is being typed
      for (const [name, nodes] of kept.groups) if (nodes.delete(nodeOf(id)) && !nodes.size) kept.groups.delete(name);
      const name = group.value.trim();
      if (name) kept.groups.set(name, (kept.groups.get(name) ?? new Set()).add(nodeOf(id)));
    });
    group.addEventListener("keydown", (event) => { if (event.key === "Enter") ask(); });
    group.addEventListener("blur", () => { if (group.isConnected) ask(); });
    const feature = parseId(id.split("@")[0]) ? id.split("@")[0] : null;
    refill(measured,
      h("header", {}, h("p", { class: "where" }, h("span", { class: "id" }, id), h("span", {}, feature ? `at token ${nodeOf(id).split("@")[1]}` : node.kind)),
        feature ? null : h("h2", {}, node.words?.label ?? ""), h("p", { class: "case" }, `${node.sentence}.`),
        h("div", { class: "acts" }, pin, node.kind === "logit" ? null : group, names)),
      edgeTable("from", "parent", figure.into.get(id)), edgeTable("to", "child", figure.outOf.get(id)));
    panel.hidden = !feature;
    if (held) {
      const again = $(`.acts ${held.localName}`, measured);
      again.focus();
      if (typing) again.setSelectionRange(...caret);
    } else side.scrollTop = 0;
    if (feature) readFeature(feature, answer);
  }

  function edgeTable(name, end, edges) {
    if (!edges?.length) return null;
    const onto = edges.every((edge) => edge.direct !== null); // a logit has a direct path, and no cosine
    const rows = edges.map((edge) => {
      const label = figure.nodes.get(edge[end])?.words?.label;
      const go = h("button", { type: "button", class: "quiet", title: sayings(edge).join(", ") }, h("span", { class: "id" }, edge[end].replace(/^logit.*/, "")), label ? ` ${label}` : "");
      go.addEventListener("click", () => { choose(figure, edge[end]); bringIntoView(figure, edge[end]); });
      return h("tr", { class: edge.named === false ? "unnamed" : "" }, h("th", { scope: "row" }, go), ...[edge.effect, edge.control, onto ? edge.direct : edge.score].map((value) => h("td", {}, digits(value))));
    });
    return h("table", { class: "edges" }, h("thead", {}, h("tr", {}, ...[name, "effect", "control", onto ? "direct" : "cosine"].map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, ...rows));
  }

  /** The one panel of features stands where it is read. */
  function placePanel() {
    const panel = $("#panel");
    const here = state.view() === "text" && !sheet.hidden;
    const home = here ? side : $("#flow .stage");
    if (panel.parentElement === home) return;
    home.append(panel);
    panel.hidden = false;
    if (here && figure.chosen) read(figure.chosen);
  }

  state.subscribe(placePanel);
  return {
    root: sheet,
    /** Show the token that the address names, of a text that was read; or the grid. */
    sync(text, tokens) {
      const at = state.value("at");
      const token = Number(at);
      const there = at !== "" && Number.isInteger(token) && tokens?.[token];
      sheet.hidden = !there;
      grid.hidden = grid.previousElementSibling.hidden = Boolean(there); // the grid, and the text that was read
      if (!there) {
        now = null;
        placePanel();
        return;
      }
      if (now?.text !== text || now.token !== token) {
        now = { text, token };
        kept = { pins: new Set(), groups: new Map() };
        shown = "";
        figure.chosen = null;
        frame.replaceChildren();
        measured.replaceChildren();
        title.replaceChildren("What happened at token ", `${token} `, h("span", { class: "token" }, visible(tokens[token].text)));
        refill(passage, token > BESIDE ? "…" : "", ...tokens.slice(Math.max(0, token - BESIDE), token + BESIDE).map((one, place) => {
          const text = inPassage(one.text, false);
          return place === Math.min(token, BESIDE) ? h("b", {}, text) : text;
        }), token + BESIDE < tokens.length ? "…" : "");
        title.focus({ preventScroll: true });
      }
      placePanel();
      ask();
    },
  };

  /** The card beside a node that one points at. */
  function fillTip(card, its, node) {
    const text = node.words?.label || (node.words?.tokens ?? []).slice(0, 6).map(visible).join(" ");
    card.replaceChildren(h("div", { class: "top" }, h("span", { class: "id" }, node.feature), h("span", {}, node.kind)),
      h("p", { class: "said" }, text || "no words known"), h("p", { class: "near" }, node.sentence));
  }
}

/** What was measured of an edge, and what the weights say of it. */
function sayings(edge) {
  const control = edge.control === null ? "" : ` (control ${digits(edge.control)})`;
  const named = edge.named === null ? edge.link : edge.named ? `match ${edge.rank + 1}` : "not named by matching";
  return [`effect ${digits(edge.effect)}${control}`, edge.direct === null ? "" : `direct path ${digits(edge.direct)}`, edge.score === null ? "" : `cosine ${digits(edge.score)}`, named].filter(Boolean);
}

/** An edge says its numbers under the pointer; a wide stroke over it is easy to hit. */
function wireEdge(figure, wire, edge) {
  $("title", wire)?.remove();
  const hit = wire.cloneNode(false);
  for (const name of ["data-parent", "data-child", "stroke-dasharray"]) hit.removeAttribute(name);
  for (const [name, value] of Object.entries({ class: "hit", stroke: "transparent", "stroke-width": 12, "stroke-opacity": 1 })) hit.setAttribute(name, value);
  wire.after(hit);
  const { card } = figure;
  const follow = (event) => {
    card.style.maxHeight = "";
    card.style.left = `${Math.max(8, Math.min(event.clientX + 14, document.documentElement.clientWidth - card.offsetWidth - 8))}px`;
    card.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - card.offsetHeight - 8))}px`;
  };
  hit.addEventListener("pointerenter", (event) => {
    wire.classList.add("pointed");
    card.replaceChildren(h("div", { class: "top" }, h("span", { class: "id" }, `${edge.parent} → ${edge.child}`)), ...sayings(edge).map((line) => h("p", { class: "near" }, line)));
    card.hidden = false;
    follow(event);
  });
  hit.addEventListener("pointermove", follow);
  hit.addEventListener("pointerleave", () => { wire.classList.remove("pointed"); hideCard(figure); });
}

function field(input, name, why) {
  return h("div", { class: "field", title: why }, h("label", { for: input.id }, name), input);
}

function exportMenu(formats, write) {
  const menu = h("details", { class: "menu" }, h("summary", {}, "Save as"), h("ul", {}, ...formats.map((format) => {
    const button = h("button", { type: "button", class: "quiet" }, format);
    button.addEventListener("click", () => { menu.open = false; write(format); });
    return h("li", {}, button);
  })));
  menu.addEventListener("keydown", (event) => { if (event.key === "Escape") menu.open = false; });
  menu.addEventListener("focusout", (event) => { if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false; });
  addEventListener("pointerdown", (event) => { if (!menu.contains(event.target)) menu.open = false; });
  return menu;
}

function slider(key, name, otherwise, min, why, changed) {
  const id = `trace-${key}`;
  const range = h("input", { type: "range", id, min, max: 1, step: 0.01, value: otherwise });
  const number = h("input", { type: "number", id: `${id}-number`, min, max: 1, step: 0.01, value: otherwise, "aria-label": `${name}, as a number` });
  const fill = () => range.style.setProperty("--at", `${(100 * (Number(range.value) - min)) / (1 - min)}%`);
  const put = debounce(changed, 150);
  range.addEventListener("input", () => { number.value = Number(range.value).toFixed(2); fill(); put(); });
  number.addEventListener("input", () => { range.value = number.value; fill(); put(); });
  fill();
  return { key, root: h("div", { class: "slider", title: why }, h("label", { for: id }, name), range, number), value: () => Number(range.value) };
}
