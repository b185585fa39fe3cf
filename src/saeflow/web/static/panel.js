/* The panel of a feature: what it stands for, where it comes from and goes to. */
import { gaveUp, get, latest, published } from "./api.js";
import { GROUPS, shareOf } from "./colours.js";
import { $, all, announce, digits, h, parseId, percent, problem, pValue, refill } from "./dom.js";
import { seedAt, theFigure, toggleExpanded } from "./flow.js";
import { planned, togglePlanned } from "./picked.js";
import { histogram, passages, scoreBars, tokenList, unknown, visible } from "./report/card.js";
import { bringIntoView } from "./report/figure.js";
import * as state from "./state.js";

const PLACES = { res: "residual stream after layer", mlp: "MLP output of layer", att: "attention output of layer" };
const PARTS = { res: "residual stream", mlp: "MLP", att: "attention" };
const KINDS = { shared: "a close counterpart", related: "something related", only: "nothing like it beyond chance" };
const asking = latest();
const known = new Map();
let shown = "";

/** Show a feature; `answer` is the graph around it, whose cuts its scores are compared with. */
export async function readFeature(id, answer) {
  const cuts = answer.data.thresholds;
  // The case of a feature depends on what counts as high; nothing else of the card does.
  const asked = { id, ...(cuts.fdr === null ? { high: cuts.high } : { fdr: cuts.fdr }) };
  const key = `${JSON.stringify(asked)} ${cuts.res} ${cuts.mlp} ${cuts.att}`;
  if (key === shown) {
    refreshButtons(id);
    return;
  }
  shown = key;
  const had = known.get(JSON.stringify(asked));
  if (had) {
    fill(had, cuts);
    return;
  }
  const panel = $("#panel");
  panel.setAttribute("aria-busy", "true");
  if (!panel.childElementCount) panel.replaceChildren(skeleton(id));
  try {
    const feature = await get("/api/feature", asked, asking.next());
    if (known.size > 300) known.clear();
    known.set(JSON.stringify(asked), feature);
    fill(feature, cuts);
  } catch (error) {
    if (gaveUp(error)) return;
    shown = "";
    panel.replaceChildren(h("p", { class: "id" }, id), problem(error));
  }
  panel.removeAttribute("aria-busy");
}

function skeleton(id) {
  return h("div", { class: "skeleton" }, h("p", { class: "id" }, id), h("i"), h("i"), h("i"));
}

function fill(feature, cuts) {
  const id = feature.feature;
  const { layer, part } = parseId(id);
  const panel = $("#panel");
  panel.removeAttribute("aria-busy");
  refill(panel,
    h("header", {}, h("p", { class: "where" }, h("span", { class: "id" }, id), h("span", {}, `${PLACES[part]} ${layer}`)),
      h("h2", {}, feature.label || (feature.tokens ?? []).slice(0, 4).map(visible).join(" ") || "no words known"),
      madeBy(feature), buttons(id)),
    section(passages(feature)),
    section(histogram(feature)),
    section(tokenList(fires(feature), feature.tokens), tokenList("Promotes (logit lens)", feature.promotes), tokenList("Suppresses (logit lens)", feature.suppresses)),
    origin(feature, cuts),
    groups(feature.groups),
    neighbours("Predecessors", feature.predecessors),
    neighbours("Successors", feature.successors),
    neighbours("Near it in its dictionary", { near: feature.near }),
    counterparts(feature.counterparts),
    section(unknown(feature)),
    links(feature.links),
  );
  panel.scrollTop = 0;
  refreshButtons(id);
  announce(`Panel: ${id}, ${feature.label || "no words known"}.`);
}

function section(...parts) {
  const root = h("section", {}, ...parts);
  return root.childElementCount ? root : null;
}

function madeBy(feature) {
  const said = [feature.by ? `label by ${feature.by}` : "", feature.score === null || feature.score === undefined ? "" : `score ${digits(feature.score)}`];
  const text = said.filter(Boolean).join(", ");
  return text ? h("p", { class: "by" }, text) : null;
}

function fires(feature) {
  const rate = feature.frequency;
  return rate === null || rate === undefined ? "Fires on" : `Fires on (${percent(rate)} of all tokens)`;
}

function buttons(id) {
  const plan = h("button", { type: "button", "data-act": "plan", title: "Pick it for the steering plan, or take it out (p)" });
  plan.addEventListener("click", () => { togglePlanned(id); refreshButtons(id); });
  const seed = h("button", { type: "button", "data-act": "seed", title: "Make it the seed of the graph (g)" }, "Its graph");
  seed.addEventListener("click", () => seedAt(id));
  const more = h("button", { type: "button", "data-act": "expand", title: "Add its next matches to the graph, or take them away (e)" });
  more.addEventListener("click", () => toggleExpanded(id));
  return h("div", { class: "acts" }, published ? null : plan, seed, more);
}

/** What the buttons would do now. */
function refreshButtons(id) {
  const there = planned().has(id);
  for (const button of all("#panel [data-act]")) {
    if (button.dataset.act === "plan") {
      button.textContent = there ? "In plan ✓" : "Add to plan";
      button.setAttribute("aria-pressed", String(there));
    } else if (button.dataset.act === "seed") {
      button.disabled = state.value("feature") === id && !state.value("b");
    } else {
      const open = state.list("expand").includes(id);
      button.textContent = open ? "Fold" : "Expand";
      button.setAttribute("aria-pressed", String(open));
    }
  }
}

/** The case, in the graph's own words, and the scores beside their cuts. */
function origin(feature, cuts) {
  if (!feature.scores) return section(h("p", { class: "muted" }, "A module writes it: matching rows does not look inside modules."));
  const { evolution } = feature;
  const line = evolution ? h("p", { class: "case" }, h("b", { class: `case-${evolution.name}` }, `${evolution.case} ${evolution.name}. `), evolution.sentence)
    : feature.site.endsWith("/res") ? h("p", { class: "case" }, "Not matched to the residual stream of a layer below.") : null;
  return section(line, scoreBars({ feature: feature.feature, scores: feature.scores, p: feature.p ?? null }, cuts));
}

/** Which predecessors were active with it, as shares of its tokens with their intervals. */
function groups(found) {
  if (!found) return null;
  const rows = GROUPS.map(([name], i) => [name, i, found.shares[name]]).filter(([, , share]) => share && shareOf(share) > 0);
  rows.sort((a, b) => shareOf(b[2]) - shareOf(a[2]));
  return section(h("h3", {}, `Origins: ${found.n} times seen, in ${found.texts} texts`), h("div", { class: "groups" }, ...rows.map(([name, i, share]) => groupRow(name, i, share))));
}

function groupRow(name, i, share) {
  const bar = h("span", { class: `bar-fill group-${i}` });
  bar.style.width = `${100 * shareOf(share)}%`;
  const track = h("span", { class: "track" }, bar);
  if (share.low !== undefined && share.low !== null) {
    const whisker = h("span", { class: "whisker" });
    whisker.style.left = `${100 * share.low}%`;
    whisker.style.width = `${100 * Math.max(0, share.high - share.low)}%`;
    track.append(whisker);
    track.title = `95% interval ${percent(share.low)} to ${percent(share.high)}`;
  }
  return h("div", { class: "group" }, h("span", { class: "name" }, name), track, h("span", { class: "value" }, percent(shareOf(share))));
}

function neighbours(title, found) {
  const parts = Object.entries(found ?? {}).filter(([, rows]) => rows?.length);
  if (!parts.length) return null;
  const root = h("section", { class: "neighbours" }, h("h3", {}, title));
  for (const [part, rows] of parts) {
    root.append(PARTS[part] ? h("h4", {}, PARTS[part]) : h("p", { class: "muted small" }, "cosine of decoder rows"), h("ul", {}, ...rows.map((row) => h("li", {}, neighbour(row)))));
  }
  return root;
}

/** Goes to the node where it is in the graph, else to its own graph. */
function neighbour(row) {
  const bar = h("i");
  bar.style.width = `${100 * Math.max(0, Math.min(1, row.score))}%`;
  const inGraph = theFigure().drawn?.has(row.feature);
  const button = h("button", { type: "button", class: inGraph ? "near in" : "near", title: `cosine ${digits(row.score)}; ${inGraph ? "in this graph" : "opens its own graph"}` },
    h("span", { class: "id" }, row.feature), h("span", { class: "words" }, row.label || "no words known"),
    h("span", { class: "score-bar", "aria-hidden": "true" }, bar), h("span", { class: "value" }, digits(row.score)), row.p === null || row.p === undefined ? null : h("span", { class: "p" }, pValue(row.p)));
  button.addEventListener("click", () => {
    if (theFigure().drawn?.has(row.feature)) {
      state.update({ node: row.feature }, { push: true });
      bringIntoView(theFigure(), row.feature);
      $("#panel").focus({ preventScroll: true });
    } else seedAt(row.feature);
  });
  return button;
}

/** Its matches in the dictionaries it was compared with; a published site has them. */
function counterparts(found) {
  if (!found?.length) return null;
  return section(h("h3", {}, "In other dictionaries"), ...found.flatMap(({ in: dictionary, kind, feature, label, score, p, partner, partner_score: pair, result }) => [
    h("h4", {}, h("a", { href: state.address("results", { result }), title: "Opens the comparison" }, dictionary), `: ${KINDS[kind]}`),
    h("p", {}, h("span", { class: "id" }, feature), ` ${label || "no words known"}`),
    h("p", { class: "muted small" }, `cosine ${digits(score)}, ${pValue(p)}, `, partner === null ? "no partner one to one" : partner === feature ? "its partner one to one" : `partner one to one: ${partner}, cosine ${digits(pair)}`),
  ]));
}

function links(found) {
  if (!found?.length) return null;
  return section(h("h3", {}, "Elsewhere"), ...found.map((link) => h("p", {}, h("a", { href: /^https?:/.test(link.url) ? link.url : null, target: "_blank", rel: "noreferrer noopener" }, `${link.title} ↗`))));
}
