/* The card of a feature: what is known of it, built from JSON with textContent only. */

const SIGNS = { " ": "␣", "\n": "⏎", "\r": "␍", "\t": "⇥", "\u00a0": "⍽" };
const PLACES = { res: "residual stream after layer", mlp: "MLP output of layer", att: "attention output of layer" };

/** A new element with a class and text. */
export function make(tag, kind = "", text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text) element.textContent = text;
  return element;
}

/** A character that shows: signs for whitespace, code points for what cannot be seen. */
export function sign(char) {
  if (SIGNS[char]) return SIGNS[char];
  return /[\p{Cc}\p{Cf}\p{Cs}]/u.test(char) ? `⟨${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩` : char;
}

/** A token alone: all of its whitespace shows. */
export function visible(token) {
  return Array.from(token, sign).join("");
}

/** A token within a passage: blanks stay blanks, line breaks show and stay where they fire. */
export function inPassage(token, fires) {
  if (fires && token.trim() === "") return visible(token);
  return Array.from(token, (char) => (char === " " ? char : sign(char))).join("");
}

export function tokenList(title, tokens) {
  const part = document.createDocumentFragment();
  if (!tokens || !tokens.length) return part;
  part.append(make("h4", "", title));
  const list = make("p", "tokens");
  for (const token of tokens.slice(0, 12)) list.append(make("span", "token", visible(token)));
  part.append(list);
  return part;
}

/** The passages of a feature: its strongest, and some from strong to weak where its words have them. */
export function passages(words, most = 4) {
  const part = document.createDocumentFragment();
  const groups = [["Strongest passages, shaded by activation", (words.contexts || []).slice(0, most)], ["From strong to weak, by quantile", words.spread || []]];
  const strongest = Math.max(...groups.flatMap(([, found]) => found.flatMap((context) => context.values)), 1e-9);
  for (const [title, found] of groups) {
    if (!found.length) continue;
    part.append(make("h4", "", title), ...found.map((context) => passage(context, strongest)));
  }
  return part;
}

/** Every token shaded by the activation on it, with its value when pointed at. */
function passage(context, strongest) {
  const line = make("p", "context");
  context.tokens.forEach((token, i) => {
    const value = context.values[i] || 0;
    const shown = inPassage(token, value > 0);
    const lead = shown.length - shown.trimStart().length; // a line may break there, and shade is not to hang before it
    const span = make("span", "", shown.slice(lead));
    if (value > 0) span.style.setProperty("--heat-share", Math.min(1, value / strongest).toFixed(3));
    span.title = value > 0 ? `activation ${Number(value.toPrecision(3))}` : "silent here";
    line.append(i ? shown.slice(0, lead) : "", span);
  });
  const known = context.quantile !== null && context.quantile !== undefined;
  const told = make("span", "source", [known ? context.quantile.toFixed(2) : "", context.source].filter(Boolean).join(" · "));
  if (known) told.title = `Stronger than ${percent(context.quantile)} of its activations`;
  if (told.textContent) line.append(told);
  return line;
}

const SVG_NS = "http://www.w3.org/2000/svg";

/** How often a feature fires how strongly, as bars with their counts when pointed at. */
export function histogram(words) {
  const part = document.createDocumentFragment();
  const found = words.histogram;
  if (!found) return part;
  const { width, counts } = found;
  const total = counts.reduce((sum, count) => sum + count, 0);
  const most = Math.max(...counts);
  const number = (value) => String(Number(value.toPrecision(3)));
  const rate = words.frequency ? `, on ${percent(words.frequency)} of all tokens (1 in ${Math.round(1 / words.frequency).toLocaleString("en")})` : "";
  part.append(make("h4", "", `${total.toLocaleString("en")} activations${rate}`));
  const svg = document.createElementNS(SVG_NS, "svg");
  for (const [key, value] of Object.entries({ class: "histogram", viewBox: `0 0 ${counts.length} 40`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Histogram of ${total} activations from 0 to ${number(width * counts.length)}` })) svg.setAttribute(key, value);
  counts.forEach((count, i) => {
    const bar = document.createElementNS(SVG_NS, "rect");
    const high = count ? Math.max(1, (38 * count) / most) : 0;
    for (const [key, value] of Object.entries({ x: i, y: 0, width: 1, height: 40, class: "slot" })) bar.setAttribute(key, value);
    const fill = bar.cloneNode();
    for (const [key, value] of Object.entries({ x: i + 0.06, y: 40 - high, width: 0.88, height: high, class: "bar-of" })) fill.setAttribute(key, value);
    const title = document.createElementNS(SVG_NS, "title");
    title.textContent = `${count.toLocaleString("en")} from ${number(i * width)} to ${number((i + 1) * width)}`;
    const group = document.createElementNS(SVG_NS, "g");
    group.append(title, fill, bar);
    svg.append(group);
  });
  const axis = make("p", "axis");
  axis.append(make("span", "", "0"), make("span", "", "activation"), make("span", "", number(width * counts.length)));
  part.append(svg, axis);
  return part;
}

/** What the words of a feature do not say, and what would. */
export function unknown(words) {
  if (!words.label && !words.tokens?.length) return make("p", "near missing", "Nothing is known of it: it fired on none of the texts that words were made from, or its site has no words.");
  const missing = [[words.contexts?.length, "passages"], [words.spread?.length, "passages from strong to weak"], [words.histogram, "a histogram of activations"],
    [words.suppresses?.length, "what its row suppresses"], [words.near?.length, "rows near it"]].filter(([there]) => !there).map(([, name]) => name);
  if (!missing.length) return null;
  const line = make("p", "near missing", `Its words do not hold ${missing.join(", ").replace(/, ([^,]*)$/, " and $1")}. `);
  line.append(make("code", "", "saeflow labels make"), " stores them.");
  return line;
}

/** One score as a bar, with the cut of the graph dashed across it. */
export function scoreBar(name, score, cut, tone, of = "score") {
  const row = make("div", `score ${tone}`);
  row.title = `${of}: ${digits(score)}; the graph's cut is ${digits(cut)}`;
  const track = make("span", "track");
  const fill = make("span", "fill");
  fill.style.width = `${100 * Math.max(0, Math.min(1, score ?? 0))}%`;
  const line = make("span", "cut");
  line.style.left = `${100 * Math.max(0, cut)}%`;
  line.title = `cut at ${digits(cut)}`;
  track.append(fill, line);
  row.append(make("span", "plain", name), track, make("span", "value", digits(score)));
  return row;
}

export function digits(score) {
  return score === null || score === undefined ? "–" : score.toFixed(2).replace("-0.00", "0.00");
}

/** The cut for predecessors at `part`: the calibrated one of the layer where there is one. */
export function cutOf(cuts, layer, part) {
  const own = (cuts.layers || []).find((row) => row.layer === layer && row.part === part);
  return own?.cut ?? (part === "res" ? cuts.res : cuts[part] ?? cuts.module);
}

export function scoreBars(node, cuts) {
  const part = document.createDocumentFragment();
  if (!node.scores) return part;
  const layer = Number(node.feature.split("/")[0]);
  const bars = {
    res: ["s(R)", "case-translated", "cosine with the best match in the residual stream one layer below"],
    mlp: ["s(M)", "module", "cosine with the best match among the layer's MLP features"],
    att: ["s(A)", "module", "cosine with the best match among the layer's attention features"],
  };
  for (const [name, [label, tone, of]] of Object.entries(bars)) {
    part.append(scoreBar(label, node.scores[name], cutOf(cuts, layer, name), tone, of));
  }
  if (node.p) {
    const said = Object.keys(bars).filter((name) => node.p[name] !== null).map((name) => `${bars[name][0]} ${node.p[name].toPrecision(2)}`);
    const line = make("p", "near", `p by chance: ${said.join(", ")}`);
    line.title = "How often a feature without a counterpart has a best match that good";
    part.append(line);
  }
  return part;
}

export function caseLine(node) {
  const line = make("p", "case");
  if (!node.case) return line;
  const name = make("b", `case-${node.evolution}`, `${node.case} ${node.evolution}. `);
  line.append(name, node.sentence);
  return line;
}

function neighbours(title, edges, end) {
  if (!edges.length) return document.createDocumentFragment();
  const line = make("p", "near");
  line.append(make("span", "muted", `${title} `));
  line.append(edges.map((edge) => `${edge[end]} (${digits(edge.effect ?? edge.score)}${edge.mutual ? " ⇄" : ""})`).join(", "));
  return line;
}

/** Fill `card` with what the figure knows of `node`. */
export function fillCard(card, figure, node) {
  const [layer, part] = node.feature.split("/");
  const words = node.words || {};
  const top = make("div", "top");
  const rate = words.frequency === null || words.frequency === undefined ? "" : `, ${percent(words.frequency)} of all tokens`;
  top.append(make("span", "id", node.feature), make("span", "", node.kind === "logit" ? "output" : `${PLACES[part]} ${layer}`));
  card.replaceChildren(top);
  if (words.label) card.append(make("h3", "", words.label));
  card.append(passages(words, 3));
  if (node.feature === figure.data.seed) card.append(make("p", "", node.kind ? "The strongest on the target." : "The seed of this graph."));
  if (node.kind) card.append(make("p", "case", `${node.sentence}.`));
  card.append(caseLine(node));
  if (node.joins.length) card.append(make("p", "", `A linear circuit: ${node.joins.join(" and ")} ${node.joins.length > 1 ? "join" : "joins"} here with a high score.`));
  card.append(scoreBars(node, figure.data.thresholds));
  card.append(histogram(words));
  card.append(tokenList(`Fires on${rate}`, words.tokens), tokenList("Promotes (logit lens)", words.promotes), tokenList("Suppresses (logit lens)", words.suppresses));
  card.append(neighbours("from", figure.into.get(node.feature) || [], "parent"));
  card.append(neighbours("to", figure.outOf.get(node.feature) || [], "child"));
  for (const end of figure.data.ends) if (end.feature === node.feature) card.append(make("p", "near", end.sentence));
}

export function percent(share) {
  return `${(100 * share).toPrecision(2)}%`;
}
