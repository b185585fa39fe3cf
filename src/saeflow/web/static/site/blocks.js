/* The data of a published site: blocks of rows, packed with gzip, fetched when a row of them is first needed. */
import { ApiError } from "../api.js";

const MOST_KEPT = 3000; // blocks; the oldest go
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

/** "4/res/123" as its site "4/res", layer, part and row. */
export function parts(feature) {
  const [layer, part, row] = feature.split("/");
  return { site: `${layer}/${part}`, layer: Number(layer), part, row: Number(row) };
}

const folder = (site) => site.replace("/", ".");

/** The matches of a block of rows: for each table of their site, scores and rows of the target, rank by rank. */
export async function matchesOf(feature) {
  const { site, row } = parts(feature);
  const { k, tables, rows, sizes } = await about();
  const block = Math.floor(row / rows);
  const n = Math.min(rows, sizes[site] - block * rows);
  return packed(`${folder(site)}/matches-${block}`, (bytes) => {
    const reader = new Reader(bytes);
    const read = tables[site].map((table) => ({ score: reader.take(n * k, "f4"), index: reader.take(n * k, sizes[table.to] > 65536 ? 4 : 2), bits: reader.take(n, 1) }));
    return { first: block * rows, n, tables: new Map(tables[site].map((table, i) => [table.to, read[i]])) };
  });
}

/** What is shown of a feature in graphs and lists; null where nothing is known. `silent`, `lines`, `shares` beside. */
export async function wordsOf(feature) {
  const { site, row } = parts(feature);
  const { rows, silent: without } = await about();
  const found = (await json(`${folder(site)}/words-${Math.floor(row / rows)}`))[row % rows];
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
