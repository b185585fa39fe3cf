/* Where nodes, edges, bands and lanes of a flow graph are drawn: what saeflow.report.layout says, the same numbers. */
import { parts } from "./blocks.js";

export const BOX_WIDTH = 128;
export const GUTTER = 36;
export const BAND_GAP = 8;
export const LANE_HEAD = 22;
export const LANE_FOOT = 18;
export const LINE = 14;
export const ID_LINE = 19;
const [STACK_GAP, COLUMN_GAP] = [18, 16];
const [BAND_LEFT, BAND_RIGHT] = [28, 8];
const [HEAD, FOOT] = [24, 6];
const PORTS = { mlp: -0.23, res: 0, att: 0.23 };
const LANES = ["mlp", "res", "att"];
const ROWS = 8; // features of a site that always stand in one column
const ASPECT = 1.6;

/** Where edges from `part` enter a box: a share of its height below the middle. */
export const port = (part) => PORTS[part];

const siteOf = (feature) => parts(feature).site;
const upTo = (n, rows) => Math.ceil(n / rows);

/** Place every node and edge of a graph; `lines(feature)` are the words in its box. */
export function layOut(graph, lines) {
  const boxHeight = ID_LINE + 7 + LINE * Math.max(0, ...graph.nodes.map((node) => lines(node.feature).length));
  const stacks = stacked(graph);

  // 1. how many features stand over one another: the graph is to fill a screen rather than be a thread
  const size = (rows) => {
    const [bands, lanes] = [bandsOf(stacks, rows), lanesOf(stacks, rows, boxHeight)];
    return [bands.length ? bands.at(-1).x + bands.at(-1).width : 0, lanes.at(-1).y + lanes.at(-1).height + FOOT];
  };
  const most = Math.max(ROWS, ...Array.from(stacks.values(), (stack) => stack.length));
  let best = null;
  for (let rows = ROWS; rows <= most; rows++) {
    const [width, height] = size(rows);
    const cost = Math.max(width / ASPECT, height);
    if (!best || cost < best.cost) best = { rows, width, height, cost };
  }

  // 2. boxes, row by row in the middle of their lane and band
  const [bands, lanes] = [bandsOf(stacks, best.rows), lanesOf(stacks, best.rows, boxHeight)];
  const boxes = new Map();
  for (const [site, stack] of stacks) {
    const { layer, part } = parts(`${site}/0`);
    const [band, lane] = [bands.find((one) => one.layer === layer), lanes.find((one) => one.part === part)];
    const columns = upTo(stack.length, best.rows);
    const used = upTo(stack.length, columns) * (boxHeight + STACK_GAP) - STACK_GAP;
    const top = lane.y + LANE_HEAD + (lane.height - LANE_HEAD - LANE_FOOT - used) / 2;
    const inner = band.width - BAND_LEFT - BAND_RIGHT;
    const left = band.x + BAND_LEFT + (inner - columns * (BOX_WIDTH + COLUMN_GAP) + COLUMN_GAP) / 2;
    for (const [i, node] of stack.entries()) {
      const [x, y] = [left + (i % columns) * (BOX_WIDTH + COLUMN_GAP), top + Math.floor(i / columns) * (boxHeight + STACK_GAP)];
      boxes.set(node.feature, { node, x, y, height: boxHeight, right: x + BOX_WIDTH, middle: y + boxHeight / 2 });
    }
  }

  // 3. what joins them
  const stubs = graph.ends.filter((end) => end.reason !== "module output" && boxes.has(end.feature)).map((end) => {
    const [box, back] = [boxes.get(end.feature), end.direction === "backward"];
    return { end, x: back ? box.x : box.right, y: box.middle, outward: back ? -1 : 1 };
  });
  return {
    width: Math.max(best.width + BAND_GAP, 320), height: best.height, lanes, bands, stubs,
    boxes: graph.nodes.map((node) => boxes.get(node.feature)), wires: wiresOf(graph, boxes, stacks),
  };
}

/** Nodes by site, each site ordered to keep edges from crossing. */
function stacked(graph) {
  const stacks = new Map();
  const put = (map, key, value) => map.set(key, [...(map.get(key) ?? []), value]);
  for (const node of graph.nodes) put(stacks, siteOf(node.feature), node);
  const [before, after] = [new Map(), new Map()];
  for (const edge of [...graph.edges].sort((a, b) => a.rank - b.rank)) {
    put(before, edge.child, edge.parent);
    put(after, edge.parent, edge.child);
  }
  // rows are counted from the middle of a stack
  const rows = new Map();
  const count = (stack) => stack.forEach((node, i) => rows.set(node.feature, i - (stack.length - 1) / 2));
  for (const stack of stacks.values()) count(stack);
  const sites = [...stacks.keys()]; // in the order of computation, as the nodes are
  for (const [near, way] of [[before, sites], [after, [...sites].reverse()]]) {
    for (const site of way) {
      const stack = stacks.get(site);
      const means = new Map(stack.map(({ feature }) => {
        const found = (near.get(feature) ?? []).filter((other) => rows.has(other)).map((other) => rows.get(other));
        return [feature, found.length ? found.reduce((sum, row) => sum + row, 0) / found.length : rows.get(feature)];
      }));
      stack.sort((a, b) => means.get(a.feature) - means.get(b.feature));
      count(stack);
    }
  }
  return stacks;
}

/** The layers from left to right, each as wide as its widest site. */
function bandsOf(stacks, rows) {
  const bands = [];
  let x = GUTTER + BAND_GAP;
  const found = [...stacks].map(([site, stack]) => [parts(`${site}/0`).layer, stack]);
  for (const layer of [...new Set(found.map(([own]) => own))].sort((a, b) => a - b)) {
    const columns = Math.max(...found.filter(([own]) => own === layer).map(([, stack]) => upTo(stack.length, rows)));
    const width = BAND_LEFT + columns * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + BAND_RIGHT;
    bands.push({ layer, x, width });
    x += width + BAND_GAP;
  }
  return bands;
}

/** The parts from top to bottom, each as high as its highest site. */
function lanesOf(stacks, rows, boxHeight) {
  const lanes = [];
  let y = HEAD;
  for (const part of LANES) {
    const heights = [...stacks].filter(([site]) => site.endsWith(`/${part}`)).map(([, stack]) => upTo(stack.length, upTo(stack.length, rows)));
    const inner = heights.length ? Math.max(...heights) * (boxHeight + STACK_GAP) - STACK_GAP + LANE_FOOT : 0;
    lanes.push({ part, y, height: LANE_HEAD + inner, empty: !heights.length });
    y += LANE_HEAD + inner;
  }
  return lanes;
}

function wiresOf(graph, boxes, stacks) {
  const drawn = graph.edges.filter((edge) => boxes.has(edge.parent) && boxes.has(edge.child));
  const fans = new Map();
  const fan = (edge) => `${edge.child} ${parts(edge.parent).part}`;
  for (const edge of drawn) fans.set(fan(edge), (fans.get(fan(edge)) ?? 0) + 1);
  return drawn.map((edge) => {
    const [start, end] = [boxes.get(edge.parent), boxes.get(edge.child)];
    const [parent, child] = [parts(edge.parent), parts(edge.child)];
    const [x2, y2] = [end.x, end.middle + port(parent.part) * end.height];
    // out of the left side and in again, along the side of the band; or to the next band
    const along = parent.layer === child.layer;
    const [x1, out] = along ? [start.x, -0.9 * BAND_LEFT] : [start.right, Math.max(Math.abs(x2 - start.right) * 0.55, 16)];
    const y1 = start.middle;
    const path = `M${one(x1)} ${one(y1)}C${one(x1 + out)} ${one(y1)} ${one(x2 - Math.abs(out))} ${one(y2)} ${one(x2)} ${one(y2)}`;
    let label = null;
    if (fans.get(fan(edge)) === 1 && stacks.get(child.site).length === 1 && stacks.get(parent.site).length === 1) {
      // a score stands over a residual edge, and at the box that a module's edge enters
      const above = parent.part === "mlp" ? end.y - 8 : end.y + end.height + 16;
      label = parent.part === "res" ? [start.right + 16, start.middle - 5] : [end.x + 1, above];
    }
    return { edge, path, label };
  });
}

const one = (value) => value.toFixed(1);
