/* What a server would answer, from the files of a published site. Loaded by api.js where the page is one. */
import { ApiError } from "../api.js";
import { about, factsOf, parts } from "./blocks.js";
import { find, isThere } from "./finder.js";
import { expand, letterOf, Matches, sentenceOf, trace, union, within } from "./growth.js";
import { figureSvg } from "./picture.js";

const MORE = 2; // matches that an expanded node shows beyond those its graph follows
const ROUTES = { "/api/info": info, "/api/search": search, "/api/graph": graph, "/api/compare": compare, "/api/feature": card, "/api/export": exported, "/api/results": results };

/** The answer to a request, as the server's route of this path gives it. */
export async function answer(path, values, signal) {
  const start = performance.now();
  const found = await ROUTES[path](values, signal);
  signal?.throwIfAborted();
  return { ...found, took_ms: performance.now() - start };
}

async function info() {
  return (await about()).info;
}

async function results() {
  return { results: (await about()).results };
}

async function search({ q, limit = 20 }) {
  return { query: q, hits: await find(q, limit), indexing: null, problem: null };
}

/* What is asked, checked as the server checks it */

async function featureOf(id) {
  if (await isThere(id)) return id;
  const found = /^(\d+\/(?:res|mlp|att))\/\d+$/.exec(id ?? "");
  const { sizes, info: told } = await about();
  const n = sizes[found?.[1]];
  throw new ApiError(!found ? `“${id}” is no feature.` : n ? `${id} does not exist: the dictionary at ${found[1]} has ${n} features, 0 to ${n - 1}.` : `${told.release} has no dictionary at ${found[1]}.`, "Search for one that does.", 404);
}

function number(values, key, otherwise, low, high, whole = false) {
  const said = values[key];
  const value = said === undefined || said === null || said === "" ? otherwise : Number(said);
  if (value === null || (value >= low && value <= high && (!whole || Number.isInteger(value)))) return value;
  throw new ApiError(`${key} = ${said} is no ${whole ? "whole number" : "number"} from ${low} to ${high}.`, "Correct it in the address, or take it out.", 422);
}

async function thresholdsOf(values) {
  const { thresholds } = await about();
  if (values.fdr) {
    const known = thresholds[Number(values.fdr)];
    if (known) return known;
    throw new ApiError(`This site has no calibrated thresholds at fdr = ${values.fdr}.`, `Rates that it has: ${Object.keys(thresholds).filter((rate) => rate !== "plain").join(", ") || "none"}.`, 422);
  }
  const { plain } = thresholds;
  const of = (key, otherwise) => number(values, key, otherwise, -1, 1);
  return { ...plain, res: of("t_res", plain.res), mlp: of("t_mlp", plain.module), att: of("t_att", plain.module), high: of("high", plain.high) };
}

async function growthOf(values, signal) {
  const { k } = await about();
  const { direction = "both" } = values;
  const asked = { thresholds: await thresholdsOf(values), k: number(values, "k", 1, 1, k, true), backward: direction !== "forward", forward: direction !== "backward", signal };
  return { asked, layers: [number(values, "from_layer", null, 0, 9999, true), number(values, "to_layer", null, 0, 9999, true)] };
}

/* Graphs */

async function grown(values, signal) {
  const { k: kept } = await about();
  const { asked, layers } = await growthOf(values, signal);
  const matches = await Matches.open();
  let found = await trace(await featureOf(values.feature), matches, asked);
  const wanted = await Promise.all((values.expand ?? "").split(",").filter(Boolean).map(featureOf));
  if (wanted.length) found = await expand(await bounded(found), wanted, await Matches.open(matches), { k: Math.min(asked.k + MORE, kept), modules: asked.k, signal });
  return [await bounded(within(found, ...layers)), matches];
}

async function bounded(found) {
  const { most_nodes: most } = await about();
  if (found.nodes.length <= most) return found;
  throw new ApiError(`This graph has ${found.nodes.length} features, more than the ${most} that are drawn.`, "Raise the thresholds, lower k, or ask for fewer layers.", 422);
}

async function graph(values, signal) {
  return shown(...await grown(values, signal));
}

async function compare(values, signal) {
  const { asked, layers } = await growthOf(values, signal);
  const matches = await Matches.open();
  const [one, other] = await Promise.all([values.a, values.b].map(async (id) => trace(await featureOf(id), await Matches.open(matches), asked)));
  // after the union: the requested layers need to hold the first seed only
  const found = await bounded(within(union([one, other]), ...layers));
  const [inOne, inOther] = [one, other].map((side) => new Set(side.nodes.map((node) => node.feature)));
  const edges = [one, other].map((side) => new Set(side.edges.map((edge) => `${edge.parent} ${edge.child}`)));
  const sides = found.edges.map((edge) => ["a", "b"].filter((_, i) => edges[i].has(`${edge.parent} ${edge.child}`)).join(""));
  const features = found.nodes.map((node) => node.feature);
  const count = (side) => sides.filter((said) => said === side).length;
  return {
    ...(await shown(found, matches)), in_a: features.filter((id) => !inOther.has(id)), in_b: features.filter((id) => !inOne.has(id)),
    both: features.filter((id) => inOne.has(id) && inOther.has(id)), edges_in: sides, edges_a: count("a"), edges_b: count("b"), edges_both: count("ab"),
  };
}

/** A graph with the words of its features, its drawing, counts, and origin groups. */
async function shown(found, matches) {
  const { info: told } = await about();
  const words = new Map(await Promise.all(found.nodes.map(async ({ feature }) => [feature, await matches.words(feature)])));
  const nodes = found.nodes.map((node) => {
    const { words: known, silent } = words.get(node.feature);
    return { ...node, words: known, silent, case: letterOf(node.evolution), sentence: sentenceOf(node) || null };
  });
  const { seed, span, thresholds, p_floor, edges, ends } = found;
  const data = { format: "saeflow-graph", version: 2, release: told.release, seed, span, thresholds, p_floor, nodes, edges, ends };
  const count = (part) => nodes.filter((node) => parts(node.feature).part === part).length;
  const groups = told.origins ? Object.fromEntries([...words].filter(([, { shares }]) => shares).map(([id, { shares }]) => [id, shares])) : null;
  return { data, svg: figureSvg(data, (feature) => words.get(feature)), counts: { res: count("res"), mlp: count("mlp"), att: count("att"), edges: edges.length }, groups };
}

/** The graph as a file: its data, which saeflow reads, or its picture. */
async function exported(values, signal) {
  const { data, svg } = await graph(values, signal);
  const name = `${data.release}-${data.seed}.${values.format}`.replaceAll("/", "-");
  if (values.format === "json") return { name, type: "application/json", text: `${JSON.stringify(data, null, 1)}\n` };
  const style = await (await fetch("static/report/figure.css")).text();
  return { name, type: "image/svg+xml", text: `${svg.replace(">", () => `><style>${style}</style>`)}\n` };
}

/* Cards */

async function card(values, signal) {
  const id = await featureOf(values.id);
  const { k } = await about();
  const matches = await Matches.open();
  const thresholds = await thresholdsOf({ fdr: values.fdr, high: values.high });
  const [facts, alone] = await Promise.all([factsOf(id), trace(id, matches, { thresholds, backward: false, forward: false, signal })]);
  const [node] = alone.nodes;
  const { site } = parts(id);
  const near = async (sites) => Object.fromEntries(await Promise.all(sites.map(async (target) => {
    const known = matches.null(site, target);
    const rows = matches.best(id, target, k).map(async ({ feature, score }) => ({ feature, label: (await matches.words(feature)).words?.label ?? "", score, p: known ? known.p(score) : null }));
    return [parts(`${target}/0`).part, await Promise.all(rows)];
  })));
  const [following, neighbours] = [matches.following(site), matches.neighbours(site)];
  const { evolution } = node;
  return {
    ...facts, scores: node.scores, p: node.p, joins: node.joins,
    evolution: evolution && { case: letterOf(evolution), name: evolution, sentence: sentenceOf(node) },
    predecessors: await near(neighbours.filter((target) => target !== following)), successors: await near(following ? [following] : []),
  };
}
