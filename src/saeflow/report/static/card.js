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

export function contextList(contexts, most = 5) {
  const part = document.createDocumentFragment();
  if (!contexts || !contexts.length) return part;
  part.append(make("h4", "", "In context, shaded by activation"));
  const strongest = Math.max(...contexts.flatMap((context) => context.values), 1e-9);
  for (const context of contexts.slice(0, most)) {
    const line = make("p", "context");
    context.tokens.forEach((token, i) => {
      const value = context.values[i] || 0;
      const span = make("span", "", inPassage(token, value > 0));
      if (value > 0) {
        span.style.setProperty("--heat-share", Math.min(1, value / strongest).toFixed(3));
        span.title = value.toPrecision(3);
      }
      line.append(span);
    });
    if (context.source) line.append(make("span", "source", context.source));
    part.append(line);
  }
  return part;
}

/** One score as a bar, with the cut of the graph dashed across it. */
export function scoreBar(name, score, cut, tone) {
  const row = make("div", `score ${tone}`);
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
  const bars = { res: ["s(R)", "case-translated"], mlp: ["s(M)", "module"], att: ["s(A)", "module"] };
  for (const [name, [label, tone]] of Object.entries(bars)) {
    part.append(scoreBar(label, node.scores[name], cutOf(cuts, layer, name), tone));
  }
  if (node.p) {
    const said = Object.keys(bars).filter((name) => node.p[name] !== null).map((name) => `${bars[name][0]} ${node.p[name].toPrecision(2)}`);
    part.append(make("p", "near", `p by chance: ${said.join(", ")}`));
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
  if (node.feature === figure.data.seed) card.append(make("p", "", node.kind ? "The strongest on the target." : "The seed of this graph."));
  if (node.kind) card.append(make("p", "case", `${node.sentence}.`));
  card.append(caseLine(node));
  if (node.joins.length) card.append(make("p", "", `A linear circuit: ${node.joins.join(" and ")} ${node.joins.length > 1 ? "join" : "joins"} here with a high score.`));
  card.append(scoreBars(node, figure.data.thresholds));
  card.append(tokenList(`Fires on${rate}`, words.tokens), tokenList("Promotes (logit lens)", words.promotes));
  card.append(neighbours("from", figure.into.get(node.feature) || [], "parent"));
  card.append(neighbours("to", figure.outOf.get(node.feature) || [], "child"));
  for (const end of figure.data.ends) if (end.feature === node.feature) card.append(make("p", "near", end.sentence));
  card.append(contextList(words.contexts));
}

export function percent(share) {
  return `${(100 * share).toPrecision(2)}%`;
}
