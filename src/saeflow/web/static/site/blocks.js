/* The data of a published site: blocks of features, packed with gzip, fetched when one of them is first needed. */
import { ApiError } from "../api.js";

const MOST_KEPT = 1000; // blocks; the oldest go
const kept = new Map();
let said = null;

/** What the site says of itself: `site.json`. */
export function about() {
  said ??= fetched("site.json", "no-cache").then((file) => file.json()).catch((error) => { said = null; throw error; });
  return said;
}

async function fetched(name, cache = "default") {
  const file = await fetch(name, { cache }).catch(() => null);
  if (!file?.ok) throw new ApiError(`${name.split("?")[0]} of this site does not load${file ? ` (${file.status})` : ""}.`, "Load the page again. If that does not help, the folder was not copied whole.", file?.status ?? 0);
  return file;
}

/** A packed file of the folder `data`, unpacked; `read(bytes)` makes of it what is kept. */
export async function packed(name, read) {
  if (!kept.has(name)) {
    if (kept.size >= MOST_KEPT) kept.delete(kept.keys().next().value);
    const found = unpacked(name).then(read);
    kept.set(name, found);
    found.catch(() => kept.delete(name));
  }
  return kept.get(name);
}

async function unpacked(name) {
  const { stamp } = await about();
  const file = await fetched(`data/${name}.bin?${stamp}`);
  try {
    return new Uint8Array(await new Response(file.body.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  } catch (error) {
    throw new ApiError(`data/${name}.bin of this site is damaged (${error.message || error.name}).`, "Load the page again. If that does not help, publish the site again.", 0);
  }
}

/** Packed JSON. */
export const json = (name) => packed(name, (bytes) => JSON.parse(new TextDecoder().decode(bytes)));

/** Reads arrays one after the other; each lies there as planes of its bytes, lowest first. */
export class Reader {
  constructor(bytes, at = 0) {
    this.bytes = bytes;
    this.at = at;
  }

  /** The next `n` values, of 1, 2 or 4 bytes, or "f4". */
  take(n, kind) {
    const width = kind === "f4" ? 4 : kind;
    const mixed = new Uint8Array(n * width);
    for (let plane = 0; plane < width; plane++) {
      for (let i = 0, from = this.at + plane * n; i < n; i++) mixed[i * width + plane] = this.bytes[from + i];
    }
    this.at += n * width;
    return kind === 1 ? mixed : new ({ 2: Uint16Array, 4: Uint32Array, f4: Float32Array }[kind])(mixed.buffer); // browsers are little-endian
  }
}

/** JSON with arrays behind it: what it says, and a reader of them. */
export function headed(bytes) {
  const size = new DataView(bytes.buffer).getUint32(0, true);
  return { head: JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size))), reader: new Reader(bytes, 4 + size) };
}

/** "4/res/123" as its site "4/res", layer, part and row. */
export function parts(feature) {
  const [layer, part, row] = feature.split("/");
  return { site: `${layer}/${part}`, layer: Number(layer), part, row: Number(row) };
}

const folder = (site) => site.replace("/", ".");

/** The tables of a site for `n` of its rows: of each, scores, rows of the target and their blocks, rank by rank. */
function tablesOf(site, n, reader, { k, tables, sizes }) {
  return new Map(tables[site].map(({ to }) => [to, {
    score: reader.take(n * k, "f4"), index: reader.take(n * k, sizes[to] > 65536 ? 4 : 2),
    flows: to.endsWith("/res") && sizes[to] ? reader.take(n * k, 2) : null, bits: reader.take(n, 1),
  }]));
}

/**
 * The block that has the matches of a feature: `sites` with what it holds of each, and `words` by id.
 * @param {string} feature
 * @param {number} [flow] the block of a residual feature, where a match told it
 */
export async function blockOf(feature, flow = undefined) {
  const { site, part, row } = parts(feature);
  const said = await about();
  if (part === "res") {
    const number = flow ?? (await packed(`${folder(site)}/flows`, (bytes) => new Reader(bytes).take(said.sizes[site], 2)))[row];
    return packed(`flows/${number}`, (bytes) => flowsOf(bytes, said));
  }
  const block = Math.floor(row / said.rows);
  const first = block * said.rows;
  const n = Math.min(said.rows, said.sizes[site] - first);
  return packed(`${folder(site)}/matches-${block}`, (bytes) => ({ words: new Map(), sites: new Map([[site, { n, at: (one) => one - first, tables: tablesOf(site, n, new Reader(bytes), said) }]]) }));
}

/** Residual features that flow into each other, their words, and those of the modules they match best. */
function flowsOf(bytes, said) {
  const { head: { rows, words, modules }, reader } = headed(bytes);
  const ids = Object.entries(rows).flatMap(([site, some]) => some.map((row) => `${site}/${row}`));
  return {
    words: new Map([...Object.entries(modules), ...ids.map((id, i) => [id, words[i]])]),
    sites: new Map(Object.entries(rows).map(([site, some]) => [site, { n: some.length, at: (row) => some.indexOf(row), tables: tablesOf(site, some.length, reader, said) }])),
  };
}

/** What is shown of a feature in graphs and lists; null where nothing is known. `silent`, `lines`, `shares` beside. */
export async function wordsOf(feature, blocks = []) {
  const { site, row } = parts(feature);
  const { rows, silent: without } = await about();
  const known = blocks.find(({ words }) => words.has(feature));
  const found = known ? known.words.get(feature) : (await json(`${folder(site)}/words-${Math.floor(row / rows)}`))[row % rows];
  if (!found) return { words: null, silent: without[site] ?? null, headline: "", lines: [], shares: null };
  const [label, tokens, frequency, silent, lines, headline = label, shares = null] = found;
  return { words: { label, tokens, frequency }, silent, headline: headline ?? label, lines, shares };
}

/** The part of a feature's card that was written beforehand. */
export async function factsOf(feature) {
  const { site, row } = parts(feature);
  const { card_rows: rows } = await about();
  return (await json(`${folder(site)}/cards-${Math.floor(row / rows)}`))[row % rows];
}

/** What the first graph needs is on its way while the page's other modules are. */
async function begin() {
  const { info } = await about();
  const feature = new URLSearchParams(location.hash.split("?")[1]).get("feature") ?? info.picks[0]?.feature;
  await Promise.all([info.calibrated ? json("nulls") : null, feature ? blockOf(feature) : null]);
}

begin().catch(() => {}); // told where the graph is asked for
