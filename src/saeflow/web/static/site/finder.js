/* Finding features by words or ids in a published site: ranked as saeflow.labels.search ranks them. */
import { about, headed, json, packed, wordsOf } from "./blocks.js";

const MOST_WORDS = 16; // of a query
const IN_TOKENS = 255; // the place of a word that stands in the tokens alone
const INDEXED = 3; // beginnings of so many letters are entries of their own, with a star
const FEATURE = /^(0|[1-9]\d{0,3})\/(att|mlp|res)\/(0|[1-9]\d{0,8})$/;
const SITE = /^(0|[1-9]\d{0,3})\/(att|mlp|res)\/?$/;

/** Whether a text is the id of a feature that is there. */
export async function isThere(feature) {
  const found = FEATURE.exec(feature);
  return Boolean(found) && Number(found[3]) < ((await about()).sizes[`${found[1]}/${found[2]}`] ?? 0);
}

/** The features that fit a query best, those that it names as ids first; at most `limit`. */
export async function find(query, limit) {
  const { named, rest, at } = await namedIn(query, limit);
  const found = new Set(named);
  if (rest) for (const feature of await byWords(rest, at)) found.add(feature);
  const ids = [...found].slice(0, limit);
  return Promise.all(ids.map(async (feature) => {
    const { words } = await wordsOf(feature);
    return { feature, label: words?.label ?? "", tokens: words?.tokens ?? [], frequency: words?.frequency ?? null };
  }));
}

/** The features that a query names, what is left of it for the words, and the site it names. */
async function namedIn(query, limit) {
  const { sizes } = await about();
  const [first, ...others] = query.trim().split(" ");
  const rest = others.join(" ");
  if (/^[0-9]+$/.test(first)) {
    // a row of every site that has it, the residual stream first
    const row = first.length < 10 ? Number(first) : -1;
    const sites = Object.keys(sizes).sort((a, b) => b.endsWith("/res") - a.endsWith("/res"));
    return { named: sites.filter((site) => row >= 0 && row < sizes[site]).map((site) => `${site}/${row}`).slice(0, limit), rest: query, at: null };
  }
  if (FEATURE.test(first)) return { named: (await isThere(first)) ? [first] : [], rest, at: null };
  const site = SITE.exec(first) && first.replace(/\/$/, "");
  if (!site) return { named: [], rest: query, at: null };
  return { named: rest ? [] : Array.from({ length: Math.min(sizes[site] ?? 0, limit) }, (_, row) => `${site}/${row}`), rest, at: site };
}

/** The words of a text: letters and digits, lower case, without accents. */
export function wordsIn(text) {
  const plain = text.toLowerCase().replaceAll("ß", "ss").normalize("NFKD").replace(/[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u3099\u309a]/g, "");
  return plain.match(/[\p{L}\p{N}]+/gu) ?? [];
}

async function byWords(query, at) {
  const asked = wordsIn(query).slice(0, MOST_WORDS);
  if (!asked.length) return [];
  const found = await Promise.all(asked.map(postings));
  // 1. features with all words, of the last one the beginning is enough; else those with some of them, or beginnings
  const last = found.length - 1;
  const features = new Set(found.flatMap(({ whole, begun }) => [...whole.keys(), ...begun.keys()]));
  const all = [...features].filter((id) => found.every(({ whole, begun }, i) => whole.has(id) || (i === last && begun.has(id))));
  const ids = all.length ? all : [...features];
  // 2. ranked: words missing, then beginnings, words of the tokens alone, order, place in the label, its length
  const rank = (id) => {
    let [missing, beginnings, elsewhere, length] = [0, 0, 0, 0];
    const places = [];
    for (const { whole, begun } of found) {
      const [own, begins] = [whole.get(id), begun.get(id)];
      length = (own ?? begins)?.length ?? length;
      if (own && own.place < IN_TOKENS) places.push(own.place);
      else if (begins && begins.place < IN_TOKENS) {
        beginnings++;
        places.push(begins.place);
      } else if (own || begins) {
        elsewhere++;
        beginnings += own ? 0 : 1;
      } else missing++;
    }
    const strayed = places.filter((place, i) => i && place !== places[i - 1] + 1).length;
    return [missing, beginnings, elsewhere, strayed, places.length ? Math.min(...places) : length, length];
  };
  const ranked = (await placed(ids, at)).map(({ id, feature }) => ({ feature, rank: [...rank(id), id] }));
  return ranked.sort((a, b) => { const i = a.rank.findIndex((value, j) => value !== b.rank[j]); return a.rank[i] - b.rank[i]; }).map(({ feature }) => feature);
}

/** Numbers of features as ids, those at a site alone where one is named. */
async function placed(ids, at) {
  const { sizes } = await about();
  let start = 0;
  const starts = Object.entries(sizes).map(([site, size]) => { start += size; return { site, first: start - size, end: start }; });
  return ids.map((id) => {
    const { site, first } = starts.find((one) => id < one.end);
    return { id, site, feature: `${site}/${id - first}` };
  }).filter(({ site }) => at === null || site === at);
}

/** Where a word stands: by the number of the feature, its place in the label; whole, and as the beginning of others. */
async function postings(word) {
  const first = await json("search/first");
  const [whole, begun] = [new Map(), new Map()];
  const put = (map, { id, ...posting }) => { if (!map.has(id) || map.get(id).place > posting.place) map.set(id, posting); };
  const short = [...word].length <= INDEXED;
  let shard = Math.max(0, first.findLastIndex((start) => start <= word));
  for (; shard < first.length && (first[shard] <= (short ? `${word}*` : word) || (!short && first[shard].startsWith(word))); shard++) {
    const { words, read } = await packed(`search/${shard}`, shardOf);
    for (const [i, entry] of words.entries()) {
      if (entry === word) for (const posting of read(i)) put(whole, posting);
      else if (short ? entry === `${word}*` : entry.startsWith(word)) for (const posting of read(i)) put(begun, posting);
    }
  }
  return { whole, begun };
}

function shardOf(bytes) {
  const { head: { words, counts }, reader } = headed(bytes);
  const n = counts.reduce((sum, count) => sum + count, 0);
  const [ids, places, lengths] = [reader.take(n, 4), reader.take(n, 1), reader.take(n, 1)];
  let start = 0;
  const starts = counts.map((count) => { start += count; return start - count; });
  return { words, read: (i) => Array.from({ length: counts[i] }, (_, j) => ({ id: ids[starts[i] + j], place: places[starts[i] + j], length: lengths[starts[i] + j] })) };
}
