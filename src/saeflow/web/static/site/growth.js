/* Flow graphs grown from the blocks of a published site: what saeflow.flow does on a server, step by step the same. */
import { ApiError } from "../api.js";
import { about, blockOf, json, parts, wordsOf } from "./blocks.js";
import { fixed } from "./numbers.js";

const RANK = { att: 0, mlp: 1, res: 2 };
const MODULES = ["mlp", "att"];
const CHANCE = 0.05; // an edge whose p is above this is no better than chance
const EVOLUTIONS = ["translated", "processed", "newborn", "unexplained"];
const SENTENCES = {
  translated: "It was there in the previous layer and is carried on.",
  processed: "It was there in the previous layer, and a module of this layer writes it too.",
  newborn: "The previous layer has nothing like it: a module of this layer writes it.",
  unexplained: "No predecessor points its way: similarity alone does not explain it.",
};

const order = (a, b) => {
  const [one, other] = [parts(a), parts(b)];
  return one.layer - other.layer || RANK[one.part] - RANK[other.part] || one.row - other.row;
};

/* Thresholds, as graphs carry them. */

/** The cut of predecessors at `part` of residual features in `layer`; `ahead`: of matches looked for forward. */
export function cutOf(thresholds, part, layer = null, ahead = false) {
  const known = layer === null ? null : thresholds.layers.find((row) => row.layer === layer && row.part === part);
  return known?.[ahead ? "ahead" : "cut"] ?? (part === "res" ? thresholds.res : thresholds[part] ?? thresholds.module);
}

function lineOf(thresholds, part, layer) {
  return thresholds.layers.find((row) => row.layer === layer && row.part === part)?.cut ?? thresholds.high;
}

/** Matches of the site, for one request: at most so many lookups, counted as the server counts them. */
export class Matches {
  constructor({ tables, k, most_lookups: most, one_to_one: oneToOne }, nulls, { blocks, flows }) {
    Object.assign(this, { tables, k, most, nulls, oneToOne, left: most, blocks, flows });
  }

  /** Those of a new request; `before` are of another one of the same graph, and lend what they fetched. */
  static async open(before = { blocks: new Map(), flows: new Map() }) {
    const site = await about();
    return new Matches(site, site.info.calibrated ? await nulls() : new Map(), before);
  }

  has(source, target) { return Boolean(this.table(source, target)); }

  table(source, target) { return this.tables[source]?.find((table) => table.to === target); }

  /** The nearest residual site below that a site was matched to; null where there is none. */
  previous(site) {
    const { layer, part } = parts(site);
    const below = (this.tables[site] ?? []).map(({ to }) => parts(to)).filter((to) => to.part === "res" && to.layer < layer);
    return part !== "res" || !below.length ? null : `${Math.max(...below.map((to) => to.layer))}/res`;
  }

  /** The nearest residual site that a site writes into and was matched to; null where there is none. */
  following(site) {
    const { layer, part } = parts(site);
    if (part !== "res") return this.has(site, `${layer}/res`) ? `${layer}/res` : null;
    const above = (this.tables[site] ?? []).map(({ to }) => parts(to)).filter((to) => to.part === "res" && to.layer > layer);
    return above.length ? `${Math.min(...above.map((to) => to.layer))}/res` : null;
  }

  /** M_L and A_L of a residual site. */
  modules(site) {
    const { layer, part } = parts(site);
    return part === "res" ? MODULES.map((module) => `${layer}/${module}`) : [];
  }

  neighbours(site) {
    return [this.previous(site), ...this.modules(site).filter((near) => this.has(site, near)), this.following(site)].filter(Boolean);
  }

  /** Fetch what `best` needs to know of some features. */
  async load(features) {
    await Promise.all(features.map(async (feature) => this.blocks.set(feature, await blockOf(feature, this.flows.get(feature)))));
  }

  /** The words of a feature, from what was fetched if they are there. */
  words(feature) { return wordsOf(feature, [...new Set(this.blocks.values())]); }

  /** Words are drawn when a graph is grown, and fetched while it grows. */
  ahead(feature) { this.words(feature).catch(() => {}); }

  /** The best `k` matches of a feature that was loaded, best first. */
  best(feature, target, k = this.k) {
    this.count();
    const { site, row } = parts(feature);
    const { n, at: place, tables } = this.blocks.get(feature).sites.get(site);
    const { score, index, flows, bits } = tables.get(target);
    const own = place(row);
    const found = [];
    for (let rank = 0; rank < k; rank++) {
      const at = rank * n + own;
      const mutual = this.table(site, target).back ? Boolean(bits[own] & (1 << rank)) : null;
      if (score[at] === -Infinity) continue;
      const match = { feature: `${target}/${index[at]}`, score: score[at], back: mutual };
      if (flows) this.flows.set(match.feature, flows[at]);
      found.push(match);
    }
    return found;
  }

  count() {
    if (--this.left < 0) throw new ApiError(`This graph needs more than ${this.most} rows of match tables.`, "Raise the thresholds, lower k, or grow it with `saeflow graph`.", 422);
  }

  /** What matches of `source` at `target` score by chance; undefined where it was not drawn. */
  null(source, target) { return this.nulls.get(`${source} ${target}`); }
}

/** p-values of the site's nulls, by "source target". */
async function nulls() {
  return new Map((await json("nulls")).map(({ source, target, n, scores }) => {
    const ranks = [1];
    while (ranks.at(-1) < n) ranks.push(Math.min(n, ranks.at(-1) + Math.max(1, Math.floor(ranks.at(-1) / 32))));
    const p = (score) => {
      // whatever reaches the score is ranked before the first kept one that does not
      let [low, high] = [0, scores.length];
      while (low < high) {
        const middle = (low + high) >> 1;
        if (scores[middle] < score) high = middle;
        else low = middle + 1;
      }
      return (low < ranks.length ? ranks[low] : n + 1) / (n + 1);
    };
    return [`${source} ${target}`, { floor: 1 / (n + 1), p }];
  }));
}

/* Growing */

function edgeTo(feature, match, rank, matches, p) {
  // whether each is the other's best: `own` is known from this side, `back` from the other
  const [one, other] = [parts(feature).site, parts(match.feature).site];
  const isBack = order(`${other}/0`, `${one}/0`) < 0;
  const [parent, child] = isBack ? [match.feature, feature] : [feature, match.feature];
  const [first, second] = isBack ? [match.back, rank === 0] : [rank === 0, match.back];
  if (first !== null) matches.count();
  if (first && second !== null) matches.count();
  const mutual = first && second;
  return { parent, child, score: match.score, rank, p, mutual, by_chance: p === null ? null : p > CHANCE };
}

function keepBetter(edges, edge) {
  const key = `${edge.parent} ${edge.child}`;
  const known = edges.get(key);
  if (!known || edge.rank < known.rank) edges.set(key, edge);
}

class Growth {
  constructor(matches, thresholds, k, signal) {
    Object.assign(this, { matches, thresholds, k, signal, nodes: new Set(), edges: new Map(), ends: new Map(), floor: 0 });
  }

  /** Apply `step` to the seed and to everything it gives, each feature once; blocks are fetched front by front. */
  async grow(seed, step) {
    const seen = new Set([seed]);
    let front = [seed];
    while (front.length) {
      await this.matches.load(front);
      this.signal?.throwIfAborted();
      const found = new Set(front.flatMap(step));
      front = [...found].filter((feature) => !seen.has(feature));
      for (const feature of front) seen.add(feature);
    }
  }

  stepBack = (child) => {
    const { site, layer, part } = parts(child);
    this.nodes.add(child);
    if (part !== "res") {
      this.end(child, "backward", "module output");
      return [];
    }
    this.addModules(child);
    if (layer === 0) {
      this.end(child, "backward", "first layer");
      return [];
    }
    return this.follow(child, this.matches.previous(site), "backward");
  };

  stepForward = (parent) => {
    const { site, part } = parts(parent);
    this.nodes.add(parent);
    if (part === "res") this.addModules(parent);
    return this.follow(parent, this.matches.following(site), "forward");
  };

  addModules(child) {
    const { layer } = parts(child);
    for (const part of MODULES) {
      for (const [rank, match] of this.best(child, `${layer}/${part}`).entries()) {
        if (match.score < cutOf(this.thresholds, part, layer)) continue;
        this.nodes.add(match.feature);
        this.keep(child, match, rank);
        this.matches.ahead(match.feature);
      }
    }
  }

  follow(feature, target, direction) {
    const { layer, part } = parts(feature);
    if (target === null) {
      const last = Math.max(-1, ...Object.keys(this.matches.tables).filter((site) => site.endsWith("/res")).map((site) => parts(site).layer));
      const next = part === "res" ? layer + 1 : layer;
      this.end(feature, direction, direction === "forward" && next > last && last >= 0 ? "last layer" : "no table");
      return [];
    }
    const ahead = direction === "forward";
    const cut = cutOf(this.thresholds, part, ahead ? parts(target).layer : layer, ahead);
    const found = this.best(feature, target);
    const kept = found.filter((match) => match.score >= cut);
    for (const [rank, match] of kept.entries()) this.keep(feature, match, rank);
    if (!found.length) this.end(feature, direction, this.matches.oneToOne ? "no partner" : "no direction");
    else if (!kept.length) this.end(feature, direction, "below threshold", found[0].score, cut);
    return kept.map((match) => match.feature);
  }

  best(feature, target, k = this.k) {
    return this.matches.has(parts(feature).site, target) ? this.matches.best(feature, target, k) : [];
  }

  p(feature, match) {
    const known = this.matches.null(parts(feature).site, parts(match.feature).site);
    if (!known) return null;
    this.floor = Math.max(this.floor, known.floor);
    return known.p(match.score);
  }

  keep(feature, match, rank) {
    keepBetter(this.edges, edgeTo(feature, match, rank, this.matches, this.p(feature, match)));
  }

  end(feature, direction, reason, score = null, threshold = null) {
    const end = { feature, direction, reason, score, threshold };
    this.ends.set(`${feature} ${direction}`, { ...end, sentence: endSentence(end) });
  }

  /** A feature with its scores, its case and the modules that join it. */
  node(feature) {
    const { site, layer, part } = parts(feature);
    if (part !== "res") return { feature, scores: null, evolution: null, joins: [], p: null };
    const below = this.matches.previous(site);
    const top = {};
    for (const near of [below, ...this.matches.modules(site)]) {
      const [match] = near === null ? [] : this.best(feature, near);
      if (match) top[parts(near).part] = match;
    }
    const by = (read) => Object.fromEntries(["res", "mlp", "att"].map((name) => [name, top[name] ? read(top[name]) : null]));
    const scores = by((match) => match.score);
    const p = by((match) => this.p(feature, match));
    const high = (name) => scores[name] !== null && scores[name] >= lineOf(this.thresholds, name, layer);
    const joins = ["att", "mlp"].filter((name) => high(name) && scores[name] >= cutOf(this.thresholds, name, layer));
    const written = high("mlp") || high("att");
    const evolution = below === null && layer > 0 ? null : EVOLUTIONS[high("res") ? Number(written) : written ? 2 : 3];
    const gap = below === null || parts(below).layer === layer - 1 ? {} : { below: parts(below).layer };
    return { feature, scores, evolution, joins, p: Object.values(p).every((one) => one === null) ? null : p, ...gap };
  }

  finish(seed) {
    const nodes = Array.from(this.nodes, (feature) => this.node(feature));
    return whole({ seed, thresholds: this.thresholds, p_floor: this.floor || null }, nodes, this.edges.values(), this.ends.values());
  }
}

/** A graph of these parts in any order, with the span of its residual nodes. */
function whole(graph, nodes, edges, ends) {
  const ordered = Array.from(nodes).sort((a, b) => order(a.feature, b.feature));
  const layers = ordered.map((node) => parts(node.feature)).filter((found) => found.part === "res").map((found) => found.layer);
  return {
    ...graph, span: layers.length ? [layers[0], layers.at(-1)] : null, nodes: ordered,
    edges: Array.from(edges).sort((a, b) => order(a.child, b.child) || order(a.parent, b.parent)),
    ends: Array.from(ends).sort((a, b) => order(a.feature, b.feature) || (a.direction < b.direction ? -1 : 1)),
  };
}

/** The flow graph of a feature: saeflow.flow.trace. */
export async function trace(seed, matches, { thresholds, k = 1, backward = true, forward = true, signal }) {
  const growth = new Growth(matches, thresholds, k, signal);
  matches.count(); // the server asks once whether it knows the seed
  if (parts(seed).part !== "res") matches.ahead(seed);
  if (backward) await growth.grow(seed, growth.stepBack);
  if (forward) await growth.grow(seed, growth.stepForward);
  if (!growth.nodes.size) await matches.load([seed]);
  growth.nodes.add(seed);
  return growth.finish(seed);
}

/** Two graphs as one, with the seed of the first: saeflow.flow.union. */
export function union(graphs) {
  const [nodes, edges, ends] = [new Map(), new Map(), new Map()];
  for (const graph of graphs) {
    for (const node of graph.nodes) if (!nodes.has(node.feature)) nodes.set(node.feature, node);
    for (const edge of graph.edges) keepBetter(edges, edge);
    for (const end of graph.ends) ends.set(`${end.feature} ${end.direction}`, end);
  }
  const floors = graphs.map((graph) => graph.p_floor).filter((floor) => floor !== null);
  return pruned({ ...graphs[0], p_floor: floors.length ? Math.max(...floors) : null }, nodes.values(), edges.values(), ends.values());
}

/** A graph with the best `k` matches of some of its features at every neighbouring site: saeflow.flow.expand. */
export async function expand(graph, features, matches, { k, modules, signal }) {
  const nodes = new Map(graph.nodes.map((node) => [node.feature, node]));
  const edges = new Map(graph.edges.map((edge) => [`${edge.parent} ${edge.child}`, edge]));
  const chosen = [...new Set(features)];
  const strange = chosen.filter((feature) => !nodes.has(feature));
  if (strange.length) throw new ApiError(`${strange.join(", ")} cannot be expanded: the graph of ${graph.seed} does not hold it.`, "Expand its nodes.", 422);
  const near = (feature, target, most) => {
    const { site } = parts(feature);
    if (!matches.has(site, target)) return [];
    const known = matches.null(site, target);
    return matches.best(feature, target, most).map((match, rank) => edgeTo(feature, match, rank, matches, known ? known.p(match.score) : null));
  };
  for (const feature of chosen) {
    await matches.load([feature]);
    const found = matches.neighbours(parts(feature).site).flatMap((site) => near(feature, site, k));
    const fresh = [...new Set(found.flatMap((edge) => [edge.parent, edge.child]))].filter((side) => !nodes.has(side)).sort(order);
    await matches.load(fresh);
    signal?.throwIfAborted();
    for (const side of fresh) {
      const { site, layer, part } = parts(side);
      if (part !== "res") continue;
      for (const module of matches.modules(site)) {
        found.push(...near(side, module, modules).filter((edge) => edge.score >= cutOf(graph.thresholds, parts(module).part, layer)));
      }
    }
    for (const edge of found) {
      const key = `${edge.parent} ${edge.child}`;
      if (!edges.has(key)) edges.set(key, edge);
      for (const side of [edge.parent, edge.child]) {
        if (!nodes.has(side)) nodes.set(side, (await trace(side, matches, { thresholds: graph.thresholds, backward: false, forward: false })).nodes[0]);
      }
    }
  }
  return pruned(graph, nodes.values(), edges.values(), graph.ends);
}

/** The part of a graph from layer `first` to layer `last`, both included; null for as far as it goes. */
export function within(graph, first, last) {
  if (first === null && last === null) return graph;
  const layerOf = (feature) => parts(feature).layer;
  const [low, high] = [first ?? 0, last ?? Math.max(...graph.nodes.map((node) => layerOf(node.feature)))];
  const seed = layerOf(graph.seed);
  if (seed < low || seed > high) throw new ApiError(`Layers ${low} to ${high} leave out the seed ${graph.seed}.`, `Give layers with ${seed} among them.`, 422);
  const nodes = graph.nodes.filter((node) => layerOf(node.feature) >= low && layerOf(node.feature) <= high);
  const there = new Set(nodes.map((node) => node.feature));
  return pruned(graph, nodes, graph.edges.filter((edge) => there.has(edge.parent) && there.has(edge.child)), graph.ends.filter((end) => there.has(end.feature)));
}

/** A graph of other parts, without ends that are none. */
function pruned(graph, nodes, edges, ends) {
  const all = Array.from(edges);
  const into = new Set(all.filter((edge) => parts(edge.parent).part === "res").map((edge) => edge.child));
  const outOf = new Set(all.map((edge) => edge.parent));
  const kept = Array.from(ends).filter((end) => end.reason === "module output" || !(end.direction === "backward" ? into : outOf).has(end.feature));
  return whole(graph, nodes, all, kept);
}

/* Sentences */

/** The letter A to D of a case. */
export const letterOf = (evolution) => (evolution === null ? null : "ABCD"[EVOLUTIONS.indexOf(evolution)]);

/** What is known of where a feature comes from, in a sentence; empty for features of a module. */
export function sentenceOf(node) {
  if (parts(node.feature).part !== "res") return "";
  if (node.evolution === null) return "Not matched: there is no table to the residual stream of a layer below.";
  const said = SENTENCES[node.evolution];
  if (node.below === undefined) return said;
  const near = `layer ${node.below} (the nearest below it with a dictionary)`;
  return said.replaceAll("The previous layer", `L${near.slice(1)}`).replaceAll("the previous layer", near);
}

function endSentence({ feature, direction, reason, score, threshold }) {
  const back = direction === "backward";
  const what = back ? "predecessor" : "successor";
  if (reason === "below threshold") {
    const cut = { res: "t(R)", mlp: "t(M)", att: "t(A)" }[parts(feature).part];
    let digits = 2;
    while (digits < 8 && Number(fixed(score, digits)) >= Number(fixed(threshold, digits))) digits++;
    return `The best ${what} of ${feature} scores ${fixed(score, digits)}, below ${cut} = ${fixed(threshold, 2)}.`;
  }
  return {
    "first layer": `${feature} lies in the first layer: no residual stream of SAE features comes before it.`,
    "last layer": `${feature} lies in the last layer that was matched: nothing comes after it.`,
    "module output": `${feature} is written by a module: matching rows does not look inside modules.`,
    "no table": `The atlas has no table for the site ${back ? "before" : "after"} ${feature}.`,
    "no partner": `One-to-one matching left ${feature} without a ${what}: all features there are taken.`,
    "no direction": `${feature} has no ${what}: a decoder row of zeros, or one that is not finite, has no direction and matches nothing.`,
  }[reason];
}
