/* Folders of results: a list, and the page of one in a frame. */
import { get, resultsFile, resultsPage } from "./api.js";
import { $, h, problem } from "./dom.js";
import * as state from "./state.js";

const KINDS = { origins: "Which predecessors are active with a feature (5.1)", deactivation: "What is left of a feature without its predecessors (5.2)",
  steering: "Steering by flow graphs (5.3)", sweep: "Steering by flow graphs (5.3)", transition: "A match used as a transcoder (F)" };

/** Fill the view. */
export async function startResults(info) {
  const root = $("#results");
  if (!info.results.length) {
    root.append(h("div", { class: "none wide" }, h("h2", {}, "No results yet"),
      h("p", {}, "Give folders at the start, and their figures stand here:"),
      h("pre", {}, `saeflow origins ${info.release || "demo"} --out origins/\nsaeflow serve ${info.release || "demo"} --results origins/`)));
    return;
  }
  const list = h("ul", { class: "folders" }, ...info.results.map(folder));
  const frame = h("iframe", { id: "results-frame", title: "Results", hidden: true });
  const nothing = h("p", { class: "none", role: "status" }, "Choose results to see their figures here.");
  frame.addEventListener("load", () => {
    if (!frame.getAttribute("src")) return;
    nothing.hidden = true;
    // while the figures are being drawn, the page in the frame asks for itself again
    const waits = frame.contentDocument?.querySelector('meta[http-equiv="refresh"]');
    if (!waits) $(`[data-page="${CSS.escape(frame.dataset.of)}"]`, list).hidden = false;
  });
  root.append(list, h("div", { class: "sheet" }, nothing, frame));
  const show = () => {
    const id = state.value("result") || (info.results.length === 1 ? info.results[0].id : "");
    const found = info.results.find((one) => one.id === id);
    for (const link of list.querySelectorAll("a[data-id]")) {
      if (link.dataset.id === id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    frame.hidden = !found;
    if (!found || state.view() !== "results") return;
    if (!list.dataset.listed) listFiles(list);
    frame.title = found.title;
    const address = resultsPage(found.id);
    if (frame.getAttribute("src") === address) return;
    nothing.hidden = false;
    nothing.textContent = "A moment.";
    frame.dataset.of = found.id;
    frame.setAttribute("src", address);
  };
  state.subscribe(show);
  show();
}

function folder(found) {
  const page = resultsPage(found.id);
  const open = h("a", { href: state.address("results", { result: found.id }), "data-id": found.id, class: "title" }, found.title);
  return h("li", {}, open, h("p", { class: "muted small" }, KINDS[found.kind] ?? found.kind, found.finished ? "" : " · not finished"),
    h("p", { class: "small" }, h("a", { href: page, target: "_blank", rel: "noopener" }, "new tab ↗"),
      h("span", { "data-page": found.id, hidden: true }, " · ", h("a", { href: page, download: `${found.kind}.html` }, "download the page"))),
    h("div", { class: "files", "data-of": found.id }));
}

/** The tables of each folder: the server reads them to know them, so they are asked for late. */
async function listFiles(list) {
  list.dataset.listed = "yes";
  try {
    const { results } = await get("/api/results");
    for (const one of results) {
      const root = $(`[data-of="${CSS.escape(one.id)}"]`, list);
      if (!root) continue;
      if (one.problem) root.append(h("p", { class: "small muted" }, one.problem));
      if (one.files?.length) root.append(h("details", {}, h("summary", {}, `${one.files.length} tables`), h("ul", {}, ...one.files.map((file) => fileLink(one, file)))));
    }
  } catch (error) {
    list.after(problem(error));
  }
}

function fileLink(found, file) {
  const size = file.bytes < 10_000 ? `${file.bytes} B` : `${Math.round(file.bytes / 1000)} kB`;
  return h("li", {}, h("a", { href: resultsFile(found.id, file), download: file.name }, file.name), ` ${size}`);
}
